"""The equivalence eval: it passes on a right engine, and a wrong one makes it fail."""

import dataclasses
import itertools
import json

import msgspec
import pytest
from typer.testing import CliRunner

from specdec import Engine, EngineConfig, SamplingParams
from specdec.errors import ConfigError
from specdec.evals import cli
from specdec.evals.comparison import first_difference
from specdec.evals.equivalence import run_equivalence
from specdec.evals.equivalence_grid import Cell, EquivalenceGrid
from specdec.evals.shallow_draft import shallow_draft
from specdec.evals.terminal import Terminal
from specdec.evals.workload import load_workload
from specdec.proposers.chain import ChainProposer
from specdec.request import CompletionOutput, FinishReason, SpeculationStats, TokenLogprob
from specdec.verifier import Outcome, Verifier

pytestmark = pytest.mark.usefixtures("compiled_here")
SMALL = EquivalenceGrid(
    dtypes=("float32",),
    temperatures=(0.8,),
    penalties=(False,),
    schemas=(True,),
    draft_lengths=(4,),
    placements=(("ample", 2), ("tight", 3)),
    num_requests=3,
    max_tokens=16,
    num_draft_layers=1,
    block_size=4,
    max_prompt_chars=350,
)
ONE_ENGINE = msgspec.structs.replace(
    SMALL, drafted_by=("self_draft",), schemas=(False,), placements=(("ample", 2),), max_tokens=8
)


@pytest.fixture
def run(tiny_model_folder, tmp_path):
    def run(grid, exact=True):
        return run_equivalence(
            model=str(tiny_model_folder),
            exact=exact,
            grid=grid,
            terminal=Terminal(json=True),
            draft_cache=tmp_path / "drafts",
        )

    return run


@pytest.fixture
def unverified(monkeypatch):
    """A verifier that takes every draft token for the target's own."""
    verify = Verifier.verify

    def accept_all(self, logits, mask_rows, batch, proposals):
        outcomes = verify(self, logits, mask_rows, batch, proposals)
        return [
            Outcome([*proposal.token_ids, *outcome.token_ids[-1:]], len(proposal.token_ids), outcome.num_drafted, [])
            if proposal.token_ids and outcome.num_accepted < len(proposal.token_ids)
            else outcome
            for outcome, proposal in zip(outcomes, proposals, strict=True)
        ]

    monkeypatch.setattr(Verifier, "verify", accept_all)


@pytest.fixture
def spoilt_drafts(monkeypatch):
    """A proposer whose tokens are never those it drew."""
    propose = ChainProposer.propose

    def spoil(self, batch, begin_pass=None):
        del begin_pass
        return [
            dataclasses.replace(proposal, token_ids=[token_id ^ 1 for token_id in proposal.token_ids])
            for proposal in propose(self, batch)
        ]

    monkeypatch.setattr(ChainProposer, "propose", spoil)


@pytest.mark.slow
def test_a_right_engine_passes_every_cell_preemption_included(run):
    result = run(SMALL)
    assert result.failures == ()
    shown = json.loads(result.encode())
    assert shown["identical"] is True
    assert (shown["num_differing"], shown["self_draft_rejected"]) == (0, 0)
    assert shown["num_cells"] == len(shown["cells"]) == 18
    assert shown["num_requests"] == 54
    assert shown["num_preemptions"] > 0
    by_drafter = {cell["cell"]["drafted_by"]: cell["num_draft_tokens"] for cell in shown["cells"]}
    for name in ("grammar", "prediction", "self_draft", "shallow_draft", "all"):
        assert by_drafter[name] > 0, name
    assert sum(cell["num_cached_tokens"] for cell in shown["cells"]) > 0


def on_a_small_model(grid):
    return msgspec.structs.replace(grid, num_draft_layers=1, block_size=8, max_prompt_chars=450, num_requests=6)


def test_a_pairwise_selection_passes_on_a_small_model(run):
    grid = on_a_small_model(EquivalenceGrid(temperatures=(0.0, 1.3)))
    result = run(msgspec.structs.replace(grid, max_tokens=12, num_requests=3, max_prompt_chars=350))
    assert result.failures == ()
    assert result.figures["identical"] is True
    assert result.figures["num_preemptions"] > 0


@pytest.mark.slow
def test_the_whole_grid_of_one_arithmetic_passes_on_a_small_model(run):
    grid = msgspec.structs.replace(EquivalenceGrid.of_size("full"), dtypes=("float32",), draft_lengths=(4,))
    result = run(msgspec.structs.replace(on_a_small_model(grid), max_tokens=32))
    assert result.failures == ()
    assert result.figures["identical"] is True


def test_in_a_pairwise_selection_any_two_settings_meet():
    whole = msgspec.structs.replace(EquivalenceGrid(), is_pairwise=False).cells()
    chosen = EquivalenceGrid().cells()
    assert set(chosen) < set(whole)
    assert len(chosen) < len(whole) / 10
    names = Cell.__struct_fields__
    for one, other in itertools.combinations(names, 2):
        for cell in whole:
            own = getattr(cell, one), getattr(cell, other)
            assert any((getattr(each, one), getattr(each, other)) == own for each in chosen), (one, other, own)


def settings_that_meet(cells):
    return set().union(*(itertools.combinations(enumerate(msgspec.structs.astuple(cell)), 2) for cell in cells))


def test_a_number_of_cells_is_spread_over_the_grid_and_another_seed_chooses_others():
    grid = EquivalenceGrid.of_size("quick")
    whole = grid.all_cells()
    random = [settings_that_meet(whole[i : i + 9]) for i in range(0, len(whole), 9)]
    chosen = []
    for seed in range(5):
        cells = msgspec.structs.replace(grid, num_cells=9, seed=seed).cells()
        assert len(cells) == 9
        assert cells == [cell for cell in whole if cell in cells]
        assert {cell.drafted_by for cell in cells} == set(grid.drafted_by)
        assert len(settings_that_meet(cells)) > max(map(len, random))
        chosen.append(cells)
    assert all(one != other for one, other in itertools.combinations(chosen, 2))
    assert msgspec.structs.replace(grid, num_cells=9, seed=0).cells() == chosen[0]
    more = msgspec.structs.replace(grid, num_cells=60).cells()
    assert len(more) == 60
    assert settings_that_meet(more) == settings_that_meet(whole)
    assert msgspec.structs.replace(grid, num_cells=len(whole)).cells() == whole


@pytest.mark.usefixtures("unverified")
def test_drafts_that_nobody_verifies_are_reported(run):
    result = run(msgspec.structs.replace(ONE_ENGINE, drafted_by=("shallow_draft",)))
    assert result.figures["identical"] is False
    assert result.figures["num_differing"] > 0
    assert not result.is_passed
    assert "shallow_draft" in result.failures[0]


@pytest.mark.usefixtures("unverified")
def test_without_exact_arithmetic_differences_are_counted_and_fail_nothing(run):
    result = run(msgspec.structs.replace(ONE_ENGINE, drafted_by=("shallow_draft",)), exact=False)
    assert result.figures["identical"] is False
    assert result.is_passed
    gaps = result.figures["logprob_gaps"]
    assert gaps["num_known"] + gaps["num_unknown"] == result.figures["num_differing"]


@pytest.mark.usefixtures("spoilt_drafts")
def test_a_rejected_draft_of_the_target_itself_fails_although_no_token_differs(run):
    result = run(ONE_ENGINE)
    assert result.figures["identical"] is True
    assert result.figures["self_draft_rejected"] > 0
    assert any("were rejected" in failure for failure in result.failures)


@pytest.mark.slow
def test_nothing_is_drafted_where_nobody_drafts_though_tasks_have_predictions(run):
    assert any(task.prediction for task in load_workload("free_text"))
    grid = msgspec.structs.replace(
        ONE_ENGINE,
        drafted_by=("none",),
        num_requests=30,
        max_prompt_chars=None,
        max_tokens=2,
        placements=(("ample", 16),),
    )
    result = run(grid)
    assert result.failures == ()
    assert [cell.num_draft_tokens for cell in result.figures["cells"]] == [0]


def test_a_cell_without_the_preemption_it_is_for_says_so(run):
    grid = msgspec.structs.replace(
        ONE_ENGINE, drafted_by=("none",), placements=(("tight", 1),), num_requests=2, max_tokens=4
    )
    result = run(grid)
    assert result.is_passed
    assert result.figures["num_cells_untested"] == 1
    assert "nothing was preempted" in result.warnings[0]


@pytest.mark.parametrize(("is_wrong", "exit_code"), [(False, 0), (True, 1)])
def test_the_command_ends_with_1_where_something_differs(
    request, monkeypatch, tiny_model_folder, tmp_path, is_wrong, exit_code
):
    if is_wrong:
        request.getfixturevalue("unverified")
    monkeypatch.setenv("SPECDEC_HOME", str(tmp_path))
    grid = msgspec.structs.replace(ONE_ENGINE, drafted_by=("shallow_draft",))
    monkeypatch.setattr(EquivalenceGrid, "of_size", classmethod(lambda cls, size: grid))
    finished = CliRunner().invoke(
        cli.app, ["equivalence", "--model", str(tiny_model_folder), "--dtype", "float32", "--json"]
    )
    assert finished.exit_code == exit_code, finished.output
    assert json.loads(finished.stdout)["identical"] is not is_wrong


def test_the_command_runs_as_many_cells_as_it_is_told_and_says_of_how_many(monkeypatch, tiny_model_folder, tmp_path):
    monkeypatch.setenv("SPECDEC_HOME", str(tmp_path))
    grid = msgspec.structs.replace(ONE_ENGINE, drafted_by=("none", "ngram"), temperatures=(0.0, 1.0))
    monkeypatch.setattr(EquivalenceGrid, "of_size", classmethod(lambda cls, size: grid))
    arguments = ["equivalence", "--model", str(tiny_model_folder), "--json", "--num-cells"]
    finished = CliRunner().invoke(cli.app, [*arguments, "3", "--dtype", "float32", "--seed", "4"])
    assert finished.exit_code == 0, finished.output
    shown = json.loads(finished.stdout)
    assert (shown["num_cells"], shown["num_cells_in_grid"], len(shown["cells"])) == (3, 4, 3)
    assert shown["settings"]["grid"]["seed"] == 4
    assert "3 of 4 cells" in finished.stderr
    refused = CliRunner().invoke(cli.app, [*arguments, "9"])
    assert refused.exit_code == 2
    assert "the grid has 4 cells" in refused.stderr


# The shallow draft


def test_a_shallow_draft_is_the_targets_first_layers_and_is_written_once(tiny_model_folder, tmp_path):
    folder = shallow_draft(tiny_model_folder, num_layers=1, cache=tmp_path)
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert shallow_draft(tiny_model_folder, num_layers=1, cache=tmp_path) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    engine = Engine(EngineConfig(model=str(folder), num_kv_blocks=8))
    assert engine.runner.model.config.num_hidden_layers == 1
    assert len(engine.generate("hello", SamplingParams(max_tokens=3, ignore_eos=True))[0].choices[0].token_ids) == 3


def test_a_draft_as_deep_as_its_target_is_refused(tiny_model_folder, tmp_path):
    with pytest.raises(ConfigError, match="2 layers"):
        shallow_draft(tiny_model_folder, num_layers=2, cache=tmp_path)


# Comparing two answers


def logprob_of(token_id, value, top=()):
    return TokenLogprob(token_id=token_id, token="", token_bytes=b"", logprob=value, top=top)


def answer_of(*token_ids, text="t", finish_reason=FinishReason.LENGTH, logprobs=None):
    return CompletionOutput(
        index=0, text=text, token_ids=token_ids, finish_reason=finish_reason, stop_reason=None, logprobs=logprobs,
        seed=0, speculation=SpeculationStats(),
    )  # fmt: skip


def test_the_gap_is_how_much_likelier_the_plain_token_was():
    top = (logprob_of(5, -0.5), logprob_of(6, -0.75))
    plain = answer_of(1, 5, logprobs=(logprob_of(1, -0.1), logprob_of(5, -0.5, top)))
    difference = first_difference("task", plain, answer_of(1, 6))
    assert (difference.what, difference.position, difference.logprob_gap) == ("tokens", 1, 0.25)
    unlikely = first_difference("task", plain, answer_of(1, 9))
    assert (unlikely.logprob_gap, unlikely.note) == (None, "not within the top 2")


def test_equal_tokens_still_differ_by_reason_or_text():
    assert first_difference("task", answer_of(1), answer_of(1)) is None
    assert first_difference("task", answer_of(1), answer_of(1, finish_reason=FinishReason.STOP)).what == "finish reason"
    assert first_difference("task", answer_of(1), answer_of(1, text="u")).what == "text"


def test_a_longer_answer_differs_where_the_other_ended():
    assert first_difference("task", answer_of(1), answer_of(1, 2)).note == "the plain answer had ended"
    assert first_difference("task", answer_of(1, 2), answer_of(1)).note == "the other answer had ended"
