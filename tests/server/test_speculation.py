"""A request says how it is speculated on; its answer is the same, and says what that came to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from live_server import LiveServer, chat_body, serving
from speculation_requests import (
    CHAT,
    COMPLETIONS,
    RESPONSE_FORMAT,
    body,
    drafting,
    num_traced,
    streamed,
    texts,
    whole,
)

from specdec import Engine, Request, SamplingParams, TokenDelta
from specdec.delta_stream import MAX_WAITING_DELTAS, DeltaStream
from specdec.request import DraftTrace, FinishReason
from specdec.sequence import SpeculationCounts
from specdec.server import ServerConfig
from specdec.server.answer import Answer
from specdec.server.usage import speculative_decoding
from specdec.speculative import PROPOSERS


@pytest.fixture
def client(exact: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=exact.url, timeout=60.0) as client:
        yield client


# speculative


@pytest.fixture(scope="module")
def plain_texts(exact: LiveServer) -> Callable[..., list[str]]:
    """What is answered without speculation, asked for once."""
    made: dict[str, list[str]] = {}

    def get(**fields: object) -> list[str]:
        key = json.dumps(fields)
        if key not in made:
            with httpx.Client(base_url=exact.url, timeout=60.0) as client:
                plain = whole(client, **fields, speculative={"enabled": False})
            assert drafting(plain) is None
            made[key] = texts(plain)
        return made[key]

    return get


@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize(
    "speculative",
    [
        None,
        {},
        {"enabled": True},
        {"method": "chain"},
        {"method": "grammar+ngram", "num_speculative_tokens": 5},
        {"method": "suffix", "num_speculative_tokens": 1, "verification": "coupled"},
        {"method": "draft_model", "num_speculative_tokens": 64},
    ],
)
@pytest.mark.parametrize("constrained", [False, True])
def test_however_a_request_is_speculated_on_its_answer_is_the_same(
    client: httpx.Client,
    plain_texts: Callable[..., list[str]],
    speculative: dict | None,
    temperature: float,
    *,
    constrained: bool,
) -> None:
    fields = {"temperature": temperature, **({"response_format": RESPONSE_FORMAT} if constrained else {})}
    assert texts(whole(client, **fields, speculative=speculative)) == plain_texts(**fields)


@pytest.mark.parametrize(
    "off",
    [{"enabled": False}, {"num_speculative_tokens": 0}, {"method": "none"}, {"enabled": False, "method": "chain"}],
)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_a_request_turns_speculation_off(client: httpx.Client, path: str, off: dict) -> None:
    prompt = {} if path == CHAT else {"prompt": "one two three one two three"}
    answer = whole(client, path, **prompt, speculative=off, specdec_trace=True)
    assert drafting(answer) is None
    (trace,) = answer["specdec"]["trace"]
    assert all(draft["token_ids"] == [] for draft in trace["drafts"])
    assert len(trace["drafts"]) == answer["usage"]["completion_tokens"]


@pytest.mark.parametrize("verification", ["coupled", "rejection", "block"])
def test_every_verification_answers_within_the_constraint(client: httpx.Client, verification: str) -> None:
    for seed in range(5):
        speculative = {"method": "grammar+draft_model", "num_speculative_tokens": 4, "verification": verification}
        answer = whole(client, response_format=RESPONSE_FORMAT, seed=seed, speculative=speculative)
        assert json.loads(texts(answer)[0]).keys() == {"name", "is_far"}
        assert drafting(answer)["by_proposer"].keys() <= {"grammar", "draft_model"}
        assert drafting(answer)["num_draft_tokens"] > 0


@pytest.mark.parametrize(("num_tokens", "longest"), [(1, 1), (7, 7), (None, 32)])
def test_the_metrics_of_a_request_are_of_its_own_plan(
    client: httpx.Client, num_tokens: int | None, longest: int
) -> None:
    fields = {"speculative": {"method": "draft_model", "num_speculative_tokens": num_tokens}, "specdec_trace": True}
    answer = whole(client, **fields, ignore_eos=True)
    metrics = drafting(answer)
    assert metrics["num_spec_tokens"] == longest
    assert len(metrics["acceptance_histogram"]) == longest + 1
    assert sum(metrics["acceptance_histogram"]) == metrics["num_spec_steps"]
    accepted, drafted = num_traced(answer, "draft_model")
    assert sum(i * count for i, count in enumerate(metrics["acceptance_histogram"])) == accepted
    assert (metrics["num_accepted_draft_tokens"], metrics["num_draft_tokens"]) == (accepted, drafted)
    if drafted:
        counts = metrics["by_proposer"]["draft_model"]
        assert counts.pop("num_drafts") == metrics["num_spec_steps"]
        assert counts["num_accepted_tokens"] == accepted
        assert sum(counts.values()) == 2 * counts["num_draft_tokens"] == 2 * drafted


def test_an_engine_that_drafts_nothing_drafts_for_a_request_that_asks(make_engine: Callable[..., Engine]) -> None:
    config = ServerConfig(served_model_names=("tiny",), per_request_spec_decode_metrics="summary")
    with serving(make_engine(speculative=None), config) as server, httpx.Client(base_url=server.url) as client:
        fields = {"messages": [{"role": "user", "content": "one two three " * 30}], "max_tokens": 200, "temperature": 0}
        assert drafting(whole(client, **fields)) is None
        asked = whole(client, **fields, speculative={"enabled": True, "num_speculative_tokens": 4})
        assert drafting(asked)["num_draft_tokens"] > 0
        refused = client.post(CHAT, json=chat_body(speculative={"method": "synthetic"}))
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "speculative.method")


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_detailed_metrics_say_what_each_pass_drafted_and_accepted(
    make_engine: Callable[..., Engine], path: str
) -> None:
    config = ServerConfig(served_model_names=("tiny",), per_request_spec_decode_metrics="detailed")
    with serving(make_engine(), config) as server, httpx.Client(base_url=server.url, timeout=60.0) as client:
        fields = {"temperature": 0, "max_tokens": 200, "ignore_eos": True}
        fields |= {"speculative": {"method": "ngram", "num_speculative_tokens": 4}}
        fields |= {} if path == CHAT else {"prompt": "one two three " * 20}
        traced = whole(client, path, **fields, specdec_trace=True)
        drafts = [draft for draft in traced["specdec"]["trace"][0]["drafts"] if draft["token_ids"]]
        assert drafts
        metrics = drafting(traced)
        assert metrics["per_step_drafted"] == [len(draft["token_ids"]) for draft in drafts]
        assert metrics["per_step_accepted"] == [draft["num_accepted"] for draft in drafts]
        # Who did not ask for the trace does not get it for that.
        untraced = whole(client, path, **fields)
        assert "trace" not in untraced["specdec"]
        assert drafting(untraced) == metrics
        events = streamed(client, path, **fields, stream_options={"include_usage": True})
        assert drafting(events[-1]) == metrics
        assert not any("trace" in event.get("specdec", {}) for event in events)
        assert drafting(whole(client, path, **{**fields, "speculative": {"enabled": False}})) is None
        assert whole(client, path, **fields, n=2)["metrics"] is None


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_requests_of_different_salts_share_no_prefix_and_draft_from_none_of_each_others_answers(
    client: httpx.Client, path: str
) -> None:
    # A fixed number: as many as pay may be none on a machine that does much else.
    suffix = {"method": "suffix", "num_speculative_tokens": 16}
    fields = {"ignore_eos": True, "speculative": suffix, "specdec_trace": True}
    fields |= {"messages": [{"role": "user", "content": f"{path} " * 20}]} if path == CHAT else {"prompt": path * 20}

    def repeated(**salt: str) -> tuple[bool, bool]:
        """Whether an answer that was given before is drafted whole, and whether its prompt was cached."""
        whole(client, path, **fields, **salt)
        answer = whole(client, path, **fields, **salt)
        accepted, _ = num_traced(answer, "suffix")
        return accepted > 30, answer["usage"]["prompt_tokens_details"]["cached_tokens"] > 0

    def first(**salt: str) -> tuple[bool, bool]:
        answer = whole(client, path, **fields, **salt)
        return num_traced(answer, "suffix")[0] > 30, answer["usage"]["prompt_tokens_details"]["cached_tokens"] > 0

    assert first(cache_salt="one") == (False, False)
    assert repeated(cache_salt="one") == (True, True)
    assert first(cache_salt="another") == (False, False)
    assert first() == (False, False)
    assert first(cache_salt="one") == (True, True)
    refused = client.post(path, json=body(path, **fields, cache_salt=""))
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "cache_salt")


# Traces


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("n", [1, 3])
def test_a_stream_traces_what_the_whole_answer_traces(client: httpx.Client, path: str, n: int) -> None:
    fields: dict[str, object] = {"n": n, "specdec_trace": True, "speculative": {"method": "draft_model+ngram"}}
    fields["speculative"] |= {"num_speculative_tokens": 3}
    fields |= {} if path == CHAT else {"prompt": ["Once", "upon a"]}
    answer = whole(client, path, **fields)
    traces = answer["specdec"]["trace"]
    assert [trace["index"] for trace in traces] == list(range(len(answer["choices"])))
    chunks = streamed(client, path, **fields)
    last = [chunk for chunk in chunks if "specdec" in chunk]
    assert all(chunk["choices"][0]["finish_reason"] for chunk in last)
    assert all(chunk["specdec"]["trace"][0]["index"] == chunk["choices"][0]["index"] for chunk in last)
    by_index = {trace["index"]: trace for chunk in last for trace in chunk["specdec"]["trace"]}
    assert [by_index[index] for index in sorted(by_index)] == traces


def test_a_trace_accounts_for_every_token_of_the_answer(exact: LiveServer, client: httpx.Client) -> None:
    speculative = {"method": "chain", "num_speculative_tokens": 4}
    answer = whole(client, specdec_trace=True, speculative=speculative, logprobs=True, temperature=0, ignore_eos=True)
    tokens = [bytes(entry["bytes"]) for entry in answer["choices"][0]["logprobs"]["content"]]
    position = 0
    for draft in answer["specdec"]["trace"][0]["drafts"]:
        assert draft.keys() >= {"token_ids", "proposers", "num_accepted"}
        assert len(draft["token_ids"]) == len(draft["proposers"]) <= 4
        assert set(draft["proposers"]) <= set(PROPOSERS)
        accepted = draft["token_ids"][: draft["num_accepted"]]
        drafted_text = exact.engine.tokenizer.decode(accepted, skip_special_tokens=False)
        assert drafted_text == b"".join(tokens[position : position + len(accepted)]).decode(errors="replace")
        position += len(accepted) + 1
    assert position - 1 <= len(tokens) <= position


@pytest.mark.parametrize("trace", [None, False])
def test_an_answer_has_no_trace_unless_asked_for(client: httpx.Client, trace: bool | None) -> None:
    assert whole(client, specdec_trace=trace)["specdec"] == {"seed": 3}


def test_a_reader_that_is_slow_misses_nothing_of_the_trace() -> None:
    async def read() -> tuple[int, Answer]:
        request = Request(request_id="a", prompt_token_ids=(1,), sampling_params=SamplingParams(n=2), trace=True)
        answer = Answer([request], keeps_content=False, has_trace=True)
        stream = DeltaStream([request], lambda _stream, *, abort: None)
        for i in range(3 * MAX_WAITING_DELTAS):
            for choice_index in range(2):
                draft = DraftTrace(token_ids=(i,), proposers=("ngram",), num_accepted=choice_index)
                reason = FinishReason.STOP if i == 3 * MAX_WAITING_DELTAS - 1 else None
                stream.push(
                    TokenDelta(
                        request_id="a", choice_index=choice_index, token_ids=(i,), drafts=(draft,), finish_reason=reason
                    )
                )
        num_deltas = 0
        async for delta in stream:
            answer.add(delta)
            num_deltas += 1
        return num_deltas, answer

    num_deltas, answer = asyncio.run(read())
    assert num_deltas < 3 * MAX_WAITING_DELTAS, "the test needs deltas that are joined"
    for trace in answer.extension().trace or ():
        assert [draft.token_ids for draft in trace.drafts] == [(i,) for i in range(3 * MAX_WAITING_DELTAS)]
        assert all(draft.num_accepted == trace.index for draft in trace.drafts)
    assert [trace.index for trace in answer.extension(answer.choices[1]).trace or ()] == [1]


# Fields and counts


PASSES = st.lists(
    st.lists(st.sampled_from(PROPOSERS), max_size=6).flatmap(
        lambda proposers: st.tuples(st.just(proposers), st.integers(0, len(proposers)), st.booleans())
    ),
    max_size=30,
)


@given(passes=PASSES, max_draft_tokens=st.integers(1, 8))
def test_the_histogram_counts_passes_by_what_they_accepted(
    passes: list[tuple[list[str], int, bool]], max_draft_tokens: int
) -> None:
    counts = SpeculationCounts()
    for proposers, num_accepted, was_cut in passes:
        counts.record(proposers, num_accepted=num_accepted, was_cut=was_cut)
    drafted = [(proposers, num_accepted) for proposers, num_accepted, _ in passes if proposers]
    shown = speculative_decoding(counts.freeze(), max_draft_tokens)
    longest = max([max_draft_tokens, *(len(proposers) for proposers, _ in drafted)])
    assert shown.acceptance_histogram == [
        sum(num_accepted == i for _, num_accepted in drafted) for i in range(longest + 1)
    ]
    assert shown.num_spec_steps == len(drafted)
    for proposer, mine in shown.by_proposer.items():
        assert mine.num_drafts == sum(proposer in proposers for proposers, _ in drafted)
        assert mine.num_draft_tokens == sum(proposers.count(proposer) for proposers, _ in drafted)
        assert mine.num_accepted_tokens == sum(proposers[:n].count(proposer) for proposers, n in drafted)
        assert mine.num_rejected_tokens == sum(
            not was_cut and n < len(proposers) and proposers[n] == proposer for proposers, n, was_cut in passes
        )
        assert mine.num_draft_tokens == (
            mine.num_accepted_tokens + mine.num_rejected_tokens + mine.num_discarded_tokens
        )
    assert sum(mine.num_draft_tokens for mine in shown.by_proposer.values()) == shown.num_draft_tokens
