"""VerificationTime: how long a step takes with so many tokens, and how much longer with so many draft tokens."""

from __future__ import annotations

from typing import Final

from specdec.step_time import StepTime

_DECAY: Final = 0.9
"""Of what was observed of drafts, with every step that has some."""
_PRIOR_STEPS: Final = 1.0
"""Steps as which the measured curve counts, that having drafts at all takes nothing more."""
_PRIOR_SHARE: Final = 0.05
"""It counts as one step that drafts made longer by this part, for what each of them takes."""
_MIN_SHARE: Final = 0.01
"""Of a step without drafts: what a draft token is thought to be able to take, where the measured curve has nothing."""
_FORGETTING: Final = 0.01
"""How much of what is special about drafts is forgotten in a step without, so that they are tried again."""
_FASTER: Final = 0.1
"""A step with drafts that ends this much sooner than expected says that the machine is faster, not the drafts."""
_MAX_DEVIATION: Final = 2.0
"""A step that took longer than this many times what was expected met something else on the machine."""


class _Excess:
    """By how much drafts took longer than the measured curve says: a decayed least-squares fit of a line.

    All in steps without drafts: x what drafts are thought to take, y how much longer they took.
    """

    __slots__ = ("_num", "_x", "_xx", "_xy", "_y")

    def __init__(self) -> None:
        self._num = self._x = self._y = self._xx = self._xy = 0.0

    def add(self, x: float, y: float) -> None:
        self._num = self._num * _DECAY + 1.0
        self._x = self._x * _DECAY + x
        self._y = self._y * _DECAY + y
        self._xx = self._xx * _DECAY + x * x
        self._xy = self._xy * _DECAY + x * y

    def fade(self) -> None:
        self._y *= 1.0 - _FORGETTING
        self._xy *= 1.0 - _FORGETTING

    def at(self, x: float) -> float:
        num, xx = self._num + _PRIOR_STEPS, self._xx + _PRIOR_SHARE**2
        determinant = num * xx - self._x**2
        intercept = (self._y * xx - self._x * self._xy) / determinant
        slope = (num * self._xy - self._x * self._y) / determinant
        return intercept + slope * x


class VerificationTime:
    """Steps without drafts are learnt as they come, and what drafts add to them apart, by the size of the step.

    The curve was measured with one sequence. Sixteen with a token each take longer than one with sixteen, so learning
    both from one curve would bend it: what drafts add would vanish, or grow, as steps without them are met.
    """

    def __init__(self, measured: StepTime) -> None:
        self._plain = measured
        self._curve = measured.copy()
        self._excesses: dict[int, _Excess] = {}
        """By the binary order of a step's tokens without drafts."""

    def seconds(self, num_tokens: int, num_drafted: int) -> float:
        """Of a step over num_tokens verified tokens and num_drafted draft tokens."""
        plain = self._plain.seconds(num_tokens)
        if not num_drafted:
            return plain
        added = self._added(num_tokens, num_drafted)
        excess = self._excesses.get(num_tokens.bit_length())
        if excess is not None:
            added += plain * excess.at(self._scale(num_tokens, num_drafted) / plain)
        # No step with drafts is expected to be shorter than one without.
        return plain + max(added, 0.0)

    def observe(self, num_tokens: int, num_drafted: int, seconds: float) -> None:
        """Learn from a step."""
        if not num_drafted:
            self._curve.scale(self._plain.observe(num_tokens, seconds))
            for excess in self._excesses.values():
                excess.fade()
            return
        expected = self.seconds(num_tokens, num_drafted)
        seconds = min(seconds, _MAX_DEVIATION * expected)
        if seconds < (1.0 - _FASTER) * expected:
            ratio = max(seconds / expected, 1 / _MAX_DEVIATION) - 1.0
            self._plain.correct(num_tokens, ratio)
            self._curve.scale(ratio)
            return
        plain = self._plain.seconds(num_tokens)
        excess = self._excesses.setdefault(num_tokens.bit_length(), _Excess())
        excess.add(
            self._scale(num_tokens, num_drafted) / plain,
            (seconds - plain - self._added(num_tokens, num_drafted)) / plain,
        )

    def _added(self, num_tokens: int, num_drafted: int) -> float:
        """By the measured curve."""
        return self._curve.seconds(num_tokens + num_drafted) - self._curve.seconds(num_tokens)

    def _scale(self, num_tokens: int, num_drafted: int) -> float:
        least = _MIN_SHARE * num_drafted * self._plain.seconds(num_tokens)
        return max(self._added(num_tokens, num_drafted), least)
