"""DraftColours: an answer in the terminal, each token in the colour of the proposer that drafted it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.text import Text

from specdec import TokenDelta
from specdec.proposer_colours import COLOURS
from specdec.tokenizer import Detokenizer, Tokenizer


class DraftColours:
    """Of one traced answer, token by token as its deltas come."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool) -> None:
        self._detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip_special_tokens)

    def parts(self, delta: TokenDelta) -> Iterator[tuple[str, str | None]]:
        """The delta's text in parts, with the proposer of the token that completed each; None is the target.

        The parts join to the text: what is not any token's own (the rest of a code point) goes with the last of them.
        """
        left = delta.text
        proposers = [proposer for draft in delta.drafts for proposer in (*draft.proposers[: draft.num_accepted], None)]
        proposer = None
        for token_id, proposer in zip(delta.token_ids, proposers, strict=False):
            text = self._detokenizer.push([token_id])
            if text and left.startswith(text):
                yield text, proposer
                left = left[len(text) :]
        if left:
            yield left, proposer


def write_parts(parts: Iterable[tuple[str, str | None]]) -> None:
    """Print on standard output; a terminal, in as many colours as it has."""
    text = Text()
    for part, proposer in parts:
        text.append(part, style=None if proposer is None else COLOURS[proposer])
    Console(highlight=False).print(text, end="", soft_wrap=True)


def say_legend(proposers: Iterable[str]) -> None:
    """Print on standard error which colour is whose, of these proposers."""
    legend = Text("drafted by ")
    for name in (name for name in COLOURS if name in set(proposers)):
        legend.append(name, style=COLOURS[name]).append(", ")
    legend.append("or, without a colour, drawn by the target")
    Console(stderr=True, highlight=False).print(legend, soft_wrap=True)
