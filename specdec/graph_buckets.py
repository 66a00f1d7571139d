"""GraphBucket: the sizes for which a pass is captured; a smaller pass is filled up to one of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Sequence as AbstractSequence
from typing import Final, NamedTuple

from specdec.speculative import MAX_DRAFT_TOKENS

_STEPS: Final = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Tokens. What fills a small pass up costs nothing, as a pass of few tokens takes as long as reading the weights; at
most half of a pass is filled up."""
_QUERIES_EACH: Final = 16
"""How many queries of a sequence the attention's tiles are made for where there are drafts. More are right as well."""


class GraphBucket(NamedTuple):
    num_tokens: int
    num_sequences: int
    num_rows: int
    """Of logits."""
    queries_each: int
    """How many tokens of a sequence attention is tiled for; not a limit."""

    def holds(self, *, num_tokens: int, num_sequences: int, num_rows: int) -> bool:
        return num_tokens <= self.num_tokens and num_sequences <= self.num_sequences and num_rows <= self.num_rows


class SamplingBucket(NamedTuple):
    """The sizes for which drawing and verification are captured."""

    num_rows: int
    num_sequences: int
    max_num_rows: int
    """Of a sequence."""

    def holds(self, *, num_sequences: int, max_num_rows: int) -> bool:
        return num_sequences <= self.num_sequences and max_num_rows <= self.max_num_rows


def target_buckets(*, max_tokens: int, max_sequences: int, max_rows: int) -> list[GraphBucket]:
    """For passes with logits of every token, as in decoding and verification, or of one a sequence. The largest first.

    Where there may be a row a token as well as a row a sequence, they are graphs of their own: a prompt of 512 tokens
    would be multiplied by the head for 511 rows that nobody asked for.
    """
    return _largest_first(
        GraphBucket(num_tokens, num_sequences, min(num_rows, max_rows), queries_each)
        for num_tokens, num_sequences, queries_each in _sizes(max_tokens, max_sequences)
        for num_rows in {num_tokens, num_sequences if num_tokens > max_sequences else num_tokens}
        # One row a sequence is the least.
        if num_sequences <= max_rows
    )


def draft_buckets(*, max_tokens: int, max_sequences: int) -> list[GraphBucket]:
    """For passes with logits of one token a sequence, which may feed a few more. The largest first."""
    return _largest_first(
        GraphBucket(num_tokens, num_sequences, num_sequences, queries_each)
        for num_tokens, num_sequences, queries_each in _sizes(max_tokens, max_sequences)
    )


def drafting_sizes(*, max_tokens: int, max_sequences: int) -> list[int]:
    """Numbers of sequences that a draft model draws for in a loop, a token each in every turn. The largest first."""
    return _steps(min(max_tokens, max_sequences))[::-1]


def sampling_buckets(*, max_sequences: int, max_rows: int) -> list[SamplingBucket]:
    """For the rows of a step's sequences, however they are shared among these. The largest first."""
    return [
        SamplingBucket(num_rows, min(num_rows, max_sequences), min(num_rows, 1 + MAX_DRAFT_TOKENS))
        for num_rows in reversed(_steps(max_rows))
    ]


def smallest_bucket(
    buckets: AbstractSequence[GraphBucket], *, num_tokens: int, num_sequences: int, num_rows: int
) -> GraphBucket | None:
    """Of those in ascending order the first that holds so much; None where none does."""
    return next(
        (
            bucket
            for bucket in buckets
            if bucket.holds(num_tokens=num_tokens, num_sequences=num_sequences, num_rows=num_rows)
        ),
        None,
    )


def _sizes(max_tokens: int, max_sequences: int) -> Iterator[tuple[int, int, int]]:
    """(tokens, sequences, queries of each): passes with a token a sequence, and passes with more.

    A pass that fits none of the second kind, for its many sequences, fits one of the first of no more tokens.
    """
    for num_tokens in _steps(min(max_tokens, max_sequences)):
        yield num_tokens, num_tokens, 1
    for num_tokens in _steps(max_tokens):
        if num_tokens > 1:
            num_sequences = max_sequences if num_tokens > max_sequences else num_tokens // 2
            yield num_tokens, num_sequences, min(num_tokens, _QUERIES_EACH)


def _steps(largest: int) -> list[int]:
    """Those below the largest, and the largest unless it is above all of them."""
    steps = [step for step in _STEPS if step < largest]
    return steps if largest > _STEPS[-1] else [*steps, largest]


def _largest_first(buckets: Iterable[GraphBucket]) -> list[GraphBucket]:
    return sorted(set(buckets), reverse=True)
