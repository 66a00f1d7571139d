"""What a prediction says next, and which drafted tokens are its own, by scans of whole texts: slow and obvious."""

from __future__ import annotations

from collections.abc import Sequence as AbstractSequence

from specdec.proposers.base import NO_GUESS, Guess
from specdec.request import DraftTrace


def guess_by_scan(prediction: list[int], text: list[int], num_prompt_tokens: int, num_free: int) -> Guess:
    """The definition, from the first token of the answer on."""
    position = num_agreed = num_missed = 0
    start = 0
    for length in range(num_prompt_tokens + 1, len(text) + 1):
        tail = text[max(0, length - 8) : length]
        if num_missed < 2 and position < len(prediction) and prediction[position] == tail[-1]:
            position, num_agreed, num_missed = position + 1, num_agreed + 1, 0
            start = position
            continue
        for n in range(len(tail), 1, -1):
            ends = [end for end in range(n, len(prediction)) if prediction[end - n : end] == tail[-n:]]
            if ends:
                position = min((end for end in ends if end >= position), default=ends[-1])
                num_agreed, num_missed = n, 0
                start = position
                break
        else:
            if position == 0 and prediction[0] == tail[-1]:
                start, position, num_agreed, num_missed = 1, 1, 1, 0
                continue
            position += num_missed == 0 and position > 0
            num_agreed, num_missed = 0, num_missed + 1
            start = position
            if num_missed > 1 and position > 0:
                alike = [i + 1 for i in range(position, len(prediction) - 1) if prediction[i] == tail[-1]]
                start = alike[0] if alike else len(prediction)
    confidence = 0 if num_missed else 1 + (num_agreed >= 4) + (num_agreed >= 8) + (num_agreed >= 32)
    num_alike = {0: 1, 1: 4 - num_agreed, 2: 8 - num_agreed, 3: 32 - num_agreed, 4: num_free}[confidence]
    token_ids = prediction[start : start + min(num_free, num_alike)]
    return Guess(tuple(token_ids), confidence, yields_to_model=num_missed > 1) if token_ids else NO_GUESS


def num_predicted_by_scan(
    prediction: list[int],
    prompt: AbstractSequence[int],
    answer: AbstractSequence[int],
    drafts: AbstractSequence[DraftTrace],
) -> tuple[int, int]:
    """How many drafted tokens are how the prediction goes on: those that were accepted, and those that were not."""
    accepted = rejected = position = 0
    for draft in drafts:
        text = [*prompt, *answer[:position]]
        for i, token_id in enumerate(draft.token_ids):
            if guess_by_scan(prediction, text, len(prompt), 1).token_ids == (token_id,):
                accepted += i < draft.num_accepted
                rejected += i >= draft.num_accepted
            text.append(token_id)
        position += draft.num_accepted + 1
    return accepted, rejected
