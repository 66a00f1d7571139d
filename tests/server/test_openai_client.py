"""The openai client in strict mode, which raises on any deviation from OpenAI's types."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import openai
import pydantic
import pytest
from jsonschema import Draft202012Validator
from live_server import LiveServer, wait_until

MESSAGES = [{"role": "user", "content": "Tell me about a person."}]


class Mood(enum.StrEnum):
    GLAD = "glad"
    SAD = "sad"


class Person(pydantic.BaseModel):
    name: str
    age: int
    moods: list[Mood]
    is_member: bool


SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}, "year": {"type": "integer"}, "tags": {
        "type": "array", "items": {"type": "boolean"}, "maxItems": 3,
    }},
    "required": ["city", "tags"],
    "additionalProperties": False,
}  # fmt: skip


@pytest.fixture
def strict(live: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=live.url + "/v1", api_key="none", _strict_response_validation=True, max_retries=0, timeout=60
    ) as client:
        yield client


def test_create(strict: openai.OpenAI) -> None:
    completion = strict.chat.completions.create(
        model="tiny", messages=MESSAGES, max_completion_tokens=10, n=2, logprobs=True, top_logprobs=2, seed=1
    )
    assert [choice.index for choice in completion.choices] == [0, 1]
    assert completion.usage is not None
    assert completion.model_extra == {"specdec": {"seed": 1}}


def test_create_with_stream(strict: openai.OpenAI) -> None:
    chunks = list(
        strict.chat.completions.create(
            model="tiny", messages=MESSAGES, max_tokens=10, stream=True, logprobs=True,
            stream_options={"include_usage": True},
        )
    )  # fmt: skip
    assert chunks[-1].usage is not None
    assert chunks[-2].choices[0].finish_reason is not None


def test_stream_helper(strict: openai.OpenAI) -> None:
    with strict.chat.completions.stream(model="tiny", messages=MESSAGES, max_tokens=10, seed=2) as stream:
        text = "".join(event.delta for event in stream if event.type == "content.delta")
        assert text == stream.current_completion_snapshot.choices[0].message.content


def test_completions(strict: openai.OpenAI) -> None:
    completion = strict.completions.create(model="tiny", prompt=["a", "b"], max_tokens=5, logprobs=2, n=2)
    assert len(completion.choices) == 4


def test_streamed_completions(live: LiveServer) -> None:
    """Not strict: its type has no null finish_reason, which OpenAI's own chunks have until the last."""
    with openai.OpenAI(base_url=live.url + "/v1", api_key="none", max_retries=0, timeout=60) as client:
        chunks = list(client.completions.create(model="tiny", prompt="a", max_tokens=5, stream=True))
    assert chunks[-1].choices[0].finish_reason in {"stop", "length"}


def test_models(strict: openai.OpenAI) -> None:
    assert [model.id for model in strict.models.list()] == ["tiny"]
    assert strict.models.retrieve("tiny").owned_by == "specdec"


def test_parse_gives_an_instance_of_the_model(strict: openai.OpenAI) -> None:
    for seed in range(20):
        try:
            completion = strict.chat.completions.parse(
                model="tiny", messages=MESSAGES, response_format=Person, max_tokens=400, seed=seed
            )
        except openai.LengthFinishReasonError:
            continue
        assert isinstance(completion.choices[0].message.parsed, Person)
        return
    pytest.fail("no answer ended within its tokens")


def test_stream_with_a_schema_ends_in_an_instance(strict: openai.OpenAI) -> None:
    for seed in range(20):
        with strict.chat.completions.stream(
            model="tiny", messages=MESSAGES, response_format=Person, max_tokens=400, seed=seed
        ) as stream:
            try:
                message = stream.get_final_completion().choices[0].message
            except openai.LengthFinishReasonError:
                continue
        assert isinstance(message.parsed, Person)
        return
    pytest.fail("no answer ended within its tokens")


@pytest.mark.parametrize("strictness", [{"strict": True}, {"strict": False}, {}])
def test_a_schema_is_enforced_whatever_strict_says(strict: openai.OpenAI, strictness: dict) -> None:
    response_format = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, **strictness}}
    num_finished = 0
    for seed in range(8):
        choice = strict.chat.completions.create(
            model="tiny", messages=MESSAGES, response_format=response_format, max_tokens=120, temperature=1.2, seed=seed
        ).choices[0]
        if choice.finish_reason == "stop":
            num_finished += 1
            Draft202012Validator(SCHEMA).validate(pydantic.TypeAdapter(dict).validate_json(choice.message.content))
    assert num_finished


@pytest.mark.parametrize(
    "response_format", [{"type": "json_object"}, {"type": "json_object", "schema": SCHEMA}], ids=["any", "llama.cpp"]
)
def test_json_object_gives_an_object(strict: openai.OpenAI, response_format: dict) -> None:
    finished = []
    for seed in range(6):
        choice = strict.chat.completions.create(
            model="tiny", messages=MESSAGES, response_format=response_format, max_tokens=300, seed=seed
        ).choices[0]
        if choice.finish_reason == "stop":
            finished.append(pydantic.TypeAdapter(dict).validate_json(choice.message.content))
    assert finished
    if "schema" in response_format:
        for answer in finished:
            Draft202012Validator(SCHEMA).validate(answer)


def test_errors_are_the_clients_own_exceptions(strict: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        strict.chat.completions.create(model="other", messages=MESSAGES)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        strict.chat.completions.create(model="tiny", messages=MESSAGES, n=99)
    assert bad.value.param == "n"
    with pytest.raises(openai.BadRequestError) as long:
        strict.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=10**6)
    assert long.value.code == "context_length_exceeded"


def test_closing_a_stream_early_frees_its_blocks(live: LiveServer, strict: openai.OpenAI) -> None:
    stream = strict.chat.completions.create(
        model="tiny", messages=MESSAGES, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    wait_until(lambda: live.num_blocks_in_use() == 0, "the blocks to be freed")


def test_many_clients_at_once_get_what_each_gets_alone(strict: openai.OpenAI) -> None:
    def ask(seed: int) -> str | None:
        return strict.chat.completions.create(
            model="tiny", messages=MESSAGES, max_tokens=20, seed=seed, temperature=0.5
        ).choices[0].message.content  # fmt: skip

    alone = [ask(seed) for seed in range(4)]
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(ask, [seed % 4 for seed in range(32)])) == alone * 8
