"""Reasoning: what a model thinks before it answers, between think tags, told apart from the answer."""

from __future__ import annotations

from typing import Literal

import msgspec

from specdec import AfterMarker, ChatTemplate, Constraint, TextOrToolCalls

THINK, THINK_END = "<think>", "</think>"
_WHITESPACE = " \t\n\r"
"""Of JSON: behind it calls are enforced that begin with a brace."""


def may_reason(parser: str, template: ChatTemplate | None, prompt: str) -> bool:
    """Whether an answer to the prompt begins with reasoning: if the template spells the tags, and has not closed them.

    `auto` goes by the template; deepseek_r1 and qwen3 assume the tags, which both families share.
    """
    if parser == "none" or template is None:
        return False
    if parser == "auto" and THINK not in template.source and THINK_END not in template.source:
        return False
    return not prompt.rstrip().endswith(THINK_END)


def is_open(prompt: str) -> bool:
    """Whether the prompt itself has begun the reasoning."""
    return prompt.rstrip().endswith(THINK)


def after_reasoning(constraint: Constraint) -> Constraint:
    """The constraint for what comes after free reasoning; text that may end in calls takes reasoning in."""
    if isinstance(constraint, TextOrToolCalls) and constraint.text is None:
        is_by_brace = not constraint.calls.format.text_end
        return msgspec.structs.replace(constraint, after=THINK_END) if is_by_brace else constraint
    if isinstance(constraint, AfterMarker):
        return constraint
    return AfterMarker(marker=THINK_END, then=constraint)


class ReasoningReader:
    """Of one choice. Whitespace around the reasoning, and before the answer, is no part of either.

    `is_begun`: the answer is within reasoning from its first character on; else only if it opens with the tag.
    `call_start` is the text with which calls begin that may come at any place, a brace for those that only come first.
    `num_characters` are those of the text up to the answer, tags included.
    """

    def __init__(self, *, is_begun: bool, call_start: str | None = None) -> None:
        self._call_start = call_start
        self._place: Literal["start", "inside", "gap", "answer"] = "start"
        self._is_begun = is_begun
        self._held = ""
        self._has_reasoning = False
        self.num_characters = 0

    @property
    def is_inside(self) -> bool:
        """Whether the reasoning goes on."""
        return self._place == "inside"

    def read(self, text: str) -> tuple[str, str]:
        """How the reasoning goes on, and how the answer does."""
        reasoning = ""
        text = self._held + text
        self._held = ""
        if self._place == "start":
            bare = text.lstrip()
            if not bare or (THINK.startswith(bare) and bare != THINK):
                self._held = text
                return "", ""
            if bare.startswith(THINK):
                self._place = "inside"
                self.num_characters += len(text) - len(bare) + len(THINK)
                text = bare[len(THINK) :]
            elif self._is_begun and not (self._call_start == "{" and text.startswith("{")):
                self._place = "inside"
            else:
                self._place = "answer"
        if self._place == "inside":
            reasoning, text = self._read_reasoning(text)
        if self._place == "gap":
            text = text.lstrip(_WHITESPACE)
            self._place = "answer" if text else "gap"
        return reasoning, text

    def end(self) -> tuple[str, str]:
        """What is still held back, once the answer has ended."""
        held, self._held = self._held, ""
        if self._place == "inside" or (self._place == "start" and self._is_begun):
            self.num_characters += len(held)
            return held.rstrip(), ""
        return "", held

    def _read_reasoning(self, text: str) -> tuple[str, str]:
        if not self._has_reasoning:
            bare = text.lstrip()
            self.num_characters += len(text) - len(bare)
            text = bare
        ends = [THINK_END]
        if self._call_start is not None and self._call_start != "{":
            ends.append(self._call_start)
        found = min(((place, end) for end in ends if (place := text.find(end)) >= 0), default=None)
        if found is not None:
            place, end = found
            inside = text[:place]
            if end == THINK_END:
                self._place = "gap"
                self.num_characters += len(inside) + len(THINK_END)
                return inside.rstrip(), text[place + len(THINK_END) :]
            self._place = "answer"
            self.num_characters += len(inside)
            return inside.rstrip(), text[place:]
        num_held = max(
            (length for end in ends for length in range(1, len(end)) if text.endswith(end[:length])), default=0
        )
        shown = text[: len(text) - num_held].rstrip()
        self._held = text[len(shown) :]
        self._has_reasoning = self._has_reasoning or bool(shown)
        self.num_characters += len(shown)
        return shown, ""
