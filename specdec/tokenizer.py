"""Tokenizer: text to token ids and back, the exact bytes of every token, and text from tokens as they come.

Built on the `tokenizers` library alone: importing transformers takes seconds.
"""

from __future__ import annotations

import codecs
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec
import tokenizers

from specdec.chat_template import NAMED_TOKENS, ChatTemplate, read_chat_templates
from specdec.errors import CheckpointError, RequestError
from specdec.models.config import read_eos_token_ids

_SENTENCEPIECE_DECODERS = {"ByteFallback", "Metaspace"}
_SENTENCEPIECE_SPACE = "\u2581"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Tokenizer:
    """A model's vocabulary, built by `from_folder`; safe to share between threads."""

    def __init__(
        self,
        content: bytes,
        *,
        named_tokens: Mapping[str, str],
        eos_token_ids: Sequence[int],
        chat_templates: Mapping[str, str],
    ) -> None:
        """`content` is a tokenizer.json; `named_tokens` are special tokens by name, as `eos_token`.

        Raises CheckpointError for a file that is malformed or of a kind whose bytes are not known.
        """
        try:
            file = msgspec.json.decode(content, type=_TokenizerFile)
            backend = tokenizers.Tokenizer.from_buffer(content)
        except Exception as error:  # the library raises bare Exception for what it cannot read
            raise CheckpointError(f"tokenizer.json cannot be read: {error}") from error
        # A tokenizer file may carry settings of a training run; a prompt is never cut or filled up.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        vocabulary: dict[str, int] = backend.get_vocab(with_added_tokens=True)
        named_ids = {name: vocabulary[token] for name, token in named_tokens.items() if token in vocabulary}
        own_eos = [named_ids["eos_token"]] if "eos_token" in named_ids else []
        self.vocab_size: int = 1 + max(vocabulary.values())
        self.eos_token_ids: tuple[int, ...] = tuple(dict.fromkeys([*eos_token_ids, *own_eos]))
        """From config.json, generation_config.json and tokenizer_config.json, in this order."""
        self.bos_token_id: int | None = named_ids.get("bos_token")
        special = {token.id for token in file.added_tokens if token.special}
        self.special_token_ids: frozenset[int] = frozenset(special | set(named_ids.values()) | set(self.eos_token_ids))
        self._token_bytes: list[bytes | None] = _spell(file, vocabulary, self.vocab_size)
        self._special_text: dict[int, str] = {}
        for token, token_id in vocabulary.items():
            if token_id in self.special_token_ids:
                self._special_text[token_id] = token
                self._token_bytes[token_id] = None
        self._skipping = [piece or b"" for piece in self._token_bytes]
        self._showing = list(self._skipping)
        for token_id, text in self._special_text.items():
            self._showing[token_id] = text.encode()
        self._drops_first_space = _drops_first_space(file.decoders())
        self._chat_templates = {name: ChatTemplate(source, named_tokens) for name, source in chat_templates.items()}

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """Read tokenizer.json, tokenizer_config.json and the chat template of a model folder.

        Raises CheckpointError for a file that is absent or malformed.
        """
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise CheckpointError(f"{folder} has no tokenizer.json; a model folder needs one")
        return cls(
            path.read_bytes(),
            named_tokens=_read_named_tokens(folder / "tokenizer_config.json"),
            eos_token_ids=read_eos_token_ids(folder),
            chat_templates=read_chat_templates(folder),
        )

    def token_bytes(self) -> list[bytes | None]:
        """The bytes of each id below `vocab_size`; None for special tokens and ids without a token."""
        return list(self._token_bytes)

    def special_tokens(self) -> dict[str, int]:
        """The ids of the special tokens by their text."""
        return {text: token_id for token_id, text in self._special_text.items()}

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Token ids of a text; special tokens spelt out in it become their ids.

        Raises RequestError for text with lone surrogates, which has no UTF-8 form.
        """
        try:
            ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        except TypeError as error:
            _refuse_lone_surrogates(text, error)
            raise
        return ids

    def encode_by_pre_token(self, text: str) -> list[list[int]]:
        """The ids of `encode`, grouped by the pre-tokens that are split each by itself."""
        encoding = self._backend.encode(text, add_special_tokens=False)
        return group_by_pre_token(encoding.ids, encoding.word_ids)

    def decode(self, token_ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """The text of whole sequence of ids; bytes that are no UTF-8 become U+FFFD.

        Where a vocabulary marks the start of a text with a space (SentencePiece), that space is dropped.
        """
        pieces = self.pieces(skip_special_tokens=skip_special_tokens)
        text = b"".join([pieces[token_id] for token_id in token_ids]).decode("utf-8", errors="replace")
        return text[1:] if self._drops_first_space and text.startswith(" ") else text

    def num_tokens_of(self, token_ids: Sequence[int], num_characters: int, *, skip_special_tokens: bool) -> int:
        """How many of the tokens it takes to show so many characters; all of them where they show fewer."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        pieces = self.pieces(skip_special_tokens=skip_special_tokens)
        shown = 0
        for index, token_id in enumerate(token_ids):
            if shown >= num_characters:
                return index
            shown += len(decoder.decode(pieces[token_id]))
        return len(token_ids)

    def pieces(self, *, skip_special_tokens: bool) -> list[bytes]:
        """What each id adds to an output, in bytes; shared, not to be changed."""
        return self._skipping if skip_special_tokens else self._showing

    def token_text(self, token_id: int) -> str:
        """One token for display: its text, undecodable bytes as U+FFFD, a special token by its name."""
        return self._showing[token_id].decode("utf-8", errors="replace")

    def chat_template(self, *, has_tools: bool) -> ChatTemplate | None:
        """The template of a conversation with or without tools; None if the model has none."""
        template = self._chat_templates.get("tool_use") if has_tools else None
        return template or self._chat_templates.get("default")

    def render_chat(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, object]] | None = None,
        **options: object,
    ) -> str:
        """The prompt that the model's chat template makes of a conversation.

        `options` are variables of the template's own, as `enable_thinking`. Raises RequestError if the model
        has no template, or the template refuses the messages or does not know an option.
        """
        template = self.chat_template(has_tools=bool(tools))
        if template is None:
            raise RequestError(
                "the model has no chat template, so it cannot answer chat messages; use text completions",
                param="messages",
                code="no_chat_template",
            )
        return template.render(
            messages, add_generation_prompt=add_generation_prompt, tools=tools or None, options=options
        )

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, object]] | None = None,
        **options: object,
    ) -> list[int]:
        """Token ids of `render_chat`; the template itself spells the special tokens it wants."""
        text = self.render_chat(messages, add_generation_prompt=add_generation_prompt, tools=tools, **options)
        return self.encode(text)

    def fingerprint(self) -> str:
        """A digest that is equal for two tokenizers iff each id has the same bytes and is special in both."""
        digest = hashlib.sha256()
        for token_id, piece in enumerate(self._token_bytes):
            kind = b"s" if token_id in self.special_token_ids else b"-" if piece is None else b"t"
            digest.update(b"%b%d:%b" % (kind, len(piece or b""), piece or b""))
        return digest.hexdigest()


def group_by_pre_token(token_ids: Sequence[int], numbers: Sequence[int | None]) -> list[list[int]]:
    """Token ids by the numbers of their pre-tokens; one without a number, an added token, stands alone."""
    grouped: list[list[int]] = []
    before: int | None = None
    for token_id, number in zip(token_ids, numbers, strict=True):
        if number is None or number != before:
            grouped.append([])
        grouped[-1].append(token_id)
        before = number
    return grouped


class Detokenizer:
    """Text from tokens as they come, for one choice.

    The texts of all pushes and of the flush join to the bytes of all the tokens, decoded at once. A code
    point whose bytes are not all there is held back. No leading space is dropped: output follows a prompt.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        self._pieces = tokenizer.pieces(skip_special_tokens=skip_special_tokens)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_ids: Iterable[int]) -> str:
        """The text that these tokens complete."""
        pieces = self._pieces
        return self._decoder.decode(b"".join([pieces[token_id] for token_id in token_ids]))

    def flush(self) -> str:
        """What is still held back, at the end of the choice."""
        return self._decoder.decode(b"", final=True)


class _AddedToken(msgspec.Struct):
    id: int
    content: str
    special: bool = False


class _Decoder(msgspec.Struct):
    """A node of the decoder tree, with the fields that any type of it has."""

    type: str
    decoders: list[_Decoder] = []
    prepend_scheme: str = "always"
    content: str = ""
    start: int = 0


class _Model(msgspec.Struct):
    type: str = "BPE"
    byte_fallback: bool = False


class _TokenizerFile(msgspec.Struct):
    """The parts of tokenizer.json that say how a token is spelt."""

    model: _Model
    added_tokens: list[_AddedToken] = []
    decoder: _Decoder | None = None

    def decoders(self) -> list[_Decoder]:
        """The decoder tree, flat and in order."""
        found, pending = [], [self.decoder] if self.decoder else []
        while pending:
            node = pending.pop(0)
            found.append(node)
            pending = node.decoders + pending
        return found


class _NamedToken(msgspec.Struct):
    content: str


def _spell(file: _TokenizerFile, vocabulary: Mapping[str, int], vocab_size: int) -> list[bytes | None]:
    """The bytes of every token: an added token is its own text, any other is spelt the model's way."""
    kinds = {node.type for node in file.decoders()}
    token_bytes: list[bytes | None] = [None] * vocab_size
    if "ByteLevel" in kinds:
        byte_of_char = _byte_of_char()
        for token, token_id in vocabulary.items():
            token_bytes[token_id] = _byte_level(token, byte_of_char)
    elif kinds & _SENTENCEPIECE_DECODERS:
        for token, token_id in vocabulary.items():
            byte = _BYTE_TOKEN.fullmatch(token) if file.model.byte_fallback else None
            token_bytes[token_id] = (
                bytes([int(byte[1], 16)]) if byte else token.replace(_SENTENCEPIECE_SPACE, " ").encode()
            )
    else:
        raise CheckpointError(
            f"tokenizer.json decodes by {', '.join(sorted(kinds)) or 'nothing'}; supported: ByteLevel "
            "(byte-level BPE), ByteFallback and Metaspace (SentencePiece), whose tokens have known bytes"
        )
    for added in file.added_tokens:
        token_bytes[added.id] = added.content.encode()
    return token_bytes


def _byte_level(token: str, byte_of_char: Mapping[str, int]) -> bytes:
    try:
        return bytes([byte_of_char[char] for char in token])
    except KeyError:  # a character outside the alphabet: the library, too, takes such a token as plain text
        return token.encode()


def _byte_of_char() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 stands for itself, the other bytes for U+0100 and on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


def _drops_first_space(decoders: Sequence[_Decoder]) -> bool:
    return any(
        (node.type == "Strip" and node.content == " " and node.start > 0)
        or (node.type == "Metaspace" and node.prepend_scheme != "never")
        for node in decoders
    )


def _read_named_tokens(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    try:
        config = msgspec.json.decode(path.read_bytes(), type=dict[str, object])
        named = {name: config[name] for name in NAMED_TOKENS if config.get(name) is not None}
        tokens = msgspec.convert(named, type=dict[str, str | _NamedToken])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    return {name: token if isinstance(token, str) else token.content for name, token in tokens.items()}


def _refuse_lone_surrogates(text: str, cause: Exception) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"the text has a lone surrogate at character {error.start}; it must be valid Unicode",
            param="prompt",
        ) from cause
