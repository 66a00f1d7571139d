"""Several tokens a draft without the host between them: the drafts are those that are drawn one by one.

Both engines run by the kernels' references, or in Triton's interpreter, or on a GPU; one is held to a token a call.
test_device_path_interpreted.py runs this file a second time, with TRITON_INTERPRET set.
"""

import functools

import pytest
from drawn_ahead import drafting_config, drafts_of, one_by_one
from kernel_engines import kernel_engine

from specdec.kernels.dispatch import INTERPRETED
from specdec.launched_drafting import LaunchedDrafting
from specdec.proposers.stretch_lengths import StretchLengths
from specdec.speculative import MAX_DRAFT_TOKENS


@pytest.fixture(scope="module")
def config_of(tiny_model_folder, tiny_draft_folder):
    return functools.partial(drafting_config, tiny_model_folder, tiny_draft_folder)


@pytest.mark.parametrize(
    ("method", "num_tokens", "is_learnt", "is_captured"),
    [("draft_model", 3, False, False)]
    if INTERPRETED
    else [
        ("draft_model", 4, False, False),
        ("draft_model", 4, False, True),
        ("draft_model", 5, True, True),
        ("draft_model+grammar+ngram", 5, False, True),
    ],
)
def test_drafts_are_those_that_are_drawn_one_by_one(
    device, config_of, method, num_tokens, is_learnt, is_captured, monkeypatch
):
    """Stretches of learnt lengths, and of all that a draft has room for; launched pass by pass, and replayed."""
    if not is_learnt:
        monkeypatch.setattr(StretchLengths, "num_tokens", lambda *_: MAX_DRAFT_TOKENS)
    config = config_of(method, num_tokens, device=device.type, enforce_eager=not is_captured)
    engines = [kernel_engine(device, config) for _ in range(2)]
    assert (engines[0].describe().num_drafting_graphs > 0) == is_captured
    if is_captured:
        # Every loop fits one of its graphs.
        monkeypatch.setattr(LaunchedDrafting, "send", None)
    ahead, answers = drafts_of(engines[0])
    single, expected = drafts_of(one_by_one(engines[1]))
    assert ahead == single
    assert answers == expected
    assert any(len(token_ids) > 2 for token_ids, _ in ahead.values())
    stats = engines[0].stats()
    # In the interpreter texts are too short to go the same way twice; test_transition_mirror.py follows some there.
    assert stats.num_draft_tokens_followed > 0 or INTERPRETED
    assert stats.num_draft_tokens_unfollowed + stats.num_draft_tokens_guarded > 0
    assert engines[1].stats().num_draft_tokens_followed == 0
