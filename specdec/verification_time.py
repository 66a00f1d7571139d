"""VerificationTime: how long a step takes with so many tokens, and how much longer with so many draft tokens."""

from __future__ import annotations

from dataclasses import dataclass
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

    def line(self) -> tuple[float, float]:
        """Intercept and slope."""
        num, xx = self._num + _PRIOR_STEPS, self._xx + _PRIOR_SHARE**2
        determinant = num * xx - self._x**2
        intercept = (self._y * xx - self._x * self._xy) / determinant
        slope = (num * self._xy - self._x * self._y) / determinant
        return intercept, slope


@dataclass(frozen=True, slots=True)
class VerificationStep:
    """How long one step over some verified tokens takes, by the draft tokens it has as well."""

    plain: float
    """Seconds without drafts, the least it can take."""
    curve: StepTime
    num_tokens: int
    curve_seconds: float
    """What the curve says for num_tokens."""
    intercept: float
    slope: float

    def seconds(self, num_drafted: int) -> float:
        """With num_drafted draft tokens."""
        if not num_drafted:
            return self.plain
        added = self.added(num_drafted)
        added += self.plain * (self.intercept + self.slope * self.scale(num_drafted, added))
        # No step with drafts is expected to be shorter than one without.
        return self.plain + max(added, 0.0)

    def added(self, num_drafted: int) -> float:
        """What so many draft tokens add by the measured curve."""
        return self.curve.seconds(self.num_tokens + num_drafted) - self.curve_seconds

    def scale(self, num_drafted: int, added: float) -> float:
        """The same, but something for each, in steps without drafts."""
        return max(added / self.plain, _MIN_SHARE * num_drafted)


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

    def step(self, num_tokens: int) -> VerificationStep:
        """Of a step over num_tokens verified tokens; right until the next observation."""
        excess = self._excesses.get(num_tokens.bit_length())
        intercept, slope = (0.0, 0.0) if excess is None else excess.line()
        plain, curve_seconds = self._plain.seconds(num_tokens), self._curve.seconds(num_tokens)
        return VerificationStep(plain, self._curve, num_tokens, curve_seconds, intercept, slope)

    def seconds(self, num_tokens: int, num_drafted: int) -> float:
        """Of a step over num_tokens verified tokens and num_drafted draft tokens."""
        return self.step(num_tokens).seconds(num_drafted)

    def observe(self, num_tokens: int, num_drafted: int, seconds: float) -> None:
        """Learn from a step."""
        if not num_drafted:
            self._curve.scale(self._plain.observe(num_tokens, seconds))
            for excess in self._excesses.values():
                excess.fade()
            return
        step = self.step(num_tokens)
        expected = step.seconds(num_drafted)
        seconds = min(seconds, _MAX_DEVIATION * expected)
        if seconds < (1.0 - _FASTER) * expected:
            ratio = max(seconds / expected, 1 / _MAX_DEVIATION) - 1.0
            self._plain.correct(num_tokens, ratio)
            self._curve.scale(ratio)
            return
        added = step.added(num_drafted)
        excess = self._excesses.setdefault(num_tokens.bit_length(), _Excess())
        excess.add(step.scale(num_drafted, added), (seconds - step.plain - added) / step.plain)
