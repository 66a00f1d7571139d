"""The grid of `equivalence`: which engines, and what each of them is asked."""

from __future__ import annotations

import itertools
import random
from typing import Literal, get_args

import msgspec

Size = Literal["quick", "standard", "full"]
Dtype = Literal["float32", "bfloat16"]
DraftedBy = Literal["none", "grammar", "prediction", "suffix", "ngram", "chain", "self_draft", "shallow_draft", "all"]
"""self_draft: the target is its own draft model. shallow_draft: its first layers are. all: a chain with these."""
Pool = Literal["ample", "tight"]
"""tight: room for the longest request and another's prompt, and steps of few tokens: preemption, chunked prefill."""


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One run of all requests; compared with the plain engine's run of the same requests, one at a time."""

    dtype: Dtype
    drafted_by: DraftedBy
    pool: Pool
    temperature: float
    penalised: bool
    """Whether tokens that occurred are made less likely, draft tokens included."""
    with_schema: bool
    draft_length: int | None
    batch: int


class EquivalenceGrid(msgspec.Struct, frozen=True, kw_only=True):
    """What is crossed with what, and how much is generated in each cell."""

    dtypes: tuple[Dtype, ...] = ("float32", "bfloat16")
    drafted_by: tuple[DraftedBy, ...] = get_args(DraftedBy)
    temperatures: tuple[float, ...] = (0.0, 0.7, 1.3)
    penalties: tuple[bool, ...] = (False, True)
    schemas: tuple[bool, ...] = (False, True)
    draft_lengths: tuple[int | None, ...] = (4, None)
    """Tokens of every draft; None is as many as pay, which depends on the machine."""
    placements: tuple[tuple[Pool, int], ...] = (("ample", 1), ("ample", 16), ("tight", 16))
    """Pool and batch; one request alone is never preempted, so a tight pool says nothing at batch 1."""
    is_pairwise: bool = True
    """Whether only so many cells are run that any two settings meet in one."""
    num_cells: int | None = None
    """So many cells instead, in which as many pairs of settings meet as so many can hold."""
    seed: int = 0
    """Of which cells are chosen, where others would do as well."""
    num_requests: int = 8
    max_tokens: int = 48
    num_draft_layers: int = 6
    block_size: int = 16
    tight_batched_tokens: int = 64
    max_prompt_chars: int | None = None
    """Leaves out tasks with longer conversations, where prompts would take most of the time."""

    @classmethod
    def of_size(cls, size: Size) -> EquivalenceGrid:
        """quick is a look, standard a pairwise selection, full the whole grid on longer answers."""
        if size == "quick":
            return cls(dtypes=("bfloat16",), placements=(("ample", 16), ("tight", 16)), max_tokens=24)
        return cls(is_pairwise=False, num_requests=16, max_tokens=128) if size == "full" else cls()

    def cells(self) -> list[Cell]:
        """Those to run, in the order of all."""
        cells = self.all_cells()
        if self.num_cells is None and not self.is_pairwise:
            return cells
        return _sample(cells, self.num_cells, random.Random(self.seed))

    def all_cells(self) -> list[Cell]:
        """Cells of one engine lie together: ordered by dtype, who drafts, pool, and whether there is a schema."""
        pools = dict.fromkeys(pool for pool, _ in self.placements)
        return [
            Cell(
                dtype=dtype,
                drafted_by=drafted_by,
                pool=pool,
                temperature=temperature,
                penalised=penalised,
                with_schema=with_schema,
                draft_length=draft_length,
                batch=batch,
            )
            for dtype, drafted_by, pool in itertools.product(self.dtypes, self.drafted_by, pools)
            for with_schema, temperature, penalised in itertools.product(
                self.schemas, self.temperatures, self.penalties
            )
            for draft_length in self.draft_lengths
            for batch in (batch for placed, batch in self.placements if placed == pool)
            # Without a schema there is nothing to force.
            if with_schema or drafted_by != "grammar"
        ]


def _sample(cells: list[Cell], num_cells: int | None, generator: random.Random) -> list[Cell]:
    """That many of the cells, or as many as it takes that any two settings meet that meet in one of all.

    A greedy cover: each cell is one of those in which the most settings meet that have not met yet.
    """
    pairs_of = [set(itertools.combinations(enumerate(msgspec.structs.astuple(cell)), 2)) for cell in cells]
    missing = set().union(*pairs_of)
    left = list(range(len(cells)))
    generator.shuffle(left)
    chosen: set[int] = set()
    while left and (missing if num_cells is None else len(chosen) < num_cells):
        best = max(left, key=lambda i: len(pairs_of[i] & missing))
        left.remove(best)
        chosen.add(best)
        missing -= pairs_of[best]
    return [cell for i, cell in enumerate(cells) if i in chosen]
