"""Logits to tokens on the device: as the Sampler does, by kernels.

What the Sampler says row by row, this says for all rows at once. What the host knows of them goes to the device in one
copy; bias, penalties and forbidden ends are edits of single logits there, and a grammar's mask is read where a token is
drawn. Nothing waits for the device before the tokens come back, but for drafts that are verified by what they were
drawn from.

R rows, V vocabulary (the logits' width, padded ids included).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from specdec.device_tensors import Parts, named_on_device, on_device
from specdec.grammars import MaskTable
from specdec.kernels.penalties import PenalisedRows, apply_penalties
from specdec.kernels.sample import sample
from specdec.kernels.token_mask import apply_token_mask
from specdec.mask_mirror import MaskMirror
from specdec.noise import Stream, noise_keys, noise_state, uniform
from specdec.per_sequence import PerSequence
from specdec.proposers.base import DraftDistribution
from specdec.row_group import RowBatch, RowGroup
from specdec.sampler import SamplingRow, distributions, divisor_of, invert, penalises, truncates
from specdec.sequence import Sequence
from specdec.token_lists import TokenLists

CHUNK_PROBS: Final = 2**21
"""Probabilities are worked out for as many rows at a time as have so many, or one by one."""
_RECORD: Final = np.dtype(
    [
        ("noise", np.uint64),
        ("top_p", np.float64),
        ("min_p", np.float64),
        ("temperature", np.float32),
        ("top_k", np.int32),
    ]
)


@dataclass(frozen=True, slots=True)
class _Constants:
    """What never changes of how a sequence's tokens are drawn."""

    record: bytes
    """Of _RECORD."""
    truncates: bool
    is_edited: bool
    """Whether a token's logit may have to be changed."""


class DeviceSampler:
    """Draws one token a row: the GPU path."""

    def __init__(self, mask_table: MaskTable, num_token_ids: int, device: torch.device) -> None:
        self._masks = MaskMirror(mask_table, device)
        self._lists = TokenLists(device)
        self._constants = PerSequence(self._constants_of)
        self.num_token_ids = num_token_ids
        """Ids at or above this are padding of the embedding and can never be drawn."""
        self._device = device

    def sample_drafts(
        self, logits: Tensor, rows: AbstractSequence[SamplingRow]
    ) -> list[tuple[int, DraftDistribution | None]]:
        batch = RowBatch([RowGroup.of(row) for row in rows])
        given = self.moved(self.parts(batch))
        by_distribution = [i for i, row in enumerate(rows) if row.draws_by_distribution]
        self.edit(logits, batch, given)
        self.mask(logits, batch, by_distribution)
        drawn = self.draw_given(logits, given)
        known: dict[int, DraftDistribution] = {}
        size = max(1, CHUNK_PROBS // logits.shape[1])
        for start in range(0, len(by_distribution), size):
            chunk = by_distribution[start : start + size]
            own = [rows[i] for i in chunk]
            (chosen,) = on_device(self._device, np.int64, chunk)
            probs = self.distributions(logits, own, chosen)
            (uniforms,) = on_device(self._device, np.float64, [uniform(row.noise_key(Stream.DRAFT)) for row in own])
            drawn.index_copy_(0, chosen, invert(probs, uniforms))
            kept = probs > 0.0
            sizes = kept.sum(dim=1).tolist()
            # Where they are among all of the chunk's; finding that out waits for the device.
            places = kept.view(-1).nonzero().squeeze(1)
            ids, own_probs = torch.split(places % probs.shape[1], sizes), torch.split(probs.view(-1)[places], sizes)
            known.update(zip(chunk, map(DraftDistribution, ids, own_probs), strict=True))
        return [(token_id, known.get(i)) for i, token_id in enumerate(drawn.tolist())]

    def shape(self, logits: Tensor, rows: AbstractSequence[SamplingRow]) -> None:
        """Everything before temperature, in place: logits fp32 [R, V], contiguous."""
        if not rows:
            return
        batch = RowBatch([RowGroup.of(row) for row in rows])
        self.edit(logits, batch, self.moved(self._edit_parts(batch, self._constants_of_groups(batch))))
        self.mask(logits, batch, range(len(rows)))

    def draw(self, logits: Tensor, rows: AbstractSequence[SamplingRow]) -> Tensor:
        """The target's own token at every row, of what `shape` left: logits fp32 [R, V] -> int64 [R]."""
        batch = RowBatch([RowGroup.of(row) for row in rows])
        return self.draw_given(logits, self.moved(self._draw_parts(batch, self._constants_of_groups(batch))))

    def parts(self, batch: RowBatch) -> Parts:
        """What `edit` and `draw_given` need to be given of the rows."""
        constants = self._constants_of_groups(batch)
        return self._draw_parts(batch, constants) | self._edit_parts(batch, constants) | self._mask_parts(batch)

    def _draw_parts(self, batch: RowBatch, constants: AbstractSequence[_Constants]) -> Parts:
        """What is drawn by, but for masks."""
        of_groups = np.frombuffer(b"".join([each.record for each in constants]), _RECORD)
        records = of_groups if batch.is_single else np.repeat(of_groups, batch.sizes)
        parts: Parts = {
            "keys": (np.int64, noise_keys(records["noise"], batch.positions(), Stream.TOKEN).ravel()),
            "temperatures": (np.float32, records["temperature"]),
        }
        if any(each.truncates for each in constants):
            parts["top_k"] = (np.int32, records["top_k"])
            parts["top_p"] = (np.float64, records["top_p"])
            parts["min_p"] = (np.float64, records["min_p"])
        return parts

    def _mask_parts(self, batch: RowBatch) -> Parts:
        """The rows' masks: nothing, where no row is constrained."""
        mask_rows = batch.mask_rows()
        if mask_rows.count(None) == len(mask_rows):
            return {}
        row_ids = [row or 0 for row in mask_rows]
        constrained = [row is not None for row in mask_rows]
        parts = self._masks.parts(row for row in mask_rows if row is not None)
        return parts | {"mask_row_ids": (np.int64, row_ids), "is_constrained": (np.bool_, constrained)}

    def _edit_parts(self, batch: RowBatch, constants: AbstractSequence[_Constants]) -> Parts:
        """What `edit` needs: nothing, where no row is edited."""
        if not any(each.is_edited for each in constants):
            return {}
        return (
            batch.draft_parts()
            | self._lists.parts([group.sequence for group in batch.groups])
            | {
                "row_groups": (np.int32, batch.group_ids()),
                "draft_starts": (np.int32, batch.draft_starts()),
                "num_preceding": (np.int32, batch.num_preceding()),
            }
        )

    def moved(self, parts: Parts) -> dict[str, Tensor]:
        """All parts on the device, in one copy, and what is kept there of lists and masks brought up to date."""
        given = named_on_device(self._device, parts)
        self.write(given)
        return given

    def write(self, given: Mapping[str, Tensor]) -> None:
        """Bring what is kept of lists and masks up to date, by what `parts` said of them."""
        self._lists.write(given)
        self._masks.write(given)

    @property
    def mask_rows(self) -> Tensor:
        """int32 [N, W]: the mirror of the mask table; another tensor once it has grown."""
        return self._masks.memory

    def edit(self, logits: Tensor, batch: RowBatch, given: Mapping[str, Tensor]) -> None:
        """Bias, penalties, and ends that cannot come yet, in place: logits fp32 [R, V]."""
        if "row_groups" not in given:
            return
        seen, bias, forbidden = self._lists.tables(given, len(batch.groups))
        rows = PenalisedRows(given["row_groups"], given["draft_starts"], given["num_preceding"], given["draft_ids"])
        apply_penalties(
            logits, rows, max_num_preceding=batch.max_num_preceding, seen=seen, bias=bias, forbidden=forbidden
        )

    def mask(self, logits: Tensor, batch: RowBatch, rows: AbstractSequence[int]) -> None:
        """What `draw_given` leaves out on its way, for whoever looks at some rows' logits in other ways; in place.

        logits fp32 [R, V].
        """
        if not rows:
            return
        logits[:, self.num_token_ids :] = -math.inf
        mask_rows = batch.mask_rows()
        constrained = [(i, row_id) for i in rows if (row_id := mask_rows[i]) is not None]
        if not constrained:
            return
        row_ids = [row_id for _, row_id in constrained]
        masked: Parts = {"masked": (np.int64, [i for i, _ in constrained]), "mask_row_ids": (np.int64, row_ids)}
        given = self.moved(masked | self._masks.parts(row_ids))
        apply_token_mask(logits, self._masks.memory, given["mask_row_ids"], rows=given["masked"])

    def draw_given(self, logits: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        """The target's own token at every row, of edited logits fp32 [R, V] -> int64 [R]."""
        output = torch.empty(logits.shape[0], dtype=torch.int64, device=self._device)
        sample(
            logits,
            given["keys"].view(-1, 2),
            given["temperatures"],
            output,
            num_token_ids=self.num_token_ids,
            top_k=given.get("top_k"),
            top_p=given.get("top_p"),
            min_p=given.get("min_p"),
            mask_rows=self._masks.memory if "mask_row_ids" in given else None,
            mask_row_ids=given.get("mask_row_ids"),
            is_constrained=given.get("is_constrained"),
        )
        return output

    def distributions(self, logits: Tensor, rows: AbstractSequence[SamplingRow], chosen: Tensor) -> Tensor:
        """What `draw` draws from, at temperatures above 0: probabilities fp64 [len(rows), V] of the chosen rows.

        logits fp32 [R, V], edited, and masked where they are chosen; `rows` are the chosen ones, int64 [len(rows)].
        """
        (divisors,) = on_device(self._device, np.float32, [divisor_of(row.sequence.params.temperature) for row in rows])
        size = max(1, CHUNK_PROBS // logits.shape[1])
        probs = torch.empty(len(rows), logits.shape[1], dtype=torch.float64, device=self._device)
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            probs[part] = distributions(logits.index_select(0, chosen[part]) / divisors[part, None], rows[part])
        return probs

    def _constants_of_groups(self, batch: RowBatch) -> list[_Constants]:
        constants = self._constants
        return [constants[group.sequence] for group in batch.groups]

    def _constants_of(self, sequence: Sequence) -> _Constants:
        params = sequence.params
        record = np.zeros((), _RECORD)
        record["noise"] = noise_state(sequence.seed, sequence.choice_index)
        record["temperature"] = 0.0 if params.temperature == 0.0 else divisor_of(params.temperature)
        record["top_k"] = min(params.top_k, self.num_token_ids)
        record["top_p"] = params.top_p
        record["min_p"] = params.min_p
        is_edited = penalises(params) or bool(params.logit_bias) or params.min_tokens > 0
        return _Constants(record.tobytes(), truncates(params), is_edited)
