"""StopChecker: where an answer ends, and which of its text may be shown already."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass

from specdec.request import FinishReason
from specdec.sequence import Sequence

_WHITESPACE = " \t\n\r"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of the tokens offered to a sequence."""

    num_emitted: int
    text: str
    finish_reason: FinishReason | None
    stop_reason: str | int | None


class StopChecker:
    """Appends drawn tokens to a sequence until one ends it.

    In this order, per token: the end-of-sequence token, a stop token id, a stop string, a grammar that allows nothing
    but the end, the token limit. Calls that follow free text have no stop strings, and end before the limit.
    """

    def accept(self, sequence: Sequence, token_ids: AbstractSequence[int]) -> Verdict:
        """Append tokens up to the one that ends the sequence; the grammar state moves along."""
        pieces: list[str] = []
        for i, token_id in enumerate(token_ids):
            sequence.token_ids.append(token_id)
            if sequence.grammar is not None:
                assert sequence.grammar_state is not None, "a constrained sequence has a state"
                sequence.grammar_state = sequence.grammar.advance(sequence.grammar_state, token_id)
                assert sequence.grammar_state is not None, "a drawn token was allowed by its mask"
            finish_reason, stop_reason = self._check(sequence, token_id, pieces)
            if finish_reason is not None:
                if stop_reason is None or isinstance(stop_reason, int):
                    # A code point that the answer breaks off in is text only now.
                    text = sequence.held_text + sequence.detokenizer.flush()
                    if not sequence.is_in_calls and (found := first_stop(text, sequence.params.stop)) is not None:
                        position, stop_reason = found
                        text, finish_reason = text[:position], FinishReason.STOP
                    pieces.append(text)
                return Verdict(i + 1, "".join(pieces), finish_reason, stop_reason)
        return Verdict(len(token_ids), "".join(pieces), None, None)

    @staticmethod
    def _check(sequence: Sequence, token_id: int, pieces: list[str]) -> tuple[FinishReason | None, str | int | None]:
        """Move the token's text to `pieces` or to the held text; tell whether and why the answer ends."""
        params = sequence.params
        if token_id in sequence.eos_token_ids and not params.ignore_eos:
            return FinishReason.STOP, None
        may_stop = sequence.num_output_tokens >= params.min_tokens
        if may_stop and token_id in params.stop_token_ids:
            return FinishReason.STOP, token_id
        text = sequence.detokenizer.push((token_id,))
        if (params.stop or sequence.free_text_end is not None) and not _begins_as_call(sequence, text):
            stop = _read_free_text(sequence, sequence.held_text + text, pieces, may_stop=may_stop)
            if stop is not None:
                return FinishReason.STOP, stop
        else:
            pieces.append(text)
        if (
            sequence.grammar is not None
            and sequence.grammar_state is not None
            and sequence.grammar.only_eos(sequence.grammar_state)
        ):
            # Free text that the limit ends could have gone on.
            is_cut = sequence.free_text_end is not None and not sequence.is_in_calls
            return FinishReason.LENGTH if is_cut else FinishReason.STOP, None
        if sequence.num_remaining_tokens == 0:
            return FinishReason.LENGTH, None
        return None, None


def _begins_as_call(sequence: Sequence, text: str) -> bool:
    """Whether the answer is in its calls already, or is calls from the first token on, which is this text."""
    if sequence.free_text_end == "" and sequence.num_output_tokens == 1 and text.startswith("{"):
        sequence.is_in_calls = True
    return sequence.is_in_calls


def _read_free_text(sequence: Sequence, text: str, pieces: list[str], *, may_stop: bool) -> str | None:
    """Move the text to `pieces`, up to where calls or a stop string may begin in it; the stop string that ends it."""
    stops = sequence.params.stop
    while True:
        if sequence.is_before_brace:
            bare = text.lstrip(_WHITESPACE)
            blanks = text[: len(text) - len(bare)]
            if bare.startswith("{") and (not may_stop or first_stop(blanks, stops) is None):
                sequence.is_in_calls = True
                break
            sequence.is_before_brace = not bare
        marker = sequence.free_text_end or sequence.calls_after
        ends = (*stops, marker) if marker else stops
        found = first_stop(text, ends) if may_stop else None
        if found is None:
            num_held = num_held_back(text, ends)
            pieces.append(text[: len(text) - num_held])
            sequence.held_text = text[len(text) - num_held :]
            return None
        position, stop = found
        if stop != marker:
            pieces.append(text[:position])
            return stop
        if sequence.free_text_end:
            sequence.is_in_calls = True
            break
        pieces.append(text[: position + len(marker)])
        text = text[position + len(marker) :]
        sequence.calls_after, sequence.is_before_brace = "", True
    pieces.append(text)
    sequence.held_text = ""
    return None


def first_stop(text: str, stops: Iterable[str]) -> tuple[int, str] | None:
    """The stop string that begins first, with its position; of several at one place the longest."""
    found = [(text.find(stop), -len(stop), stop) for stop in stops]
    found = [candidate for candidate in found if candidate[0] >= 0]
    if not found:
        return None
    position, _, stop = min(found)
    return position, stop


def num_held_back(text: str, stops: Iterable[str]) -> int:
    """Length of the longest end of the text that begins a stop string."""
    return max(
        (
            length
            for stop in stops
            for length in range(1, min(len(stop) - 1, len(text)) + 1)
            if text.endswith(stop[:length])
        ),
        default=0,
    )
