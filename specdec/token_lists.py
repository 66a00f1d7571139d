"""TokenLists: which tokens each sequence has seen, how often, and which are biased or forbidden, kept on the device.

What `apply_penalties` reads. A list is sent once; after that a step sends what its tokens changed. The lists of all
sequences lie in one memory, each in an area with room to grow; one that has outgrown its area gets another, twice as
large. A preempted sequence keeps its tokens, and so its lists.

E places, B sequences.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specdec.device_tensors import Parts
from specdec.kernels.penalties import ForbiddenTokens, LogitBias, SeenTokens
from specdec.per_sequence import PerSequence
from specdec.sampler import penalises
from specdec.sequence import Sequence

_MIN_PLACES: Final = 2**16
"""From the start: half a megabyte."""
_MIN_AREA: Final = 64
"""Places, a power of two as all areas are."""
_ROW_MULTIPLE: Final = 16
"""Numbers, at a multiple of which each row of a table begins: Triton compiles anew for a less aligned pointer."""


@dataclass(slots=True)
class _Area:
    """Where a list is, and how much of it."""

    start: int = 0
    capacity: int = 0
    size: int = 0


@dataclass(slots=True)
class _Lists:
    """One sequence's."""

    seen: _Area = field(default_factory=_Area)
    bias: _Area = field(default_factory=_Area)
    forbidden: _Area = field(default_factory=_Area)
    penalties: tuple[float, float, float] = (1.0, 0.0, 0.0)
    """Repetition, frequency, presence."""
    num_counted: int = 0
    """Tokens of the sequence that `counts` has."""
    indices: dict[int, int] = field(default_factory=dict)
    """Of each token in the list of those seen."""
    counts: list[int] = field(default_factory=list)
    """In the output."""


class TokenLists:
    """Owns the memory. A sequence's lists are up to date once they were listed and what they changed was written."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._memory = torch.empty(2, _MIN_PLACES, dtype=torch.int32, device=device)
        """[2, E]: token ids, and beside them counts, or the bits of biases."""
        self._num_taken = 0
        """Places from the start of the memory on."""
        self._free: dict[int, list[int]] = {}
        """Areas that were given back: their starts by their capacity."""
        self._lists = PerSequence(self._lists_of)
        self._unwritten: dict[int, tuple[int, int]] = {}
        """What places are to hold: kept until it was written, for a step may fail before."""

    @property
    def num_places(self) -> int:
        """That are taken, or were."""
        return self._num_taken

    def parts(self, sequences: AbstractSequence[Sequence]) -> Parts:
        """What `tables` and `write` need of these sequences, with the tokens that they have by now."""
        for lists in self._take_forgotten():
            for area in (lists.seen, lists.bias, lists.forbidden):
                self._give_back(area)
        every = [self._lists[sequence] for sequence in sequences]
        for sequence, lists in zip(sequences, every, strict=True):
            if sequence.num_tokens != lists.num_counted and penalises(sequence.params):
                self._count(sequence, lists)
        whole = np.zeros((7, -(-len(every) // _ROW_MULTIPLE) * _ROW_MULTIPLE), np.int32)
        whole[:6, : len(every)] = np.array(
            [[number for area in (x.seen, x.bias, x.forbidden) for number in (area.start, area.size)] for x in every]
        ).T
        whole[6, : len(every)] = [max(0, each.params.min_tokens - each.num_output_tokens) for each in sequences]
        penalties = np.zeros((3, whole.shape[1]), np.float32)
        penalties[:, : len(every)] = np.array([lists.penalties for lists in every], np.float32).T
        parts: Parts = {"list_numbers": (np.int32, whole.ravel()), "penalties": (np.float32, penalties.ravel())}
        if self._unwritten:
            changes = np.array(list(self._unwritten.values()), np.int32)
            parts["places"] = (np.int64, list(self._unwritten))
            parts["entries"] = (np.int32, changes.T.ravel())
        return parts

    def write(self, given: Mapping[str, Tensor]) -> None:
        """Put what `parts` found changed into the memory."""
        if "places" in given:
            self._memory.index_copy_(1, given["places"], given["entries"].view(2, -1))
            self._unwritten.clear()

    def tables(self, given: Mapping[str, Tensor], num_sequences: int) -> tuple[SeenTokens, LogitBias, ForbiddenTokens]:
        """What `apply_penalties` takes, of the sequences that `parts` was given.

        All of it, also where no sequence has some of it: an empty list costs less than a kernel compiled without.
        """
        numbers = given["list_numbers"].view(7, -1)
        seen_starts, seen_sizes, bias_starts, bias_sizes, forbidden_starts, forbidden_sizes, num_missing = (
            numbers[i, :num_sequences] for i in range(7)
        )
        penalties = given["penalties"].view(3, -1)
        repetition, frequency, presence = (penalties[i, :num_sequences] for i in range(3))
        token_ids, values = self._memory.unbind(0)
        return (
            SeenTokens(seen_starts, seen_sizes, token_ids, values, repetition, frequency, presence),
            LogitBias(bias_starts, bias_sizes, token_ids, values.view(torch.float32)),
            ForbiddenTokens(forbidden_starts, forbidden_sizes, token_ids, num_missing),
        )

    def _lists_of(self, sequence: Sequence) -> _Lists:
        """What never changes of them is listed here."""
        params, lists = sequence.params, _Lists()
        if penalises(params):
            lists.penalties = (params.repetition_penalty, params.frequency_penalty, params.presence_penalty)
            prompt = dict.fromkeys(sequence.token_ids[: sequence.num_prompt_tokens])
            lists.indices = {token_id: index for index, token_id in enumerate(prompt)}
            lists.counts = [0] * len(prompt)
            lists.num_counted = sequence.num_prompt_tokens
            self._grow(lists)
        self._list(lists.bias, params.logit_bias, np.array(list(params.logit_bias.values()), np.float32))
        if params.min_tokens > 0:
            forbidden = sequence.eos_token_ids.union(params.stop_token_ids)
            self._list(lists.forbidden, forbidden, np.zeros(len(forbidden), np.float32))
        return lists

    def _count(self, sequence: Sequence, lists: _Lists) -> None:
        """Count the tokens that came; they are the output's, for `_lists_of` has those of the prompt."""
        assert sequence.num_tokens >= lists.num_counted, "no token of a sequence is ever taken back"
        indices, counts, changed = lists.indices, lists.counts, dict[int, int]()
        for token_id in sequence.token_ids[lists.num_counted :]:
            index = indices.setdefault(token_id, len(counts))
            if index == len(counts):
                counts.append(0)
            counts[index] += 1
            changed[index] = token_id
        lists.num_counted = sequence.num_tokens
        if len(counts) > lists.seen.capacity:
            self._grow(lists)
        else:
            lists.seen.size = len(counts)
            start = lists.seen.start
            self._unwritten.update((start + index, (token_id, counts[index])) for index, token_id in changed.items())

    def _grow(self, lists: _Lists) -> None:
        """Give those seen a larger area, and list all of them there."""
        self._give_back(lists.seen)
        self._take(lists.seen, 2 * len(lists.counts))
        self._fill(lists.seen, zip(lists.indices, lists.counts, strict=True))

    def _list(self, area: _Area, token_ids: Iterable[int], values: NDArray[np.float32]) -> None:
        if len(values):
            self._take(area, len(values))
            self._fill(area, zip(token_ids, values.view(np.int32).tolist(), strict=True))

    def _fill(self, area: _Area, entries: Iterable[tuple[int, int]]) -> None:
        every = dict(enumerate(entries, area.start))
        self._unwritten |= every
        area.size = len(every)

    def _take(self, area: _Area, size: int) -> None:
        area.capacity = max(_MIN_AREA, 1 << (size - 1).bit_length())
        free = self._free.get(area.capacity)
        if free:
            area.start = free.pop()
            return
        area.start = self._num_taken
        self._num_taken += area.capacity
        num_places = self._memory.shape[1]
        if self._num_taken > num_places:
            larger = torch.empty(2, max(self._num_taken, 2 * num_places), dtype=torch.int32, device=self._device)
            larger[:, :num_places] = self._memory
            self._memory = larger

    def _give_back(self, area: _Area) -> None:
        if area.capacity:
            self._free.setdefault(area.capacity, []).append(area.start)

    def _take_forgotten(self) -> list[_Lists]:
        forgotten, self._lists.forgotten = self._lists.forgotten, []
        return forgotten
