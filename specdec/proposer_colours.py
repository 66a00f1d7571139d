"""COLOURS: of tokens by who drafted them, wherever answers are shown; what the target drew by itself has none."""

from __future__ import annotations

from typing import Final

from specdec.speculative import PROPOSERS

COLOURS: Final = dict(zip(PROPOSERS, ("#2a9d57", "#2f6fd0", "#e08a1e", "#b23fa0", "#d1483f", "#777777"), strict=True))
"""As CSS and rich write them, by name of the proposer."""
