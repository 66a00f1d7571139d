"""The law eval: sound verification passes, the planted faults show, and so does a fault of the engine's own rules."""

import itertools
import json
import math

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from specdec import acceptance_rules
from specdec.acceptance_rules import Step
from specdec.evals import cli, law_lengths
from specdec.evals import law as law_module
from specdec.evals.law import FULL_SAMPLES, MAX_RATIO, MIN_FAULT_RATIO, noise_floor, run_law
from specdec.evals.law_cell import all_cells
from specdec.evals.law_world import World
from specdec.evals.terminal import Terminal
from specdec.proposers.length import DraftLengths
from specdec.speculative import Verification

SOUND = [cell for cell in all_cells() if cell.fault is None]
FAULTY = [cell for cell in all_cells() if cell.fault is not None]
CELLS_THAT_PAY = [cell for cell in all_cells() if cell.drafted_by == "pay"]


def run(cells, num_samples):
    return run_law(num_samples=num_samples, seed=1, terminal=Terminal(json=True), cells=cells)


def test_the_cells_cross_every_verification_with_and_without_a_grammar_and_plant_every_fault():
    assert {(cell.verification, cell.num_allowed is not None) for cell in SOUND} == set(
        itertools.product(Verification, (False, True))
    )
    assert len({cell.fault for cell in FAULTY}) == len(FAULTY) == 4
    assert len({cell.params.temperature for cell in SOUND}) >= 3
    assert {cell.verification for cell in SOUND if cell.drafted_by == "pay"} == {
        Verification.REJECTION,
        Verification.BLOCK,
    }
    assert min(cell.vocab_size for cell in all_cells()) >= 6


def test_sound_verification_is_within_the_noise():
    result = run(SOUND, 1200)
    assert result.failures == ()
    assert result.figures["largest_ratio"] < MAX_RATIO
    assert [each.cell for each in result.figures["cells"]] == SOUND
    for each in result.figures["cells"]:
        drafts = each.cell.drafted_by != "nobody"
        assert (0 < each.num_accepted_tokens < each.num_draft_tokens) == drafts


@pytest.mark.slow
def test_every_planted_fault_shows():
    result = run(FAULTY, 20_000)
    assert result.failures == ()
    assert result.figures["smallest_fault_ratio"] > MAX_RATIO


def test_a_fault_that_does_not_show_fails():
    harmless = [msgspec.structs.replace(FAULTY[0], mask_drafts=True)]
    (failure,) = run(harmless, 2000).failures
    assert "forbidden drafts dropped" in failure


def test_a_rule_that_accepts_too_much_fails(monkeypatch):
    cells = [cell for cell in SOUND if cell.verification is Verification.REJECTION][:1]
    monkeypatch.setitem(
        acceptance_rules.RULES,
        Verification.REJECTION,
        lambda row: acceptance_rules.rejection(row._replace(uniform=row.uniform**2)),
    )
    (failure,) = run(cells, 10_000).failures
    assert "times the noise floor" in failure
    monkeypatch.setitem(acceptance_rules.RULES, Verification.REJECTION, lambda row: Step(row.residual_mass > 0.0, 0.0))
    failures = run(cells, 2000).failures
    assert "0 of " in failures[-1]


@pytest.mark.slow
def test_a_choice_of_lengths_that_cuts_off_drawn_tokens_fails(monkeypatch):
    cells = [cell for cell in SOUND if cell.drafted_by == "pay"]
    monkeypatch.setattr(DraftLengths, "num_kept", staticmethod(lambda _: 0))
    failures = run(cells, 20_000).failures
    assert [failure.split(":")[0] for failure in failures] == [f"{cell.name}, {cell.verification}" for cell in cells]
    assert all("times the noise floor" in failure for failure in failures)


@pytest.mark.parametrize(
    "factor",
    [
        pytest.param(0.35, marks=pytest.mark.slow),
        pytest.param(0.7, marks=pytest.mark.slow),
        pytest.param(1.5, marks=pytest.mark.slow),
        3.0,
        pytest.param(6.0, marks=pytest.mark.slow),
    ],
)
def test_a_choice_of_lengths_for_what_a_token_led_to_shows_whatever_drafting_takes(monkeypatch, factor):
    longer = tuple(1.0 + factor * (seconds - 1.0) for seconds in law_lengths.DRAFTING_SECONDS)
    monkeypatch.setattr(law_lengths, "DRAFTING_SECONDS", longer)
    (cell,) = [cell for cell in FAULTY if cell.drafted_by == "pay"]
    result = run([cell], 12_000)
    # The noise falls with the square root of the samples, the fault does not.
    (shown,) = result.figures["cells"]
    fault = math.sqrt(shown.total_variation**2 - shown.noise_floor**2)
    assert fault / noise_floor(World(cell).law(), FULL_SAMPLES) >= MIN_FAULT_RATIO


def test_only_what_a_drawn_token_led_to_tells_leads_from_others():
    cell = CELLS_THAT_PAY[0]
    world = World(cell)
    half = cell.vocab_size // 2
    assert {world.num_sure[world.next_text(0, token_id)] for token_id in range(half)} == {cell.num_sure}
    assert {world.num_sure[world.next_text(0, token_id)] for token_id in range(half, 2 * half)} == {0}
    for text, num_sure in enumerate(world.num_sure):
        target = world.target_logits[text, :-1].double().softmax(0)
        draft = world.draft_logits[text, :-1].double().softmax(0)
        if num_sure:
            assert target[world.likeliest(text)] > 0.98
        else:
            for probs in (target, draft):
                assert probs[:half].tolist() == pytest.approx(probs[half:].tolist(), abs=1e-6)
            assert target.minimum(draft).sum() == pytest.approx(0.8, abs=0.1)


def test_the_noise_floor_is_the_mean_of_what_samples_of_the_law_come_to():
    law = np.array([0.5, 0.3, 0.15, 0.05, 0.0])
    num_samples = 40
    exact = 0.0
    for p in law[:4]:
        for k in range(num_samples + 1):
            chance = math.comb(num_samples, k) * p**k * (1 - p) ** (num_samples - k)
            exact += 0.5 * chance * abs(k / num_samples - p)
    assert noise_floor(law, num_samples) == pytest.approx(exact, rel=1e-12)
    assert noise_floor(np.array([1.0, 0.0]), num_samples) == 0.0


@pytest.mark.parametrize("cell", all_cells(), ids=lambda cell: f"{cell.name}, {cell.verification}, {cell.fault}")
def test_a_law_is_one_and_gives_nothing_to_forbidden_texts(cell):
    world = World(cell)
    law = world.law()
    assert len(law) == world.num_samples_possible == cell.vocab_size**cell.num_tokens
    assert law.sum() == pytest.approx(1.0, abs=1e-12)
    texts = itertools.product(range(cell.vocab_size), repeat=cell.num_tokens)
    for number, token_ids in enumerate(texts):
        sequence = world.sequence(0, token_ids)
        assert world.text(sequence) == number
        text, is_allowed = 0, True
        for i, token_id in enumerate(token_ids):
            assert world.text(world.sequence(0, token_ids[:i])) == text
            is_allowed = is_allowed and world.allows(text, token_id)
            text = world.next_text(text, token_id)
        if not is_allowed:
            assert law[number] == 0.0


def invoke(*arguments):
    finished = CliRunner().invoke(cli.app, ["law", *arguments, "--json"])
    assert finished.stdout.count("\n") == 1, finished.output
    return finished.exit_code, json.loads(finished.stdout)


def test_the_command_ends_with_0_where_the_laws_are_kept_and_with_1_where_a_cell_is_not_as_it_should_be(monkeypatch):
    monkeypatch.setattr(law_module, "all_cells", lambda: SOUND[:2])
    exit_code, shown = invoke("--samples", "1000", "--seed", "3")
    assert (exit_code, shown["passed"], shown["eval"]) == (0, True, "law")
    assert shown["settings"]["samples"] == 1000
    assert shown["settings"]["seed"] == 3
    for cell in shown["cells"]:
        assert cell["ratio"] == pytest.approx(cell["total_variation"] / cell["noise_floor"])
    monkeypatch.setattr(law_module, "all_cells", lambda: [msgspec.structs.replace(FAULTY[0], mask_drafts=True)])
    exit_code, shown = invoke("--samples", "1000")
    assert (exit_code, shown["passed"]) == (1, False)
    assert len(shown["failures"]) == 1
