"""verify_by_rule accepts and emits what the engine's own rules do."""

import itertools

import pytest
import torch

from specdec.acceptance_rules import RULES, DraftRow, accepts_whole_draft, residual
from specdec.kernels.dispatch import INTERPRETED
from specdec.kernels.verify_by_rule import verify_by_rule, verify_by_rule_reference
from specdec.sampler import draw_from
from specdec.speculative import Verification

UNTOUCHED = -7


class Drafts:
    """Random drafts, of `lengths` tokens; None is a sequence without rows."""

    def __init__(self, lengths, vocab_size, *, seed, dtype=torch.float64, sharpness=2.0, closeness=0.5):
        generator = torch.Generator().manual_seed(seed)
        self.row_starts = [0]
        for length in lengths:
            self.row_starts.append(self.row_starts[-1] + (0 if length is None else length + 1))
        num_rows = self.row_starts[-1]
        logits = sharpness * torch.randn(num_rows, vocab_size, generator=generator, dtype=torch.float64)
        other = sharpness * torch.randn(num_rows, vocab_size, generator=generator, dtype=torch.float64)
        # What is impossible for the target, as a grammar makes it, may be possible for the draft.
        forbidden = torch.rand(num_rows, vocab_size, generator=generator) < 0.2
        forbidden[:, vocab_size // 2] = False
        self.target_probs = logits.masked_fill(forbidden, -torch.inf).softmax(dim=1).to(dtype)
        draft_probs = (closeness * logits + (1 - closeness) * other).softmax(dim=1).to(dtype)
        self.draft_ids = torch.multinomial(draft_probs, 1, generator=generator).squeeze(1)
        self.target_ids = torch.multinomial(self.target_probs, 1, generator=generator).squeeze(1)
        # A third of the tokens are certain; the others' probabilities lie in another order.
        order = torch.randperm(num_rows, generator=generator)
        self.draft_probs = draft_probs[order]
        is_certain = torch.rand(num_rows, generator=generator) < 0.3
        self.draft_rows = order.argsort().masked_fill(is_certain, -1).int()
        self.accepting, self.recovering = torch.rand(2, num_rows, generator=generator, dtype=torch.float64)

    def verified(self, function, rule, device, **options):
        num_accepted = torch.full((len(self.row_starts) - 1,), UNTOUCHED, dtype=torch.int32, device=device)
        output_ids = torch.full(self.draft_ids.shape, UNTOUCHED, device=device)
        function(
            self.target_probs.to(device),
            self.draft_probs.to(device),
            self.draft_rows.to(device),
            self.draft_ids.to(device),
            self.target_ids.to(device),
            self.accepting.to(device),
            self.recovering.to(device),
            torch.tensor(self.row_starts, dtype=torch.int32, device=device),
            num_accepted,
            output_ids,
            rule=rule,
            **options,
        )
        return num_accepted.tolist(), output_ids.tolist()

    def by_the_engine(self, rule):
        """Row by row with the engine's rules."""
        num_accepted, output_ids = [], [UNTOUCHED] * len(self.draft_ids)
        for first, end in itertools.pairwise(self.row_starts):
            num_accepted.append(0)
            if first == end:
                continue
            weight, accepted, last_id = 1.0, 0, int(self.target_ids[first])
            for row in range(first, end - 1):
                target = self.target_probs[row].double()
                draft = self.draft_probs[self.draft_rows[row]].double()
                token_id = int(self.draft_ids[row])
                if self.draft_rows[row] < 0:
                    draft = torch.nn.functional.one_hot(self.draft_ids[row], len(target)).double()
                left = residual(target[None], draft[None], torch.tensor([[weight]], dtype=torch.float64))
                step = RULES[Verification(rule)](
                    DraftRow(
                        weight, float(left.sum()), float(target[token_id]), float(draft[token_id]), self.accepting[row]
                    )
                )
                if step.leaves:
                    accepted = row - first
                    last_id = draw_from(left, [float(self.recovering[row])])[0]
                weight = step.weight
                if weight <= 0.0:
                    break
            if accepts_whole_draft(weight, float(self.accepting[end - 1])):
                accepted, last_id = end - 1 - first, int(self.target_ids[end - 1])
            num_accepted[-1] = accepted
            output_ids[first : first + accepted] = self.draft_ids[first : first + accepted].tolist()
            output_ids[first + accepted] = last_id
        return num_accepted, output_ids


@pytest.mark.parametrize("rule", ["rejection", "block"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("lengths", "vocab_size"),
    [((3, 0, None, 5, 1), 6), ((4, 2), 127), ((1,), 1), ((2, 7), 2500), ((), 3), ((None,), 5)],
)
def test_it_walks_as_the_engine_does(rule, dtype, lengths, vocab_size, device):
    for seed in range(4 if INTERPRETED else 12):
        drafts = Drafts(lengths, vocab_size, seed=seed, dtype=dtype)
        assert drafts.verified(verify_by_rule, rule, device, max_num_rows=8) == drafts.by_the_engine(rule)


@pytest.mark.parametrize("rule", ["rejection", "block"])
def test_close_drafts_are_often_accepted_and_far_ones_seldom(rule, device):
    def accepted(closeness):
        drafts = Drafts([5] * 12, 40, seed=3, closeness=closeness)
        drafts.draft_rows = torch.arange(len(drafts.draft_rows), dtype=torch.int32)
        if closeness == 1.0:
            drafts.draft_probs = drafts.target_probs
            drafts.draft_ids = drafts.target_ids
        num_accepted, _ = drafts.verified(verify_by_rule, rule, device, max_num_rows=6)
        return sum(num_accepted)

    # Where the target is the draft, all is.
    assert accepted(1.0) == 60
    assert accepted(0.0) < 30


def by_hand(target, draft, draft_ids, accepting, recovering):
    """One sequence's draft of given probabilities, row by row; the target's own token is 3 everywhere."""
    num_rows = len(draft_ids) + 1
    drafts = Drafts([len(draft_ids)], 4, seed=0)
    for name, probs in (("target_probs", target), ("draft_probs", draft)):
        setattr(drafts, name, torch.tensor([*probs, [0.25] * 4], dtype=torch.float64))
    drafts.draft_rows = torch.arange(num_rows, dtype=torch.int32)
    drafts.draft_ids, drafts.target_ids = torch.tensor([*draft_ids, 0]), torch.full((num_rows,), 3)
    drafts.accepting = torch.tensor(accepting, dtype=torch.float64)
    drafts.recovering = torch.tensor([*recovering, 0.5], dtype=torch.float64)
    return drafts


TARGET, DRAFT = [0.25, 0.25, 0.5, 0.0], [0.5, 0.25, 0.25, 0.0]
"""A draft of 0 is accepted by numbers below 1/2, and leaves all its residual at 2."""


@pytest.mark.parametrize(
    ("rule", "drafts", "expected"),
    [
        pytest.param("rejection", by_hand([TARGET], [DRAFT], [0], [0.5, 0.5], [0.5]), [2, UNTOUCHED], id="accepted"),
        # After 0 the weight is 1/2.
        pytest.param("block", by_hand([TARGET], [DRAFT], [0], [0.5, 0.5], [0.5]), [2, UNTOUCHED], id="whole"),
        # And the residual at row 1 is 1/2 as well.
        pytest.param(
            "block",
            by_hand([TARGET, [0.0, 1.0, 0.0, 0.0]], [DRAFT, [1.0, 0.0, 0.0, 0.0]], [0, 0], [0.5] * 3, [0.5] * 2),
            [2, UNTOUCHED, UNTOUCHED],
            id="left",
        ),
        # A residual of 1/4 at 1 and at 2.
        pytest.param(
            "rejection",
            by_hand([TARGET], [[0.5, 0.0, 0.25, 0.25]], [3], [0.5, 0.5], [0.5]),
            [2, UNTOUCHED],
            id="recovered",
        ),
    ],
)
def test_a_number_on_a_border_falls_as_the_rule_says(rule, drafts, expected, device):
    assert drafts.by_the_engine(rule) == ([0], expected)
    assert drafts.verified(verify_by_rule, rule, device, max_num_rows=8) == ([0], expected)


def test_a_whole_draft_counts_more_than_a_row_that_was_left(device):
    drafts = by_hand([TARGET], [DRAFT], [2], [0.5, 0.5], [0.5])
    assert drafts.by_the_engine("block") == ([1], [2, 3])
    assert drafts.verified(verify_by_rule, "block", device, max_num_rows=8) == ([1], [2, 3])


def test_a_likely_token_leaves_no_more_weight_than_1(device):
    """After 2, which is twice as likely as it was drafted, 0 is accepted by numbers below 1/2 as if it came first."""
    drafts = by_hand([TARGET, [0.25] * 4], [DRAFT, DRAFT], [2, 0], [0.5, 0.5, 0.75], [0.5, 0.5])
    assert drafts.by_the_engine("block") == ([1], [2, 3, UNTOUCHED])
    assert drafts.verified(verify_by_rule, "block", device, max_num_rows=8) == ([1], [2, 3, UNTOUCHED])


@pytest.mark.parametrize("rule", ["rejection", "block"])
def test_the_largest_uniform_number_draws_an_id_that_has_a_residual(rule, device):
    """However the sum comes out that is compared with it."""
    drafts = Drafts([1] * 16, 2500, seed=1)
    drafts.accepting.fill_(1.0 - 2.0**-53)
    drafts.recovering.fill_(1.0 - 2.0**-53)
    num_accepted, output_ids = drafts.verified(verify_by_rule, rule, device, max_num_rows=8)
    assert num_accepted.count(0) > 5
    for first, accepted in zip(drafts.row_starts, num_accepted, strict=False):
        if accepted:
            continue
        left = drafts.target_probs[first] - drafts.draft_probs[drafts.draft_rows[first]]
        if drafts.draft_rows[first] < 0:
            left = drafts.target_probs[first].clone()
            left[drafts.draft_ids[first]] = 0.0
        assert 0 <= output_ids[first] < 2500
        assert left[output_ids[first]] > 0.0


@pytest.mark.parametrize("rule", ["rejection", "block"])
def test_the_reference_keeps_the_targets_law(rule):
    """Exactly, over a grid of uniform numbers: a draft of one token and vocabulary of 4."""
    target = torch.tensor([[0.5, 0.3, 0.2, 0.0], [0.25, 0.25, 0.25, 0.25]], dtype=torch.float64)
    draft = torch.tensor([[0.2, 0.2, 0.1, 0.5]], dtype=torch.float64)
    num_points = 40
    points = (torch.arange(num_points, dtype=torch.float64) + 0.5) / num_points
    law = torch.zeros(4, dtype=torch.float64)
    for draft_id in range(4):
        for accept in points:
            for recover in points:
                output_ids = torch.zeros(2, dtype=torch.int64)
                verify_by_rule_reference(
                    target,
                    draft,
                    torch.tensor([0, -1], dtype=torch.int32),
                    torch.tensor([draft_id, 0]),
                    torch.tensor([0, 0]),
                    torch.stack([accept, accept]),
                    torch.stack([recover, recover]),
                    torch.tensor([0, 2], dtype=torch.int32),
                    torch.zeros(1, dtype=torch.int32),
                    output_ids,
                    rule=rule,
                )
                law[output_ids[0]] += draft[0, draft_id] / num_points**2
    torch.testing.assert_close(law, target[0], atol=1.0 / num_points, rtol=0.0)
    assert law[3] == 0.0


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("target_probs", lambda t: t.half()),
        ("draft_probs", lambda t: t[:, :-1]),
        ("draft_rows", lambda t: t.long()),
        ("draft_ids", lambda t: t.int()),
        ("accepting", lambda t: t.float()),
        ("recovering", lambda t: t[:-1]),
        ("rule", lambda _: "typical"),
    ],
)
def test_wrong_arguments_are_named(name, change, device):
    drafts = Drafts([2], 5, seed=0)

    def called(**changed):
        drafts.verified(lambda *args, **options: verify_by_rule(*args, **{**options, **changed}), "block", device)

    called(max_num_rows=3)
    if name == "rule":
        with pytest.raises(ValueError, match=name):
            called(rule=change(None), max_num_rows=3)
        return
    setattr(drafts, name, change(getattr(drafts, name)))
    with pytest.raises(ValueError, match=name):
        called(max_num_rows=3)
