"""What a user says about speculation, and what an engine's and a request's words come to together."""

import re

import msgspec
import pytest

from specdec.errors import ConfigError, RequestError
from specdec.speculative import (
    ADAPTIVE_DRAFT_TOKENS,
    PLAIN,
    SpeculationPlan,
    SpeculativeConfig,
    SpeculativeParams,
    Verification,
    resolve_plan,
)

MODEL_FREE = frozenset({"grammar", "prediction", "suffix", "ngram"})
FORCED = SpeculativeConfig(method="grammar")
CHAIN = SpeculativeConfig()
WITH_MODEL = SpeculativeConfig(model="small", num_speculative_tokens=3, verification=Verification.BLOCK)


@pytest.mark.parametrize(
    ("config", "methods"),
    [
        (CHAIN, MODEL_FREE),
        (WITH_MODEL, MODEL_FREE | {"draft_model"}),
        (SpeculativeConfig(method="none"), frozenset()),
        (SpeculativeConfig(method="ngram"), {"ngram"}),
        (SpeculativeConfig(method="suffix+grammar"), {"suffix", "grammar"}),
        (SpeculativeConfig(method="draft_model", model="small"), {"draft_model"}),
        (SpeculativeConfig(method="synthetic", synthetic_acceptance_rates=(0.9, 0.5)), {"synthetic"}),
    ],
)
def test_a_method_names_proposers(config, methods):
    assert config.methods == methods


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "eagle"}, "speculative method 'eagle' is unknown; it is chain, none, one of grammar, prediction,"),
        ({"method": "ngram+"}, "speculative method '' is unknown"),
        ({"method": "draft_model"}, "method draft_model needs `model`"),
        ({"method": "ngram", "model": "small"}, "method ngram takes no `model`"),
        ({"num_speculative_tokens": 0}, "num_speculative_tokens is 0; it must be between 1 and 64"),
        ({"num_speculative_tokens": 65}, "num_speculative_tokens is 65"),
        ({"prompt_lookup_min": 3, "prompt_lookup_max": 2}, "they must satisfy 1 <= min <= max <= 64"),
        ({"suffix_decoding_max_tree_depth": 1}, "suffix_decoding_max_tree_depth is 1; it must be between 2 and 256"),
        ({"suffix_decoding_min_token_prob": 1.5}, "suffix_decoding_min_token_prob is 1.5"),
        ({"method": "synthetic"}, "method synthetic and synthetic_acceptance_rates go together"),
        ({"synthetic_acceptance_rates": [0.5]}, "method synthetic and synthetic_acceptance_rates go together"),
        ({"method": "synthetic", "synthetic_acceptance_rates": [0.5, 0.6]}, "none above the one before it"),
        ({"rejection_sample_method": "block", "verification": "rejection"}, "say the same; keep one of them"),
    ],
)
def test_a_configuration_that_cannot_work_says_why(given, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        msgspec.convert(given, SpeculativeConfig)


def test_vllms_name_of_a_verification_is_understood():
    assert SpeculativeConfig(rejection_sample_method="standard").plan.verification is Verification.REJECTION
    assert SpeculativeConfig(rejection_sample_method="block").plan.verification is Verification.BLOCK


@pytest.mark.parametrize(
    ("config", "params", "has_prediction", "plan"),
    [
        (None, None, False, PLAIN),
        (FORCED, None, False, SpeculationPlan(frozenset({"grammar"}))),
        (FORCED, None, True, SpeculationPlan(frozenset({"grammar", "prediction"}))),
        (None, None, True, SpeculationPlan(frozenset({"prediction"}))),
        (None, SpeculativeParams(enabled=True), False, SpeculationPlan(MODEL_FREE)),
        (FORCED, SpeculativeParams(enabled=True), False, SpeculationPlan(frozenset({"grammar"}))),
        (FORCED, SpeculativeParams(method="chain"), False, SpeculationPlan(MODEL_FREE)),
        (CHAIN, SpeculativeParams(enabled=False), True, PLAIN),
        (CHAIN, SpeculativeParams(num_speculative_tokens=0), True, PLAIN),
        (CHAIN, SpeculativeParams(method="none"), False, PLAIN),
        (CHAIN, SpeculativeParams(num_speculative_tokens=5), False, SpeculationPlan(MODEL_FREE, 5)),
        (
            WITH_MODEL,
            SpeculativeParams(method="ngram", verification=Verification.COUPLED),
            False,
            SpeculationPlan(frozenset({"ngram"}), 3),
        ),
        (WITH_MODEL, None, False, SpeculationPlan(MODEL_FREE | {"draft_model"}, 3, Verification.BLOCK)),
    ],
)
def test_a_request_has_the_last_word(config, params, has_prediction, plan):
    assert resolve_plan(config, params, has_prediction=has_prediction) == plan


def test_a_request_cannot_ask_for_a_proposer_that_the_engine_lacks():
    with pytest.raises(RequestError, match="this engine has no draft model") as refused:
        resolve_plan(CHAIN, SpeculativeParams(method="draft_model"), has_prediction=False)
    assert refused.value.param == "speculative.method"
    with pytest.raises(RequestError, match="was not given synthetic_acceptance_rates"):
        resolve_plan(CHAIN, SpeculativeParams(method="synthetic"), has_prediction=False)


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"num_speculative_tokens": -1}, "speculative.num_speculative_tokens"),
        ({"num_speculative_tokens": 65}, "speculative.num_speculative_tokens"),
        ({"method": "eagle"}, "speculative.method"),
    ],
)
def test_a_requests_faulty_wish_names_its_field(given, param):
    with pytest.raises(RequestError) as refused:
        SpeculativeParams(**given)
    assert refused.value.param == param


def test_the_longest_draft_is_what_is_fixed_or_what_may_pay():
    assert PLAIN.max_tokens == 0
    assert SpeculationPlan(frozenset(), 5).max_tokens == 0
    assert SpeculationPlan(MODEL_FREE, 5).max_tokens == 5
    assert SpeculationPlan(MODEL_FREE).max_tokens == ADAPTIVE_DRAFT_TOKENS
