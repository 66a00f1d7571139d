"""Which passes are launched ahead, what of them is used, when the host waits, and what a step is said to take."""

import functools
import itertools
from array import array
from types import SimpleNamespace

import pytest
import torch
from ahead_requests import AHEAD, queue, run
from device_watch import DEVICE, DeviceWatch
from kernel_engines import kernel_engine, kernels_on

from specdec import ConfigError, Engine, EngineConfig, Request, SamplingParams, SpeculativeConfig, overlapped_passes
from specdec.attention import Span
from specdec.backend import CpuBackend, KernelBackend
from specdec.proposers.length import DraftLengths
from specdec.speculative import SpeculativeParams
from specdec.verifier import PendingOutcomes

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def config_of(config_of):
    return functools.partial(config_of, **(AHEAD | {"enforce_eager": True, "max_num_seqs": 4}))


@pytest.fixture
def engine(config_of):
    return kernel_engine(CPU, config_of())


def counts(engine):
    stats = engine.stats()
    return stats.num_passes_ahead, stats.num_passes_ahead_used, stats.num_passes_ahead_dropped


def params_of(*lengths):
    return [SamplingParams(max_tokens=length, seed=length, ignore_eos=True) for length in lengths]


def stopped_at_once(engine):
    return SamplingParams(temperature=0.0, max_tokens=9, stop_token_ids=tuple(range(engine.tokenizer.vocab_size)))


@pytest.fixture
def launched(engine, monkeypatch):
    return watch_launched(engine, monkeypatch)


def watch_launched(engine, monkeypatch):
    """For each pass launched ahead how many tokens it is over."""
    sizes = []
    forward_ahead = engine._passes._forward_ahead

    def watched(spans, *args):
        sizes.append(sum(len(span.token_ids) for span in spans))
        return forward_ahead(spans, *args)

    monkeypatch.setattr(engine._passes, "_forward_ahead", watched)
    return sizes


def test_every_pass_but_the_prompts_is_launched_ahead_and_none_for_a_token_that_is_the_last(engine, launched):
    engine.generate(["a b c", "x"], params_of(4, 7))
    # After the tokens 1 to 3 of both, then 4 to 6 of one: its seventh is the last.
    assert launched == [2, 2, 2, 1, 1, 1]
    assert counts(engine) == (6, 6, 0)
    assert engine.stats().num_steps == 7
    engine.generate("x", params_of(1)[0])
    assert counts(engine) == (6, 6, 0)


def test_rows_of_answers_that_end_are_left_out(engine, launched):
    params = [*params_of(6), stopped_at_once(engine)]
    outputs = engine.generate(["a b c", "x"], params)
    assert [len(output.choices[0].token_ids) for output in outputs] == [6, 1]
    assert launched == [2, 1, 1, 1, 1]
    assert counts(engine) == (5, 5, 0)


def test_a_pass_that_nobody_is_left_for_comes_to_nothing(engine, launched):
    stop = stopped_at_once(engine)
    engine.generate("x", stop)
    assert counts(engine) == (1, 0, 0), "nothing says yet that nobody will want it"
    engine.generate("x", stop)
    assert counts(engine) == (2, 0, 1)
    engine.generate("x", params_of(3)[0])
    assert counts(engine) == (4, 2, 2)


@pytest.fixture
def narrow(config_of):
    """16 tokens a step."""
    return kernel_engine(CPU, config_of(max_num_batched_tokens=16))


def request(request_id, prompt, params):
    return Request(request_id=request_id, prompt_token_ids=tuple(prompt), sampling_params=params)


def test_the_next_chunk_of_a_prompt_is_computed_ahead_also_where_nothing_is_drawn(narrow, monkeypatch):
    launched = watch_launched(narrow, monkeypatch)
    narrow.generate([7] * 70, params_of(3)[0])
    assert launched == [16, 16, 16, 6, 1, 1]
    assert counts(narrow) == (6, 6, 0)
    assert narrow.stats().num_steps == 7


def test_chunks_are_computed_ahead_beside_answers_and_cut_as_without(narrow, monkeypatch):
    launched = watch_launched(narrow, monkeypatch)
    narrow.add_request(request("first", [5], *params_of(20)))
    narrow.step()
    narrow.add_request(request("long", [7] * 40, *params_of(3)))
    # The second token of the first; then the newcomer is let in, by steps of 15 tokens beside the other's one.
    for _ in range(5):
        narrow.step()
    assert launched == [1, 16, 11, 2, 2]
    assert counts(narrow) == (5, 4, 0)
    assert [each.num_output_tokens for each in narrow.scheduler.running] == [6, 2]
    while narrow.has_unfinished_requests():
        narrow.step()
    # The 20th token of the first is its last.
    assert launched == [1, 16, 11, 2, 2] + [1] * 13
    assert counts(narrow)[2] == 0


def test_a_prompt_waits_for_no_second_pass_ahead_where_there_is_room_for_it(engine, launched):
    engine.generate([[7] * 70, [9]], params_of(3, 3))
    # 64 tokens of the first prompt, while the second waits; then 6 of it and the second prompt.
    assert launched == [2, 2]


def test_a_prompt_that_has_no_room_keeps_no_other_from_being_computed_ahead(config_of, monkeypatch):
    engine = kernel_engine(CPU, config_of(num_kv_blocks=9))
    launched = watch_launched(engine, monkeypatch)
    outputs = engine.generate([[7] * 64, [9] * 41], params_of(8, 5))
    assert [len(output.choices[0].token_ids) for output in outputs] == [8, 5]
    # With its first token the first has all 9 blocks of 8, until it ends.
    assert launched == [1] * (7 + 4)
    assert counts(engine) == (11, 11, 0)


def test_a_chunk_under_way_stays_as_long_as_it_is_when_an_answers_end_leaves_budget(narrow, monkeypatch):
    launched = watch_launched(narrow, monkeypatch)
    narrow.add_request(request("ends", [5], stopped_at_once(narrow)))
    narrow.add_request(request("long", [7] * 50, *params_of(2)))
    lengths = []
    while narrow.has_unfinished_requests():
        before = {each.request_id: each.num_computed_tokens for each in narrow.scheduler.running}
        narrow.step()
        lengths += [
            each.num_computed_tokens - before.get("long", 0)
            for each in narrow.scheduler.running
            if each.request_id == "long"
        ]
    # The pass over 15 tokens beside the one that was not to come was under way.
    assert lengths[:4] == [15, 15, 16, 4]
    assert launched == [16, 16, 4, 1]
    assert counts(narrow) == (4, 4, 0)


def test_an_aborted_prompts_chunk_is_left_out(narrow):
    narrow.add_request(request("stays", [5], *params_of(8)))
    narrow.add_request(request("goes", [7] * 60, *params_of(8)))
    narrow.step()
    narrow.step()
    narrow.abort_request("goes")
    while narrow.has_unfinished_requests():
        narrow.step()
    assert counts(narrow) == (7, 7, 0)
    assert narrow.stats().num_kv_blocks_in_use == 0


@pytest.mark.parametrize("method", ["grammar", "draft_model"])
def test_chunks_are_computed_ahead_until_a_draft_may_come_after_them(config_of, tiny_draft_folder, method, monkeypatch):
    draft = str(tiny_draft_folder) if method == "draft_model" else None
    speculative = SpeculativeConfig(method=method, model=draft, num_speculative_tokens=2)
    engine = kernel_engine(CPU, config_of(speculative=speculative, max_num_batched_tokens=16))
    launched = watch_launched(engine, monkeypatch)
    engine.generate([7] * 60, SamplingParams(max_tokens=8, seed=1), output_type={"type": "boolean"})
    # A draft may come with the pass over the prompt's end; a draft model computes each chunk too, with each step.
    assert launched == ([16, 16] if method == "grammar" else [])
    assert counts(engine)[1:] == (len(launched), 0)


def test_who_comes_is_let_in_after_the_pass_under_way(engine, launched):
    queue(engine, "greedy")
    for _ in range(3):
        engine.step()
    queue(engine, "sampled")
    assert [delta.request_id for delta in engine.step()] == ["greedy"]
    assert counts(engine) == (3, 3, 0), "while somebody waits and a place is free nothing is launched"
    assert {delta.request_id for delta in engine.step()} == {"greedy", "sampled"}
    assert counts(engine) == (4, 3, 0)


def test_those_that_wait_for_a_place_keep_nobody_from_going_on(config_of):
    engine = kernel_engine(CPU, config_of(max_num_seqs=2))
    outputs = engine.generate([[5], [6], [7]], params_of(9, 5, 4))
    assert [len(output.choices[0].token_ids) for output in outputs] == [9, 5, 4]
    # Steps 1 to 4 launch one each, though the third waits; step 5 ends the second. The third comes with step 6.
    assert counts(engine) == (4 + 3, 4 + 3, 0)
    assert engine.stats().num_steps == 9


@pytest.mark.parametrize("method", ["ngram", "grammar", "chain"])
def test_no_pass_is_launched_where_something_may_be_drafted(config_of, method):
    speculative = SpeculativeConfig(method=method, num_speculative_tokens=2)
    engine = kernel_engine(CPU, config_of(speculative=speculative, max_num_seqs=12))
    names = ("schema", "greedy schema") if method == "grammar" else ("sampled", "greedy", "schema")
    run(engine, names)
    assert engine.stats().speculation.num_draft_tokens > 0
    assert counts(engine) == (0, 0, 0)


def test_free_text_is_computed_ahead_where_only_constraints_draft(config_of):
    engine = kernel_engine(CPU, config_of(speculative=SpeculativeConfig(method="grammar", num_speculative_tokens=2)))
    engine.generate("a b c", params_of(6)[0])
    assert counts(engine) == (5, 5, 0)
    queue(engine, "schema")
    queue(engine, "sampled")
    engine.step()
    while any(each.request_id == "schema" for each in engine.scheduler.running):
        assert counts(engine) == (5, 5, 0)
        engine.step()


def test_what_looks_for_no_draft_for_a_while_is_computed_ahead(config_of, monkeypatch):
    engine = kernel_engine(CPU, config_of(speculative=SpeculativeConfig(method="grammar+ngram")))
    # So that every look finds that nothing pays, and the next few are not taken.
    monkeypatch.setattr(DraftLengths, "_num_paying", lambda *_: 0)
    run(engine, ("schema", "greedy schema"))
    launched, used, dropped = counts(engine)
    assert launched == used
    assert 5 < used < engine.stats().num_steps - 5
    assert dropped == 0


def test_who_turns_speculation_off_is_computed_ahead(config_of):
    engine = kernel_engine(CPU, config_of(speculative=SpeculativeConfig(method="ngram", num_speculative_tokens=2)))
    engine.generate("a b c", params_of(6)[0], speculative=SpeculativeParams(enabled=False))
    assert counts(engine) == (5, 5, 0)


def test_the_slots_of_tokens_to_come_are_given_back_where_a_block_is_lacking(config_of):
    engine = kernel_engine(CPU, config_of(num_kv_blocks=3, block_size=4, max_model_len=12))
    engine.generate([[5, 6], [7, 8]], params_of(6, 6))
    assert engine.stats().num_preemptions > 0
    assert engine.stats().num_kv_blocks_in_use == 0


def test_the_host_does_not_wait_between_a_steps_sampling_and_the_next_pass(config_of, monkeypatch):
    with pytest.MonkeyPatch.context() as patch, DeviceWatch() as watch, kernels_on(DEVICE):
        patch.setattr(torch, "from_numpy", None)
        engine = Engine(config_of(max_num_seqs=12))
    events = []

    def noting(kind, name, event):
        function = getattr(kind, name)

        def noted(*args, **kwargs):
            result = function(*args, **kwargs)
            events.append((event, len(watch.waits)))
            return result

        monkeypatch.setattr(kind, name, noted)

    noting(engine.verifier, "launch", "sampled")
    noting(engine.runner, "forward_drawn", "launched")
    noting(engine.scheduler, "commit", "committed")
    monkeypatch.setattr(torch, "from_numpy", None)
    monkeypatch.setattr(watch, "is_strict", True)
    watch.waits.clear()
    with watch:
        run(engine)
    launched, used, _ = counts(engine)
    assert used > 10
    assert set(watch.waits) == {"specdec.device_tensors.HostCopy.arrays"}
    assert len(watch.waits) == engine.stats().num_steps
    for (before, num_before), (event, num_waits) in itertools.pairwise(events):
        if event == "launched":
            assert (before, num_waits) == ("sampled", num_before)
    assert [event for event, _ in events].count("launched") == launched


TABLES = [array("i", [3, 4, 9]), array("i", [5])]


def ahead_of(*spans):
    """A pass under way: over the next chunk of one sequence and the drawn token of another."""
    own = [Span([7] * 5, 6, TABLES[0], 1), Span([0], 2, TABLES[1], 1)]
    parts = [
        overlapped_passes._SpanAhead(span, num_known, 0, span.block_table[span.start_position // 4 :], rows)
        for span, num_known, rows in zip(own, (5, 0), (range(1), range(1, 2)), strict=True)
    ]
    return overlapped_passes._PassAhead(parts, torch.zeros(2, 9)).rows_of(spans, 4)


def test_a_pass_under_way_is_taken_for_what_it_computes_and_for_nothing_else():
    chunk, drawn = Span([7] * 5, 6, TABLES[0], 1), Span([88], 2, TABLES[1], 1)
    assert ahead_of(chunk, drawn) == [0, 1]
    assert ahead_of(drawn) == [1], "whatever was drawn"
    assert ahead_of() == []
    for other in (
        Span([7] * 4, 6, TABLES[0], 1),
        Span([7] * 6, 6, TABLES[0], 1),
        Span([7] * 4 + [8], 6, TABLES[0], 1),
        Span([7] * 5, 5, TABLES[0], 1),
        Span([7] * 5, 6, TABLES[0], 0),
        Span([7] * 5, 6, TABLES[0][:], 1),
    ):
        assert ahead_of(other, drawn) is None


def test_of_a_pass_behind_its_own_drafts_the_first_of_them_are_taken():
    table = TABLES[0]
    # A token, a draft that is known, and three that the device drew: the last is the second of another block.
    span = Span([4, 5, 0, 0, 0], 6, table, 5)
    launched = overlapped_passes._SpanAhead(span, 2, 3, table[1:3], range(2, 7))

    arrived = launched.of_drafts([7, 8, 9])

    def rows_of(token_ids, num_logits, start_position=6, part=arrived):
        ahead = overlapped_passes._PassAhead([part], torch.zeros(7, 9))
        return ahead.rows_of([Span(token_ids, start_position, table, num_logits)], 4)

    assert rows_of([4, 5, 7, 8, 9], 5) == [2, 3, 4, 5, 6]
    assert rows_of([4, 5, 7], 3) == [2, 3, 4]
    assert rows_of([4, 5], 2) == [2, 3], "with none of those that were drawn, and none in the next block"
    assert rows_of([4], 1) is None, "what was known was to be verified"
    assert rows_of([4, 6, 7], 3) is None
    assert rows_of([4, 5, 7, 8, 9, 9], 6) is None
    assert rows_of([4, 5, 7], 2) is None
    assert rows_of([4, 5, 7], 3, start_position=5) is None
    assert rows_of([4, 5, 7, 9], 4) is None, "something else was drafted after all"
    fewer = launched.of_drafts([7])
    assert rows_of([4, 5, 7], 3, part=fewer) == [2, 3, 4]
    assert rows_of([4, 5, 8], 3, part=fewer) is None


@pytest.mark.parametrize("num_moved_at_once", [1, 2, 64])
def test_rows_come_to_the_front_as_they_were(engine, num_moved_at_once, monkeypatch):
    monkeypatch.setattr(overlapped_passes, "_MOVED_ROWS", num_moved_at_once)
    logits = torch.arange(12.0)[:, None] * torch.ones(1, 3)
    for rows in ([0, 1, 2], [0, 2, 3, 4, 8, 11], [1, 2, 3, 4, 5, 6, 7, 9], [11], []):
        moved = logits.clone()
        engine._passes._bring_forward(moved, rows)
        assert torch.equal(moved[: len(rows)], logits[rows])


def test_a_pass_under_way_is_not_taken_once_a_block_that_it_writes_is_another():
    moved = array("i", [3, 4, 9])
    span = Span([7] * 5, 6, moved, 1)
    part = overlapped_passes._SpanAhead(span, 5, 0, moved[1:3], range(1))
    ahead = overlapped_passes._PassAhead([part], torch.zeros(1, 9))
    assert ahead.rows_of([span], 4) == [0]
    moved[2] = 8
    assert ahead.rows_of([span], 4) is None


class Clocked:
    """A device that takes 10 seconds a pass beside a host that takes 3 before it and 4 after it, by a clock of both."""

    PASS_S, SCHEDULE_S, COMMIT_S = 10.0, 3.0, 4.0

    def __init__(self, engine, monkeypatch):
        self.now, self.done, self.told = 0.0, 0.0, []
        runner, verifier, scheduler, proposer = engine.runner, engine.verifier, engine.scheduler, engine.proposer
        forward, forward_drawn, launch = runner.forward, runner.forward_drawn, verifier.launch
        schedule, commit, learn = scheduler.schedule, scheduler.commit, proposer.learn

        def busy(*_):
            self.done = max(self.done, self.now) + self.PASS_S

        def waited():
            self.now = max(self.now, self.done)

        def pending(*args):
            given, at = launch(*args), self.done

            def wait():
                self.now = max(self.now, at)
                return given.wait()

            return PendingOutcomes(wait, given.emitted_ids)

        def scheduling():
            self.now += self.SCHEDULE_S
            return schedule()

        def committing(*args):
            self.now += self.COMMIT_S
            return commit(*args)

        def learning(batch, proposals, outcomes, seconds):
            self.told.append(seconds)
            return learn(batch, proposals, outcomes, seconds)

        monkeypatch.setattr(overlapped_passes, "time", SimpleNamespace(perf_counter=lambda: self.now))
        monkeypatch.setattr(runner, "forward", lambda *args: busy() or forward(*args))
        monkeypatch.setattr(runner, "forward_drawn", lambda *args: busy() or forward_drawn(*args))
        monkeypatch.setattr(runner, "wait", waited)
        monkeypatch.setattr(verifier, "launch", pending)
        monkeypatch.setattr(scheduler, "schedule", scheduling)
        monkeypatch.setattr(scheduler, "commit", committing)
        monkeypatch.setattr(proposer, "learn", learning)


@pytest.mark.parametrize("is_ahead", [True, False])
def test_a_step_takes_what_its_pass_takes_and_the_host_its_time_meanwhile(config_of, monkeypatch, is_ahead):
    engine = kernel_engine(CPU, config_of(async_scheduling=is_ahead))
    clock = Clocked(engine, monkeypatch)
    engine.generate("x", params_of(6)[0])
    # The first step waits for its own pass alone; then a token comes every 10 seconds. Else it is 3, 10 and 4 in turn.
    assert clock.told == [14.0] + ([10.0] * 5 if is_ahead else [14.0] * 5)
    assert clock.now == (17.0 + 5 * 10.0 if is_ahead else 6 * 17.0)


def test_a_pass_that_came_to_nothing_does_not_count_for_the_next_step(config_of, monkeypatch):
    engine = kernel_engine(CPU, config_of())
    clock = Clocked(engine, monkeypatch)
    stop = stopped_at_once(engine)
    engine.generate("x", stop)
    engine.generate("x", stop)
    assert clock.told == [14.0, 14.0]
    # It began at 13, when the first was done, and took until 23; the next until 33, and its commit until 37.
    assert clock.now == 37.0


def test_a_cpu_has_nothing_to_overlap(config_of):
    with pytest.raises(ConfigError, match="leave it out, or use a GPU") as refused:
        Engine(config_of(device="cpu"))
    assert refused.value.flag == "--async-scheduling"
    assert not CpuBackend(CPU).overlaps(None)
    assert not CpuBackend(CPU).overlaps(False)
    assert KernelBackend(torch.device("cuda", 0)).overlaps(None)
    assert not KernelBackend(torch.device("cuda", 0)).overlaps(False)
    assert not KernelBackend(CPU).overlaps(None)
    assert EngineConfig().async_scheduling is None


@pytest.mark.gpu
def test_on_a_gpu_a_step_ends_while_the_next_pass_is_under_way(config_of, monkeypatch):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    engine = Engine(config_of(device="cuda", enforce_eager=False, async_scheduling=None))
    engine.generate("x", params_of(5)[0])
    num_used = counts(engine)[1]
    assert num_used == 4
    forward_drawn = engine.runner.forward_drawn

    def long(*args):
        logits = forward_drawn(*args)
        torch.cuda._sleep(10**9)
        return logits

    monkeypatch.setattr(engine.runner, "forward_drawn", long)
    queue(engine, "sampled")
    torch.cuda.synchronize()
    deltas = engine.step()
    assert not torch.cuda.current_stream().query(), "the device is at the next pass"
    torch.cuda.synchronize()
    assert [len(delta.token_ids) for delta in deltas] == [1]
    assert [len(delta.token_ids) for delta in engine.step()] == [1]
    assert counts(engine)[1] == num_used + 1
    engine.abort_request("sampled")


@pytest.mark.gpu
def test_on_a_gpu_a_step_over_a_chunk_ends_while_the_next_chunk_is_under_way(config_of, monkeypatch):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    changes = {"device": "cuda", "enforce_eager": False, "async_scheduling": None, "max_num_batched_tokens": 16}
    engine = Engine(config_of(**changes))
    expected = engine.generate([7] * 70, params_of(3)[0])[0].choices[0].token_ids
    assert counts(engine) == (6, 6, 0)
    forward_ahead = engine._passes._forward_ahead

    def long(*args):
        logits = forward_ahead(*args)
        torch.cuda._sleep(10**9)
        return logits

    monkeypatch.setattr(engine._passes, "_forward_ahead", long)
    engine.add_request(request("chunks", [8] * 70, *params_of(3)))
    torch.cuda.synchronize()
    assert engine.step() == []
    assert not torch.cuda.current_stream().query(), "the device is at the next chunk"
    torch.cuda.synchronize()
    monkeypatch.setattr(engine._passes, "_forward_ahead", forward_ahead)
    assert engine.step() == []
    assert counts(engine)[1] == 7
    engine.abort_request("chunks")
    assert engine.generate([7] * 70, params_of(3)[0])[0].choices[0].token_ids == expected
