"""verify_coupled accepts what the target drew, and emits what the target alone would have."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from specdec.kernels.dispatch import INTERPRETED
from specdec.kernels.verify_coupled import verify_coupled, verify_coupled_reference

UNTOUCHED = -7


def verified(function, drafts, device, **options):
    """(target's ids, draft's ids) of each sequence, one draft id fewer, or two empty lists; what is emitted of each."""
    starts = [0]
    for target_ids, _ in drafts:
        starts.append(starts[-1] + len(target_ids))
    target_ids = [token_id for own, _ in drafts for token_id in own]
    # What the target drew stands in the last row's place too: it must not count.
    draft_ids = [token_id for own, drafted in drafts for token_id in [*drafted, *own[-1:]]]
    row_starts = torch.tensor(starts, dtype=torch.int32, device=device)
    num_accepted = torch.full((len(drafts),), UNTOUCHED, dtype=torch.int32, device=device)
    output_ids = torch.full((len(target_ids),), UNTOUCHED, device=device)
    function(
        torch.tensor(target_ids, dtype=torch.int64, device=device),
        torch.tensor(draft_ids, dtype=torch.int64, device=device),
        row_starts,
        num_accepted,
        output_ids,
        **options,
    )
    emitted = [output_ids[starts[i] : starts[i + 1]].tolist() for i in range(len(drafts))]
    return num_accepted.tolist(), emitted


def test_examples(device):
    drafts = [([5, 6, 7], [5, 6]), ([5, 6, 7], [5, 9]), ([5, 6, 7], [9, 6]), ([4], []), ([], []), ([1, 1], [1])]
    num_accepted, emitted = verified(verify_coupled, drafts, device, max_num_rows=3)
    assert num_accepted == [2, 1, 0, 0, 0, 1]
    assert emitted == [[5, 6, 7], [5, 6, UNTOUCHED], [5, UNTOUCHED, UNTOUCHED], [4], [], [1, 1]]


@st.composite
def random_drafts(draw):
    # Few ids, so that drafts are often right.
    token_ids = st.integers(0, 2)
    drafts = []
    for _ in range(draw(st.integers(0, 6))):
        target_ids = draw(st.lists(token_ids, max_size=9))
        num_drafted = max(0, len(target_ids) - 1)
        drafts.append((target_ids, draw(st.lists(token_ids, min_size=num_drafted, max_size=num_drafted))))
    return drafts


@settings(max_examples=15 if INTERPRETED else 100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(random_drafts())
def test_every_draft_is_accepted_up_to_its_first_difference(device, drafts):
    expected = verified(verify_coupled_reference, drafts, torch.device("cpu"))
    assert verified(verify_coupled, drafts, device, max_num_rows=16) == expected
    for (target_ids, draft_ids), accepted, emitted in zip(drafts, *expected, strict=True):
        if target_ids:
            assert draft_ids[:accepted] == target_ids[:accepted]
            assert draft_ids[accepted : accepted + 1] != target_ids[accepted : accepted + 1] or accepted == len(
                draft_ids
            )
        assert [each for each in emitted if each != UNTOUCHED] == target_ids[: accepted + 1]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("row_starts", lambda t: t.long()),
        ("target_ids", lambda t: t.int()),
        ("draft_ids", lambda t: t[:-1]),
        ("output_ids", lambda t: t.repeat_interleave(2)[::2]),
        ("num_accepted", lambda t: t.long()),
    ],
)
def test_wrong_arguments_are_named(name, change, device):
    arguments = {
        "target_ids": torch.zeros(3, dtype=torch.int64, device=device),
        "draft_ids": torch.zeros(3, dtype=torch.int64, device=device),
        "row_starts": torch.tensor([0, 1, 3], dtype=torch.int32, device=device),
        "num_accepted": torch.zeros(2, dtype=torch.int32, device=device),
        "output_ids": torch.zeros(3, dtype=torch.int64, device=device),
    }
    verify_coupled(**arguments, max_num_rows=2)
    arguments[name] = change(arguments[name])
    with pytest.raises(ValueError, match=name):
        verify_coupled(**arguments, max_num_rows=2)


def test_no_rows_at_all_is_an_error(device):
    nothing = torch.zeros(0, dtype=torch.int64, device=device)
    starts, accepted = (
        torch.zeros(1, dtype=torch.int32, device=device),
        torch.zeros(0, dtype=torch.int32, device=device),
    )
    verify_coupled(nothing, nothing, starts, accepted, nothing, max_num_rows=1)
    with pytest.raises(ValueError, match="max_num_rows"):
        verify_coupled(nothing, nothing, starts, accepted, nothing, max_num_rows=0)
