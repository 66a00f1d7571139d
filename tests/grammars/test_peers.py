"""Our verdicts beside those of other libraries: ours are the judge's, and each difference has a cause that is proven."""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import NamedTuple

import pytest
import schemas
from checks import accepts, is_approximated
from peer_disagreements import Peer

from specdec.evals.schema_engine import RefusedSchemaError
from specdec.evals.schema_peers import MissingPeerError, PeerName, load_peer
from specdec.grammars import GrammarCompiler, InvalidSchemaError, UnsatisfiableSchemaError, Vocabulary
from specdec.grammars.judge import Judge

import os
_NUM_SCHEMAS = int(os.environ.get("NS","200"))


class Floor(NamedTuple):
    num_schemas: int
    num_compared: int
    num_accepted: int
    """Texts that the library accepts."""


_FLOORS: dict[PeerName, Floor] = {
    "llguidance": Floor(num_schemas=120, num_compared=1200, num_accepted=250),
    "xgrammar": Floor(num_schemas=115, num_compared=1150, num_accepted=250),
    "outlines-core": Floor(num_schemas=90, num_compared=900, num_accepted=150),
}


@pytest.mark.peers
@pytest.mark.parametrize("peer", ["llguidance", "xgrammar", "outlines-core"])
def test_our_verdicts_are_the_judges_and_a_peer_that_differs_has_a_proven_cause(peer: PeerName) -> None:
    try:
        engine = load_peer(peer)
    except MissingPeerError as error:
        pytest.skip(str(error))
    compiler = GrammarCompiler(Vocabulary([*(bytes([byte]) for byte in range(256)), None], [256]))
    count: Counter[str] = Counter()
    causes: Counter[tuple[str, ...]] = Counter()
    unexplained = []
    for seed in range(_NUM_SCHEMAS):
        rng = random.Random(seed)
        schema = schemas.random_schema(rng)
        try:
            grammar = compiler.compile_json_schema(schema)
        except UnsatisfiableSchemaError:
            grammar = None
        except InvalidSchemaError as error:
            assert "back" in str(error), "only a schema that leads back to itself is invalid here"
            count["schemas that lead back to themselves"] += 1
            continue
        judge = Judge(schema)
        try:
            theirs = Peer(peer, engine, schema)
        except RefusedSchemaError:
            theirs = None
            count["schemas refused by the peer"] += 1
        count["schemas"] += theirs is not None
        for _ in range(10):
            value = schemas.random_value(rng, 2)
            text = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
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
    floor = _FLOORS[peer]
    assert count["schemas"] >= floor.num_schemas
    assert count["compared"] >= floor.num_compared
    assert count["accepted"] >= floor.num_accepted
