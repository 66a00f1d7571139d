"""Our verdicts beside those of other libraries: ours are the judge's, and each difference has a proven cause."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any, NamedTuple

import pytest
import schemas
from checks import accepts, is_approximated
from peer_disagreements import EXAMPLES, Peer, cause_names, spelt

from specdec.evals.schema_engine import RefusedSchemaError, SchemaEngine
from specdec.evals.schema_peers import MissingPeerError, PeerName, load_peer
from specdec.grammars import GrammarCompiler, InvalidSchemaError, UnsatisfiableSchemaError, Vocabulary
from specdec.grammars.judge import Judge


class Extent(NamedTuple):
    num_seeds: int
    min_compiled: int
    """Schemas that the library has to take, nine tenths of what it took when this was written, and so below."""
    min_accepted: int
    """Texts that it has to accept."""
    min_disagreements: int


# outlines-core takes seconds, and gigabytes, for some schemas.
_EXTENTS: dict[PeerName, Extent] = {
    "llguidance": Extent(num_seeds=1200, min_compiled=740, min_accepted=1800, min_disagreements=20),
    "xgrammar": Extent(num_seeds=1200, min_compiled=920, min_accepted=1700, min_disagreements=900),
    "outlines-core": Extent(num_seeds=200, min_compiled=122, min_accepted=134, min_disagreements=100),
}


def _engine(peer: PeerName) -> SchemaEngine:
    try:
        return load_peer(peer)
    except MissingPeerError as error:
        pytest.skip(str(error))


@pytest.mark.peers
@pytest.mark.parametrize("peer", ["llguidance", "xgrammar", "outlines-core"])
def test_our_verdicts_are_the_judges_and_a_peer_that_differs_has_a_proven_cause(peer: PeerName) -> None:
    engine, extent = _engine(peer), _EXTENTS[peer]
    compiler = GrammarCompiler(Vocabulary([*(bytes([byte]) for byte in range(256)), None], [256]))
    count: Counter[str] = Counter()
    causes: Counter[tuple[str, ...]] = Counter()
    unexplained: list[tuple[object, ...]] = []
    unusable: list[tuple[int, str]] = []
    for seed in range(extent.num_seeds):
        rng = random.Random(seed)
        schema = schemas.random_schema(rng)
        try:
            grammar = compiler.compile_json_schema(schema)
        except UnsatisfiableSchemaError:
            grammar = None
        except InvalidSchemaError as error:
            unusable += [] if "back" in str(error) else [(seed, str(error))]
            count["leads back to itself"] += 1
            continue
        judge = Judge(schema)
        try:
            theirs = Peer(peer, engine, schema)
        except RefusedSchemaError:
            theirs = None
            count["refused by the peer"] += 1
        count["compiled"] += theirs is not None
        for _ in range(10):
            value = schemas.random_value(rng, 2)
            text = spelt(value)
            is_valid = judge.violation(text.decode()) is None
            is_ours = grammar is not None and any(accepts(grammar, one) for one in schemas.renderings(value))
            assert is_ours == is_valid or (is_valid and is_approximated(schema, value)), (schema, text, is_valid)
            if theirs is None:
                continue
            is_taken = theirs.accepts(text)
            count["compared"] += 1
            count["accepted"] += is_taken
            if is_taken == is_valid:
                continue
            happens = "valid refused" if is_valid else "invalid accepted"
            count[happens] += 1
            explanation = theirs.explanation(value, text, is_valid=is_valid)
            if explanation is None:
                unexplained.append((seed, happens, text.decode(), schema))
            else:
                causes[explanation] += 1
    print(peer, dict(count), *(f"{number} {' + '.join(names)}" for names, number in causes.most_common()), sep="\n")
    assert not unexplained
    assert not unusable, "no schema is invalid but those that lead back to themselves"
    assert count["compiled"] >= extent.min_compiled
    assert count["compared"] == 10 * count["compiled"]
    assert count["accepted"] >= extent.min_accepted
    assert count["valid refused"] + count["invalid accepted"] == causes.total() >= extent.min_disagreements


@pytest.mark.peers
@pytest.mark.parametrize(("peer", "cause", "schema", "value"), EXAMPLES)
def test_each_cause_alone_explains_its_example(peer: PeerName, cause: str, schema: Any, value: Any) -> None:
    theirs, text = Peer(peer, _engine(peer), schema), spelt(value)
    is_valid = Judge(schema).violation(text.decode()) is None
    assert theirs.accepts(text) != is_valid
    assert theirs.explanation(value, text, is_valid=is_valid) == (cause,)


def test_every_cause_of_every_peer_has_an_example() -> None:
    assert sorted((peer, cause) for peer, cause, *_ in EXAMPLES) == sorted(
        (peer, cause) for peer in _EXTENTS for cause in cause_names(peer)
    )
