"""Our verdicts beside those of other libraries: where they differ the judge is with us, and the cause is known."""

from __future__ import annotations

import json
import random

import pytest
import schemas
from checks import accepts, is_approximated
from peer_disagreements import cause_of

from specdec.evals.schema_engine import CompileOptions, RefusedSchemaError
from specdec.evals.schema_peers import MissingPeerError, PeerName, load_peer
from specdec.grammars import GrammarCompiler, GrammarError, Vocabulary
from specdec.grammars.judge import Judge, UnjudgeableError

_OPTIONS = CompileOptions(format="assert", unknown_format="annotation")


@pytest.mark.peers
@pytest.mark.parametrize("peer", ["llguidance", "xgrammar", "outlines-core"])
def test_where_we_differ_from_a_peer_the_judge_is_with_us_and_the_cause_is_known(peer: PeerName) -> None:
    try:
        engine = load_peer(peer)
    except MissingPeerError as error:
        pytest.skip(str(error))
    compiler = GrammarCompiler(Vocabulary([*(bytes([byte]) for byte in range(256)), None], [256]))
    num_compared = 0
    for seed in range(200):
        rng = random.Random(seed)
        schema = schemas.random_schema(rng)
        try:
            grammar, judge = compiler.compile_json_schema(schema), Judge(schema)
            theirs = engine.compile(json.dumps(schema), _OPTIONS)
            judge.violation("null")
        except (GrammarError, UnjudgeableError, RefusedSchemaError):
            continue
        for _ in range(10):
            value = schemas.random_value(rng, 2)
            text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
            is_valid, is_taken = judge.violation(text) is None, theirs.refusal(text.encode()) is None
            if not is_valid:
                assert not accepts(grammar, text.encode()), (schema, text)
            if is_taken == is_valid:
                continue
            num_compared += 1
            if is_valid and not is_approximated(schema, value):
                assert any(accepts(grammar, one) for one in schemas.renderings(value)), (schema, text)
            happens = "valid refused" if is_valid else "invalid accepted"
            assert cause_of(peer, happens, schema, text) is not None, (happens, schema, text)
    assert num_compared > 0, "no disagreement at all says that the peer was not asked"
