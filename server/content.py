"""Parts of content: text in pieces, as messages and predictions are sent."""

from __future__ import annotations

import msgspec


class TextPart(msgspec.Struct, frozen=True, tag_field="type", tag="text"):
    """A piece of a text."""

    text: str


class RefusalPart(msgspec.Struct, frozen=True, tag_field="type", tag="refusal"):
    """What an assistant said instead of an answer, earlier in the conversation."""

    refusal: str
