"""The grid of `equivalence`: which engines, and what each of them is asked."""

from __future__ import annotations

import itertools
from typing import Literal

import msgspec

Size = Literal["quick", "standard", "full"]
Dtype = Literal["float32", "bfloat16"]
DraftedBy = Literal["none", "ngram", "self_draft", "shallow_draft"]
"""self_draft: the target is its own draft model. shallow_draft: the target's first layers are."""
Pool = Literal["ample", "tight"]
"""tight: room for the longest request and another's prompt, and steps of few tokens: preemption, chunked prefill."""


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One run of all requests; compared with the plain engine's run of the same requests, one at a time."""

    dtype: Dtype
    drafted_by: DraftedBy
    pool: Pool
    temperature: float
    with_schema: bool
    batch: int


class EquivalenceGrid(msgspec.Struct, frozen=True, kw_only=True):
    """What is crossed with what, and how much is generated in each cell."""

    dtypes: tuple[Dtype, ...] = ("float32", "bfloat16")
    drafted_by: tuple[DraftedBy, ...] = ("none", "ngram", "self_draft", "shallow_draft")
    temperatures: tuple[float, ...] = (0.0, 0.8)
    schemas: tuple[bool, ...] = (False, True)
    placements: tuple[tuple[Pool, int], ...] = (("ample", 1), ("ample", 8), ("tight", 8))
    """Pool and batch; one request alone is never preempted, so a tight pool says nothing at batch 1."""
    num_requests: int = 8
    max_tokens: int = 48
    num_speculative_tokens: int = 4
    num_draft_layers: int = 6
    block_size: int = 16
    tight_batched_tokens: int = 64
    max_prompt_chars: int | None = None
    """Leaves out tasks with longer conversations, where prompts would take most of the time."""

    @classmethod
    def of_size(cls, size: Size) -> EquivalenceGrid:
        """quick is a look, standard the whole grid on short answers, full the same on longer ones."""
        if size == "quick":
            return cls(placements=(("ample", 8), ("tight", 8)), max_tokens=24)
        return cls(num_requests=16, max_tokens=128) if size == "full" else cls()

    def cells(self) -> list[Cell]:
        """Cells of one engine lie together: ordered by dtype, who drafts, pool, and whether there is a schema."""
        pools = dict.fromkeys(pool for pool, _ in self.placements)
        return [
            Cell(
                dtype=dtype,
                drafted_by=drafted_by,
                pool=pool,
                temperature=temperature,
                with_schema=with_schema,
                batch=batch,
            )
            for dtype, drafted_by, pool in itertools.product(self.dtypes, self.drafted_by, pools)
            for with_schema, temperature in itertools.product(self.schemas, self.temperatures)
            for batch in (batch for placed, batch in self.placements if placed == pool)
        ]
