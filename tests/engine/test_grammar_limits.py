"""The compiler's limits are the engine's to set."""

import pytest

from specdec import Engine, EngineConfig, JsonSchema, Request, SamplingParams, SchemaError
from specdec.grammars import Limits

_NESTED = '{"items":{"items":{"items":{"type":"null"}}}}'


def _add(engine):
    engine.add_request(
        Request(
            request_id="r",
            prompt_token_ids=(5, 6),
            sampling_params=SamplingParams(max_tokens=60),
            constraint=JsonSchema(schema=_NESTED),
        )
    )


def test_a_limit_of_the_configuration_binds_and_is_named(tiny_model_folder):
    options = {"model": str(tiny_model_folder), "max_model_len": 64, "num_kv_blocks": 10, "num_compile_workers": 0}
    _add(Engine(EngineConfig(**options)))
    with pytest.raises(SchemaError, match="max_depth"):
        _add(Engine(EngineConfig(**options, grammar_limits=Limits(max_depth=2))))
