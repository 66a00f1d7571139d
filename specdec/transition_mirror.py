"""TransitionMirror: the transitions of grammars that the host has taken, on the device, where drafts follow them.

The host numbers the states that it comes across and puts each transition between two of them into a table of fixed size
(kernels/grammar_advance.py), with each state's row of the mask table and how much of a budget that row takes for
granted. What changed is copied before the next use, in one copy. States are held weakly: what a dropped grammar leaves
are numbers that nothing leads to, and where numbers are used up, all begins anew.

N states, B sequences.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as AbstractSequence
from typing import Final, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from specdec.device_tensors import together_on_device
from specdec.grammars import Grammar, GrammarState, MaskTable
from specdec.kernels.grammar_advance import FALLBACK_ROW, NEVER, TransitionTable, key_of
from specdec.mask_mirror import MaskMirror

NUM_BUCKETS: Final = 2**13
"""Of eight transitions and 96 bytes each: 786 kB."""
NUM_STATES: Final = 2**15
"""12 bytes each on the device: 393 kB."""


class Transitions(NamedTuple):
    """On the device, as they are now."""

    table: TransitionTable
    mask_rows: Tensor
    """int32 [rows, words]: the mask table's rows that the table's states have, and those that were asked for"""


class TransitionMirror:
    """Of all grammars over one mask table."""

    def __init__(
        self,
        mask_table: MaskTable,
        device: torch.device,
        *,
        num_buckets: int = NUM_BUCKETS,
        num_states: int = NUM_STATES,
    ) -> None:
        """num_buckets is a power of 2. num_states, at least 2, is more than the sequences that draft together."""
        self._mask_table = mask_table
        self._masks = MaskMirror(mask_table, device)
        self._device = device
        self._host = TransitionTable.empty(num_buckets, num_states, torch.device("cpu"))
        self._table = TransitionTable.empty(num_buckets, num_states, device)
        self._numbers: WeakKeyDictionary[GrammarState, int] = WeakKeyDictionary()
        self._num_numbered = 0
        self._successors: dict[int, int] = {}
        """Of each transition in the host's table, by its key."""
        self._stamps: dict[int, int] = {}
        """Of each row of the mask table that a state has, as it was then."""
        self._states_of_row: dict[int, list[int]] = {}
        self._num_overwritten = mask_table.num_overwritten
        self._has_row = np.zeros(num_states, dtype=np.bool_)
        self._changed_buckets: set[int] = set()
        self._changed_states: set[int] = set()
        self._is_cleared = False
        """Whether the device's table has what the host's has not any more."""

    @property
    def num_bytes(self) -> int:
        """On the device, without mask rows."""
        return sum(tensor.nbytes for tensor in self._table)

    def put(self, grammar: Grammar, state: GrammarState, token_id: int, successor: GrammarState) -> bool:
        """Have the transition from the next use on; whether the device lacked it.

        Left out is one that ends the text, which nothing follows, and one into a state whose mask depends on the tokens
        left, however many they are.
        """
        if grammar.is_terminated(successor):
            return False
        self._make_room(2)
        start, end = self._number(state), self._number(successor)
        had_row = bool(self._has_row[end])
        if not had_row and not self._find_row(grammar, successor, end):
            return True
        key = key_of(start, token_id)
        # An equal state that was forgotten meanwhile has another number.
        if self._successors.get(key) == end:
            return not had_row
        bucket, lost = self._host.put(start, token_id, end)
        self._successors[key] = end
        if lost is not None:
            del self._successors[lost]
        self._changed_buckets.add(bucket)
        return True

    def number(self, states: AbstractSequence[GrammarState]) -> list[int]:
        """The states' numbers in the table, valid until the next call of this or of `put`."""
        self._make_room(len(states))
        return [self._number(state) for state in states]

    def on_device(self, mask_rows: Iterable[int]) -> Transitions:
        """All that was put, and these rows of the mask table."""
        self._forget_overwritten_rows()
        if self._is_cleared:
            self._table.clear()
            self._is_cleared = False
        changed = sorted(self._changed_states)
        self._copy(sorted(self._changed_buckets), changed)
        self._changed_buckets.clear()
        self._changed_states.clear()
        own = self._host.mask_rows[torch.tensor(changed, dtype=torch.int64, device="cpu")].tolist()
        return Transitions(self._table, self._masks.rows([FALLBACK_ROW, *own, *mask_rows]))

    def _number(self, state: GrammarState) -> int:
        number = self._numbers.get(state)
        if number is None:
            number = self._numbers[state] = self._num_numbered
            self._num_numbered += 1
        return number

    def _make_room(self, num_states: int) -> None:
        if self._num_numbered + num_states <= len(self._has_row):
            return
        self._numbers.clear()
        self._num_numbered = 0
        self._successors.clear()
        self._stamps.clear()
        self._states_of_row.clear()
        self._has_row.fill(False)
        self._changed_buckets.clear()
        self._changed_states.clear()
        self._host.clear()
        self._is_cleared = True

    def _find_row(self, grammar: Grammar, state: GrammarState, number: int) -> bool:
        """Whether the state has a row that enough of a budget leaves as it is."""
        unguarded_from = grammar.unguarded_from(state)
        if unguarded_from is None:
            return False
        row = grammar.mask_row(state)
        stamp = self._mask_table.stamps[row]
        if self._stamps.get(row) != stamp:
            # What other states had of it is gone.
            self._forget_row(row)
            self._stamps[row] = stamp
        self._states_of_row.setdefault(row, []).append(number)
        self._host.mask_rows[number] = row
        # One of what remains goes to the token that the row is for.
        self._host.least_remaining[number] = unguarded_from + 1
        self._has_row[number] = True
        self._changed_states.add(number)
        return True

    def _forget_overwritten_rows(self) -> None:
        """What the mask table has overwritten is no state's row any more, until the host comes across the state."""
        if self._mask_table.num_overwritten == self._num_overwritten:
            return
        self._num_overwritten = self._mask_table.num_overwritten
        stamps = self._mask_table.stamps
        for row in [row for row, stamp in self._stamps.items() if stamps[row] != stamp]:
            self._forget_row(row)

    def _forget_row(self, row: int) -> None:
        self._stamps.pop(row, None)
        for number in self._states_of_row.pop(row, ()):
            self._host.mask_rows[number] = FALLBACK_ROW
            self._host.least_remaining[number] = NEVER
            self._has_row[number] = False
            self._changed_states.add(number)

    def _copy(self, buckets: list[int], states: list[int]) -> None:
        if not buckets and not states:
            return
        host, device = self._host, self._table
        own_buckets, own_states = (torch.tensor(each, dtype=torch.int64, device="cpu") for each in (buckets, states))
        bucket_ids, keys, successors, numbers, mask_rows, least_remaining = together_on_device(
            self._device,
            (np.int64, buckets),
            (np.int64, host.keys[own_buckets].flatten().numpy()),
            (np.int32, host.successors[own_buckets].flatten().numpy()),
            (np.int64, states),
            (np.int64, host.mask_rows[own_states].numpy()),
            (np.int32, host.least_remaining[own_states].numpy()),
        )
        shape = len(buckets), device.keys.shape[1]
        device.keys.index_copy_(0, bucket_ids, keys.view(shape))
        device.successors.index_copy_(0, bucket_ids, successors.view(shape))
        device.mask_rows.index_copy_(0, numbers, mask_rows)
        device.least_remaining.index_copy_(0, numbers, least_remaining)
