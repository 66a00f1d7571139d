"""What the two processes say to each other arrives as it was said, down to the last field."""

from __future__ import annotations

import inspect
import math
from typing import Any

import msgspec
import msgspec.inspect
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specdec import errors
from specdec.config import EngineConfig
from specdec.engine_messages import (
    Abort,
    Dispatch,
    EngineFaultError,
    Load,
    LoadFailed,
    Progress,
    Ready,
    Stop,
    Submit,
    decode_from_engine,
    decode_to_engine,
    encode,
    pack_failure,
    unpack_failure,
)
from specdec.grammars import JsonSchema, Limits, SchemaOptions
from specdec.request import (
    CompletionOutput,
    FinishReason,
    Request,
    RequestOutput,
    SamplingParams,
    SpeculationStats,
    TokenDelta,
    TokenLogprob,
)
from specdec.speculative import PROPOSERS, SpeculativeConfig, SpeculativeParams, Verification

BIG_INTEGERS = st.integers(-(2**200), 2**200)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | BIG_INTEGERS | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
SAMPLING_PARAMS = st.builds(
    SamplingParams,
    temperature=st.floats(0, 100), top_p=st.floats(0.01, 1), top_k=st.integers(0, 2**31 - 1), min_p=st.floats(0, 1),
    frequency_penalty=st.floats(-2, 2), presence_penalty=st.floats(-2, 2), repetition_penalty=st.floats(0.1, 100),
    logit_bias=st.dictionaries(BIG_INTEGERS, st.floats(-100, 100), max_size=3),
    seed=st.none() | st.integers(-(2**63), 2**63 - 1), n=st.integers(1, 128),
    max_tokens=st.none() | st.integers(2**31, 2**200), min_tokens=st.integers(0, 2**31 - 1),
    stop=st.lists(st.text(min_size=1), max_size=3).map(tuple),
    stop_token_ids=st.lists(BIG_INTEGERS, max_size=3).map(tuple),
    ignore_eos=st.booleans(), logprobs=st.none() | st.integers(0, 20),
)  # fmt: skip
SPECULATIVE_PARAMS = st.builds(
    SpeculativeParams,
    enabled=st.none() | st.booleans(), method=st.none() | st.sampled_from(PROPOSERS),
    num_speculative_tokens=st.none() | st.integers(0, 64), verification=st.none() | st.sampled_from(Verification),
    mask_drafts=st.none() | st.booleans(),
)  # fmt: skip
OPTIONS = st.builds(
    SchemaOptions,
    documents=st.dictionaries(st.text(), JSON_VALUES, max_size=2),
    whitespace=st.sampled_from(["compact", "pretty", "flexible"]),
    max_whitespace=st.integers(1, 1000),
)
OF_STRUCT: dict[type, st.SearchStrategy[Any]] = {
    SamplingParams: SAMPLING_PARAMS,
    SpeculativeParams: SPECULATIVE_PARAMS,
    SchemaOptions: OPTIONS,
}


def values_of(type_: msgspec.inspect.Type) -> st.SearchStrategy[Any]:
    """Any value that a field of this type may have."""
    match type_:
        case msgspec.inspect.StructType(cls=cls, fields=fields):
            if cls not in OF_STRUCT:
                # Put there first: a struct may hold others of its kind.
                OF_STRUCT[cls] = st.deferred(
                    lambda: st.builds(cls, **{field.name: values_of(field.type) for field in fields})
                )
            return OF_STRUCT[cls]
        case msgspec.inspect.UnionType(types=types):
            return st.one_of(map(values_of, types))
        case msgspec.inspect.VarTupleType(item_type=item):
            return st.lists(values_of(item), max_size=2).map(tuple)
        case msgspec.inspect.TupleType(item_types=items):
            return st.tuples(*map(values_of, items))
        case msgspec.inspect.DictType(key_type=key, value_type=value):
            return st.dictionaries(values_of(key), values_of(value), max_size=2)
        case msgspec.inspect.EnumType(cls=cls):
            return st.sampled_from(cls)
        case msgspec.inspect.IntType():
            return st.integers(-(2**63), 2**63 - 1)
        case msgspec.inspect.FloatType():
            return st.floats(allow_nan=False)
        case msgspec.inspect.StrType():
            return st.text(max_size=20)
        case msgspec.inspect.BytesType():
            return st.binary(max_size=20)
        case msgspec.inspect.BoolType():
            return st.booleans()
        case msgspec.inspect.NoneType():
            return st.none()
        case msgspec.inspect.LiteralType(values=values):
            return st.sampled_from(values)
    raise TypeError(f"no values of {type_}")


def struct(cls: type) -> st.SearchStrategy[Any]:
    return values_of(msgspec.inspect.type_info(cls))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**62), st.lists(struct(Request), max_size=3))
def test_requests_arrive_whole_whatever_their_constraints_and_however_large_their_numbers(
    submission: int, requests: list[Request]
) -> None:
    arrived = decode_to_engine(encode(Submit.of(submission, requests)))
    assert isinstance(arrived, Submit)
    assert arrived.submission == submission
    assert arrived.decoded() == requests


@settings(max_examples=150, deadline=None)
@given(struct(Dispatch))
def test_deltas_and_snapshots_arrive_whole(dispatch: Dispatch) -> None:
    assert decode_from_engine(encode(dispatch)) == dispatch


@settings(deadline=None)
@given(struct(Ready) | struct(Progress) | struct(LoadFailed))
def test_what_is_said_while_loading_arrives_whole(message: Ready | Progress | LoadFailed) -> None:
    assert decode_from_engine(encode(message)) == message


@pytest.mark.parametrize("message", [Abort(7), Stop()])
def test_commands_arrive_whole(message: Abort | Stop) -> None:
    assert decode_to_engine(encode(message)) == message


@pytest.mark.parametrize(
    "config",
    [
        EngineConfig(),
        EngineConfig(speculative=None, num_kv_blocks=7, kv_cache_memory=2**40, exact=True),
        EngineConfig(
            model="some/model", dtype="float32", device="cpu", max_model_len=100, max_num_seqs=3, check_outputs=True,
            max_num_batched_tokens=50, gpu_memory_utilization=0.123456789, seed=-5, num_compile_workers=0,
            speculative=SpeculativeConfig(method="synthetic", synthetic_acceptance_rates=(0.7, 0.3)),
            grammar_limits=Limits(max_depth=3, max_compile_seconds=0.1),
        ),
    ],
)  # fmt: skip
def test_a_configuration_arrives_whole(config: EngineConfig) -> None:
    arrived = decode_to_engine(encode(Load.of(config)))
    assert isinstance(arrived, Load)
    assert arrived.config() == config


def test_a_configuration_beyond_64_bits_is_refused_by_its_flag() -> None:
    with pytest.raises(errors.ConfigError) as refused:
        Load.of(EngineConfig(kv_cache_memory=2**70))
    assert refused.value.flag == "--kv-cache-memory"


def classes_below(kind: type[errors.SpecdecError]) -> list[type[errors.SpecdecError]]:
    return [kind, *(deeper for child in kind.__subclasses__() for deeper in classes_below(child))]


TEXTS = st.none() | st.text()
ATTRIBUTES = {
    "param": TEXTS, "code": st.text(), "flag": TEXTS, "keyword": TEXTS, "pointer": st.text(),
    "minimum_tokens": st.none() | BIG_INTEGERS, "outputs": st.lists(struct(RequestOutput), max_size=1).map(tuple),
}  # fmt: skip


@pytest.mark.parametrize("kind", classes_below(errors.SpecdecError), ids=lambda kind: kind.__name__)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_every_error_arrives_as_itself(kind: type[errors.SpecdecError], data: st.DataObject) -> None:
    # Every class names the parameters of its __init__ as the attributes that they become.
    own_init = inspect.isfunction(kind.__init__)
    parameters = inspect.signature(kind.__init__).parameters if own_init else {}
    attributes = {name: data.draw(values) for name, values in ATTRIBUTES.items() if name in parameters}
    error = kind(data.draw(st.text()), **attributes)
    arrived = unpack_failure(pack_failure(error))
    assert type(arrived) is kind
    assert str(arrived) == str(error)
    assert vars(arrived) == vars(error)


def test_an_impossible_token_of_a_failed_answer_keeps_its_log_probability() -> None:
    entry = TokenLogprob(token_id=1, token="a", token_bytes=b"a", logprob=-math.inf)
    choice = CompletionOutput(
        index=0, text="a", token_ids=(1,), finish_reason=FinishReason.ERROR, stop_reason=None, logprobs=(entry,),
        seed=1, speculation=SpeculationStats(), error="x",
    )  # fmt: skip
    output = RequestOutput(request_id="r", prompt_token_ids=(1,), num_cached_tokens=0, choices=(choice,))
    arrived = unpack_failure(pack_failure(errors.GenerationError("x", (output,))))
    assert isinstance(arrived, errors.GenerationError)
    assert arrived.outputs == (output,)


@pytest.mark.parametrize("fault", [KeyError("secret path /etc/x"), RuntimeError("0xdeadbeef"), MemoryError()])
def test_a_fault_that_nobody_meant_arrives_without_what_it_says(fault: Exception) -> None:
    arrived = unpack_failure(pack_failure(fault))
    assert type(arrived) is EngineFaultError
    assert "secret" not in str(arrived)
    assert "0xdeadbeef" not in str(arrived)


def test_text_without_a_utf8_form_is_refused_in_a_request_and_escaped_in_an_error() -> None:
    request = Request(request_id="a", prompt_token_ids=(1,), constraint=JsonSchema(schema='{"const":"\ud800"}'))
    with pytest.raises(errors.RequestError, match="lone surrogate"):
        Submit.of(0, [request])
    arrived = unpack_failure(pack_failure(errors.SchemaError("at \udfff", pointer="/properties/\ud800")))
    assert isinstance(arrived, errors.SchemaError)
    assert str(arrived) == "at \\udfff"
    assert arrived.pointer == "/properties/\\ud800"


def test_documents_nested_too_deeply_are_refused_on_either_side() -> None:
    def nested(depth: int) -> object:
        value: object = 1
        for _ in range(depth):
            value = [value]
        return value

    deep = JsonSchema(schema="{}", options=SchemaOptions(documents={"x": nested(100_000)}))
    with pytest.raises(errors.RequestError, match="too deeply"):
        Submit.of(0, [Request(request_id="a", prompt_token_ids=(1,), constraint=deep)])
    shallow = JsonSchema(schema="{}", options=SchemaOptions(documents={"x": nested(10)}))
    submit = Submit.of(0, [Request(request_id="a", prompt_token_ids=(1,), constraint=shallow)])
    text = submit.requests.replace(b"[" * 9, b"[" * 100_000).replace(b"]" * 9, b"]" * 100_000)
    with pytest.raises(errors.RequestError, match="too deeply"):
        Submit(0, text).decoded()


def test_a_message_of_another_kind_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError):
        decode_to_engine(encode(Dispatch()))
    with pytest.raises(msgspec.ValidationError):
        decode_from_engine(encode(Dispatch(deltas=((1, TokenDelta(request_id=7, choice_index=0)),))))


@pytest.mark.parametrize("fields", [{"max_tokens": 5.5}, {"temperature": True}, {"stop_token_ids": ("a",)}], ids=str)
def test_values_of_other_types_than_the_fields_are_the_requests_own_fault(fields: dict[str, Any]) -> None:
    request = Request(request_id="a", prompt_token_ids=(1,), sampling_params=SamplingParams(**fields))
    with pytest.raises(errors.RequestError):
        Submit.of(0, [request]).decoded()
