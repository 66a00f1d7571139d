"""DrafterTime: what asking each drafter takes, held against what its accepted tokens save.

An accepted token saves what a token takes at the time: in a large batch little, and there a slow drafter that is seldom
right costs more than it brings. It is then asked in fewer and fewer steps, until what it brings covers the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_DECAY: Final = 0.98
"""Of what was spent and saved, with every step in which a drafter is asked."""
_ADVANCE: Final = 2.0
"""Tokens that a drafter is trusted with before it has saved any."""
_MAX_PAUSE: Final = 32


@dataclass(slots=True)
class _Account:
    """One drafter's, in seconds."""

    spent: float = 0.0
    saved: float = 0.0
    pause: int = 0
    """Steps that it sits out after one that has left it in debt."""
    num_left: int = 0

    def settle(self, seconds_per_token: float) -> None:
        is_in_debt = self.spent > self.saved + _ADVANCE * seconds_per_token
        self.pause = min(2 * self.pause + 1, _MAX_PAUSE) if is_in_debt else 0
        self.num_left = self.pause
        self.spent *= _DECAY
        self.saved *= _DECAY


class DrafterTime:
    """One account a drafter, by name; all sequences together."""

    def __init__(self) -> None:
        self._accounts: dict[str, _Account] = {}
        self._asked: set[str] = set()
        """In the step under way."""

    def is_worth_asking(self, name: str) -> bool:
        """Whether to ask the drafter in the step under way; the same until the step is settled."""
        return self._accounts.setdefault(name, _Account()).num_left == 0

    def spend(self, name: str, seconds: float) -> None:
        """Asking it once took so long."""
        self._asked.add(name)
        self._accounts.setdefault(name, _Account()).spent += seconds

    def save(self, name: str, num_tokens: int, seconds_per_token: float) -> None:
        """So many tokens of its were accepted."""
        self._accounts.setdefault(name, _Account()).saved += num_tokens * seconds_per_token

    def settle(self, seconds_per_token: float) -> None:
        """End the step; a token took so long in it."""
        for name, account in self._accounts.items():
            if name in self._asked:
                account.settle(seconds_per_token)
            elif account.num_left:
                account.num_left -= 1
        self._asked.clear()
