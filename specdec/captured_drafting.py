"""CapturedDrafting: a draft model's loop (launched_drafting.py) as graphs, replayed with no host in between.

Of each size and kind there are two. One draws the first tokens, from the logits of whatever pass came before. The
other is a turn of the loop: it brings positions, slots and grammars behind the tokens that were just drawn, feeds them,
and draws from the logits of that pass. Which turn it is, the device counts. What all turns need of the host is sent by
one copy before the first. A sequence that has all its tokens is nobody's in the turns that are left, as is whatever
fills a size up: it is written nowhere, attends to nothing, and its logits are not read.

The loop always knows masks, also where no sequence has one, which the kernels skip: half as many graphs. They read the
masks where the mirror of the mask table has them. That moves when it grows, and then all graphs are captured anew when
they are next needed.

S positions there is room for, T of a loop; W sequences of a graph, B of a loop; M blocks of the longest context.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable
from collections.abc import Sequence as AbstractSequence
from functools import partial
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specdec.attention import Span
from specdec.device_tensors import Parts
from specdec.fixed_inputs import FixedInputs, InputPart, num_bytes_of
from specdec.graph_capture import GraphCapture, Work, first_cause
from specdec.kernels.draft_advance import DraftRows, draft_advance
from specdec.kernels.grammar_advance import grammar_advance
from specdec.kernels.sample import sample
from specdec.kernels.token_groups import NOBODY
from specdec.kv_cache import KVCache
from specdec.launched_drafting import CUTS, DraftLoop, DrawnLoop, widened
from specdec.model_pass import run_pass
from specdec.models.llama import LlamaModel
from specdec.speculative import MAX_DRAFT_TOKENS
from specdec.transition_mirror import Transitions
from specdec.triton_attention import TritonAttention, TritonPlan

_WHOLE_TABLES_BYTES: Final = 2**15
"""As of passes (captured_passes.py): larger block tables are spread out on the device."""

logger = logging.getLogger(__name__)


class LoopGraphs(NamedTuple):
    """What two graphs are for."""

    num_sequences: int
    truncates: bool
    """Whether tokens are cut by top-k, top-p or min-p; kernels that know of none are faster."""


def graphs_of(sizes: AbstractSequence[int]) -> list[LoopGraphs]:
    """Of numbers of sequences, in their order."""
    return [LoopGraphs(size, truncates) for size in sizes for truncates in (True, False)]


class CapturedDrafting:
    """Of one model, whose logits lie in one place."""

    def __init__(
        self,
        model: LlamaModel,
        cache: KVCache,
        attention: TritonAttention,
        logits: Tensor,
        sizes: AbstractSequence[int],
        new_capture: Callable[[], GraphCapture],
        *,
        num_token_ids: int,
        max_model_len: int,
    ) -> None:
        """Takes the memory of everything but the graphs, for the largest of the numbers of sequences.

        logits fp32, as many rows [V] as that, held from now on. Ids from num_token_ids on are padding. `new_capture` is
        asked once more whenever all graphs are let go.
        """
        config, device = model.config, model.device
        self._model = model
        self._cache = cache
        self._attention = attention
        self._logits = logits
        self._new_capture = new_capture
        self._capture = new_capture()
        self._num_token_ids = num_token_ids
        self._max_model_len = max_model_len
        self._ascending = sorted(sizes)
        most = self._ascending[-1]
        self._width = -(-max_model_len // cache.block_size)
        self._block_tables = torch.zeros(most, self._width, dtype=torch.int32, device=device)
        """[W, M], where tables are spread out."""
        self._attended = torch.zeros(
            most, config.num_attention_heads, config.head_dim, dtype=model.dtype, device=device
        )
        """Attention leaves rows of nobody as they are."""
        # What the device works out by itself.
        self._every_row = torch.arange(most, dtype=torch.int64, device=device)
        self._token_ids, self._slot_mapping = (torch.zeros(most, dtype=torch.int64, device=device) for _ in range(2))
        self._row_keys = torch.zeros(most, 2, dtype=torch.int64, device=device)
        self._query_starts = torch.zeros(most + 1, dtype=torch.int32, device=device)
        self._drawn = torch.zeros(MAX_DRAFT_TOKENS * most, dtype=torch.int64, device=device)
        parts = {each: self._parts(each) for each in graphs_of(sizes)}
        # With room for the tables that are spread out, which are none of the parts.
        tables = {"block_tables": InputPart(np.int32, most * self._width)}
        self._inputs = FixedInputs(device, max(num_bytes_of(own | tables) for own in parts.values()))
        self._layouts = {each: self._inputs.layout(own) for each, own in parts.items()}
        self._rows = {each: self._rows_of(each) for each in self._layouts}
        self._transitions: Transitions | None = None
        """What the graphs read."""
        self._replays: dict[LoopGraphs, tuple[Work, Work]] = {}
        self._is_refused = False
        """Whether the device refused graphs that had to be captured anew."""

    def __len__(self) -> int:
        return len(self._replays)

    @torch.inference_mode()
    def capture(self, graphs: LoopGraphs, transitions: Transitions) -> None:
        """Draw for nobody, and keep it. Raises RuntimeError where the device refuses."""
        self._read(transitions)
        layout = self._layouts[graphs]
        self._inputs.send(layout, {name: (part.dtype, []) for name, part in layout.parts.items()})
        rows = self._rows[graphs]
        first = self._capture.capture(partial(self._draw, graphs, rows.keys[0], transitions.mask_rows))
        turn = self._capture.capture(partial(self._turn, graphs, rows, self._plan(rows), transitions))
        self._replays[graphs] = first, turn

    def send(
        self,
        spans: AbstractSequence[Span],
        num_tokens: AbstractSequence[int],
        keys: NDArray[np.int64],
        parts: Parts,
        transitions: Transitions,
    ) -> DraftLoop | None:
        """As of LaunchedDrafting; None, and nothing is sent, where no graphs fit.

        The loop is to run from logits that are where they were said to be.
        """
        index = bisect_left(self._ascending, len(spans))
        if index == len(self._ascending) or num_tokens[0] > MAX_DRAFT_TOKENS:
            return None
        # The last token is fed to no pass.
        lengths = [span.context_len + count - 1 for span, count in zip(spans, num_tokens, strict=True)]
        if max(lengths) > self._max_model_len:
            return None
        graphs = LoopGraphs(self._ascending[index], "top_k" in parts)
        # What is captured runs, so that it is to run before the numbers are there.
        if not self._are_captured(graphs, transitions):
            return None
        layout = self._layouts[graphs]
        context_lens = np.array([span.context_len for span in spans], np.int64)
        tables = self._tables_of(spans, lengths, is_whole="block_tables" in layout.parts)
        own: Parts = {
            "num_tokens": (np.int32, num_tokens),
            "num_drawn": (np.int32, []),
            "positions": (np.int64, context_lens - 1),
            "context_lens": (np.int32, context_lens),
            "keys": (np.int64, widened(keys, graphs.num_sequences).ravel()),
            "block_tables": (np.int32, tables.ravel()),
        }
        others = self._inputs.send(layout, own | parts)
        if others:
            self._block_tables[: tables.shape[0], : tables.shape[1]] = others["block_tables"].view(tables.shape)
        return partial(self._run, graphs, num_tokens[0])

    def _run(self, graphs: LoopGraphs, num_positions: int, logits: Tensor) -> DrawnLoop:
        assert logits.data_ptr() == self._logits.data_ptr(), "the pass before leaves its logits where the graphs' do"
        first, turn = self._replays[graphs]
        first()
        for _ in range(num_positions - 1):
            self.take_turn(turn)
        rows = self._rows[graphs]
        return DrawnLoop(rows.drawn[: num_positions - 1], rows.token_ids, self._layouts[graphs].tensors["remaining"])

    def take_turn(self, turn: Work) -> None:
        """The draft model's pass over what was just drawn, with what goes before and the draw behind it."""
        turn()

    def _turn(self, graphs: LoopGraphs, rows: DraftRows, plan: TritonPlan, transitions: Transitions) -> None:
        given = self._layouts[graphs].tensors
        draft_advance(rows, block_size=self._cache.block_size)
        grammar_advance(
            given["states"],
            rows.token_ids,
            given["remaining"],
            rows.is_known,
            given["mask_row_ids"],
            transitions.table,
        )
        run_pass(
            self._model,
            self._cache,
            self._attention,
            plan,
            token_ids=rows.token_ids,
            positions=rows.positions,
            logits_rows=self._every_row[: graphs.num_sequences],
            logits=self._logits[: graphs.num_sequences],
        )
        self._draw(graphs, rows.row_keys, transitions.mask_rows)

    def _draw(self, graphs: LoopGraphs, keys: Tensor, mask_rows: Tensor) -> None:
        """keys int64 [W, 2], mask_rows int32 [rows, words]"""
        given, size = self._layouts[graphs].tensors, graphs.num_sequences
        sample(
            self._logits[:size],
            keys,
            given["temperatures"],
            self._token_ids[:size],
            num_token_ids=self._num_token_ids,
            **{name: given.get(name) for name in CUTS},
            mask_rows=mask_rows,
            mask_row_ids=given["mask_row_ids"],
            is_constrained=given["is_masked"],
        )

    def _rows_of(self, graphs: LoopGraphs) -> DraftRows:
        given, size = self._layouts[graphs].tensors, graphs.num_sequences
        if "block_tables" in given:
            block_tables = given["block_tables"].view(size, self._width)
        else:
            block_tables = self._block_tables[:size]
        return DraftRows(
            token_ids=self._token_ids[:size],
            num_tokens=given["num_tokens"],
            num_drawn=given["num_drawn"],
            drawn=self._drawn[: MAX_DRAFT_TOKENS * size].view(MAX_DRAFT_TOKENS, size),
            keys=given["keys"].view(MAX_DRAFT_TOKENS, size, 2),
            row_keys=self._row_keys[:size],
            temperatures=given["temperatures"],
            is_known=given["is_known"],
            positions=given["positions"],
            context_lens=given["context_lens"],
            query_starts=self._query_starts[: size + 1],
            slot_mapping=self._slot_mapping[:size],
            block_tables=block_tables,
        )

    def _plan(self, rows: DraftRows) -> TritonPlan:
        """Of one token a sequence, in contexts up to the longest."""
        config = self._model.config
        return TritonPlan(
            slot_mapping=rows.slot_mapping,
            block_tables=rows.block_tables,
            query_starts=rows.query_starts,
            context_lens=rows.context_lens,
            max_num_queries=1,
            max_context_len=self._max_model_len,
            tiling=self._attention.tiling(config.num_attention_heads // config.num_key_value_heads),
            output=self._attended[: len(rows.token_ids)],
        )

    def _are_captured(self, graphs: LoopGraphs, transitions: Transitions) -> bool:
        """Whether there are graphs that read these; where they cannot be made, the log says why, once."""
        self._read(transitions)
        if graphs in self._replays:
            return True
        if self._is_refused:
            return False
        try:
            self.capture(graphs, transitions)
        except RuntimeError as error:
            self._is_refused = True
            cause = first_cause(error)
            logger.warning(
                "drafting is launched kernel by kernel from now on, which is slower: the mask table's mirror has "
                "grown, and a graph that reads it where it is now could not be captured (%s: %s)",
                type(cause).__name__,
                cause,
            )
            return False
        return True

    def _read(self, transitions: Transitions) -> None:
        """Let go of graphs that read others, in memory where nobody writes any more."""
        before = self._transitions
        if before is not None and _are_same(before, transitions):
            return
        self._transitions = transitions
        if not self._replays:
            return
        if transitions.mask_rows.is_cuda:
            # One of them may be under way.
            torch.cuda.synchronize(transitions.mask_rows.device)
        self._replays.clear()
        # Memory that no graph has any more is given back, and cannot be captured in again.
        self._capture = self._new_capture()

    def _tables_of(
        self, spans: AbstractSequence[Span], lengths: AbstractSequence[int], *, is_whole: bool
    ) -> NDArray[np.int32]:
        """int32 [B, M], or as wide as the longest of the lengths asks for: blocks of so many tokens of each."""
        counts = [-(-length // self._cache.block_size) for length in lengths]
        tables = np.zeros((len(spans), self._width if is_whole else max(counts)), dtype=np.int32)
        for row, span, count in zip(tables, spans, counts, strict=True):
            row[:count] = span.block_table[:count]
        return tables

    def _parts(self, graphs: LoopGraphs) -> dict[str, InputPart]:
        """By the names of DraftRows, and of what `sample` and `grammar_advance` take."""
        size = graphs.num_sequences
        parts = {
            "num_tokens": InputPart(np.int32, size),
            "num_drawn": InputPart(np.int32, size),
            "positions": InputPart(np.int64, size),
            "context_lens": InputPart(np.int32, size),
            "keys": InputPart(np.int64, 2 * MAX_DRAFT_TOKENS * size),
            "temperatures": InputPart(np.float32, size, fill=NOBODY),
            "states": InputPart(np.int32, size),
            "remaining": InputPart(np.int32, size),
            "is_known": InputPart(np.bool_, size),
            "mask_row_ids": InputPart(np.int64, size),
            "is_masked": InputPart(np.bool_, size),
        }
        if graphs.truncates:
            parts["top_k"] = InputPart(np.int32, size)
            parts["top_p"] = InputPart(np.float64, size, fill=1.0)
            parts["min_p"] = InputPart(np.float64, size)
        num_entries = size * self._width
        if 4 * num_entries <= _WHOLE_TABLES_BYTES:
            parts["block_tables"] = InputPart(np.int32, num_entries)
        return parts


def _are_same(one: Transitions, other: Transitions) -> bool:
    return one.mask_rows is other.mask_rows and all(
        own is each for own, each in zip(one.table, other.table, strict=True)
    )
