"""PredictionDrafter: the user's own guess at the answer, found again where the answer has left it."""

from __future__ import annotations

from bisect import bisect_left
from typing import Final, NamedTuple
from weakref import WeakKeyDictionary

from specdec.proposers.base import NO_GUESS, Draft, Guess
from specdec.sequence import Sequence

_MIN_N: Final = 2
_MAX_N: Final = 8
"""The lengths, in tokens, of the runs by which a place in a prediction is found."""


class _Place(NamedTuple):
    """How an answer stands to its prediction."""

    position: int = 0
    """Of the token that is expected next."""
    num_agreed: int = 0
    """Tokens in a row that agreed, up to the last."""
    num_missed: int = 0
    """Tokens since then: after one, the place is a guess; after more there is none, and the position is the last."""

    @property
    def confidence(self) -> int:
        if self.num_missed:
            return 0
        return 1 + sum(self.num_agreed >= bound for bound in (4, 8, 32))


class _Prediction:
    """The tokens of one prediction, where runs of them end, and how far its answer has come."""

    __slots__ = ("_ends", "_num_read", "place", "token_ids")

    def __init__(self, token_ids: tuple[int, ...], num_prompt_tokens: int) -> None:
        self.token_ids = token_ids
        self.place = _Place()
        self._num_read = num_prompt_tokens
        # The places, ascending, of each run of _MIN_N tokens, and of those longer ones that tell places apart: a run
        # that ends in one place alone needs no longer ones. What ends with the prediction has nothing to follow it.
        self._ends: dict[tuple[int, ...], list[int]] = {}
        ends = list(range(_MIN_N, len(token_ids)))
        for n in range(_MIN_N, _MAX_N + 1):
            ends_of: dict[tuple[int, ...], list[int]] = {}
            for end in ends:
                if end >= n:
                    ends_of.setdefault(token_ids[end - n : end], []).append(end)
            self._ends |= ends_of
            ends = [end for found in ends_of.values() if len(found) > 1 for end in found]

    def read(self, written: list[int]) -> None:
        """Take in what was written since; `written` is all of it."""
        for end in range(self._num_read + 1, len(written) + 1):
            self.place = self._after(self.place, written, end)
        self._num_read = max(self._num_read, len(written))

    def after(self, draft: Draft) -> _Place:
        """The place behind a draft, if its tokens were written."""
        place = self.place
        tokens = draft.last(len(draft.token_ids) + _MAX_N)
        for end in range(len(tokens) - len(draft.token_ids) + 1, len(tokens) + 1):
            place = self._after(place, tokens, end)
        return place

    def _after(self, place: _Place, tokens: list[int], end: int) -> _Place:
        """The place behind tokens[:end], from the one a token before."""
        position, num_agreed, num_missed = place
        is_known = num_missed < 2 and position < len(self.token_ids)
        if is_known and self.token_ids[position] == tokens[end - 1]:
            return _Place(position + 1, num_agreed + 1)
        found = self._find(tokens[max(0, end - _MAX_N) : end], position)
        if found is not None:
            return found
        if num_missed == 0 and position > 0:
            # One token in place of another. Of 91 000 tokens of edited files, taking it for that gave 12.7 a target
            # pass, for an insertion 12.5, as did waiting for two tokens that agree.
            position += 1
        return _Place(position, 0, num_missed + 1)

    def _find(self, tail: list[int], position: int) -> _Place | None:
        """Behind the longest run that ends `tail`: the nearest such place from `position` on, or else the last one."""
        ends: list[int] = []
        num_agreed = 0
        for n in range(_MIN_N, len(tail) + 1):
            found = self._ends.get(tuple(tail[-n:]))
            if found is None:
                break
            ends, num_agreed = found, n
        if not ends:
            return None
        i = bisect_left(ends, position)
        end = ends[i] if i < len(ends) else ends[-1]
        while num_agreed < min(len(tail), end) and self.token_ids[end - num_agreed - 1] == tail[-num_agreed - 1]:
            num_agreed += 1
        return _Place(end, num_agreed)


class PredictionDrafter:
    """Follows Sequence.prediction_token_ids from its beginning for as long as the answer agrees.

    Where it does not, a place in the prediction is found by the last two to eight tokens, the more the better; so text
    may be inserted, left out, replaced or moved. Confidence is 0 right behind a token that disagrees; 1 at the start
    and where fewer than 4 tokens have agreed; 2 from 4 on, 3 from 8, 4 from 32. On edited files, 34 % of the tokens of
    class 0 were right where all before them were, then 80, 92, 96 and 99.7 %.
    """

    name = "prediction"

    def __init__(self) -> None:
        self._predictions: WeakKeyDictionary[Sequence, _Prediction] = WeakKeyDictionary()

    def guess(self, draft: Draft) -> Guess:
        sequence = draft.sequence
        if not sequence.prediction_token_ids or draft.num_free <= 0:
            return NO_GUESS
        prediction = self._predictions.get(sequence)
        if prediction is None:
            prediction = _Prediction(sequence.prediction_token_ids, sequence.num_prompt_tokens)
            self._predictions[sequence] = prediction
        prediction.read(sequence.token_ids)
        place = prediction.after(draft)
        if place.num_missed > 1:
            return NO_GUESS
        token_ids = prediction.token_ids[place.position : place.position + draft.num_free]
        return Guess(token_ids, place.confidence) if token_ids else NO_GUESS

    def finished(self, sequence: Sequence) -> None:
        self._predictions.pop(sequence, None)
