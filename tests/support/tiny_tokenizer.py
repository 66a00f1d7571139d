"""Small real tokenizers: byte-level BPE as in Llama 3 and SmolLM2, SentencePiece-style BPE as in Llama 2."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

TokenizerKind = Literal["byte_level", "sentencepiece"]

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (PAD, START, END)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

CORPUS = (
    "The quick brown fox jumps over the lazy dog, and then the dog and the fox walk home together.",
    "A language model reads a text and says which word comes next; then it reads that word as well.",
    "Name: Alice Johnson, age: 31, city: London. Name: Bob Smith, age: 27, city: Paris.",
    "system\nYou are a helpful assistant.\nuser\nWhat is the capital of France?\nassistant\nParis.",
    '{"name": "Alice", "age": 31, "city": "London", "active": true, "score": 19.5}',
    '{"name": "Bob", "age": 27, "city": "Paris", "active": false, "score": null}',
    '[{"id": 1, "tags": ["red", "green"]}, {"id": 2, "tags": []}, {"id": 3, "tags": ["blue"]}]',
    '{\n  "items": [\n    {"title": "First", "price": 12.50},\n    {"title": "Second", "price": 7}\n  ]\n}',
    "def area(width, height):\n    return width * height\n\nfor index in range(10):\n    print(index)\n",
)


def write_tiny_tokenizer(folder: Path, *, kind: TokenizerKind = "byte_level", vocab_size: int = 448) -> int:
    """Write tokenizer.json and tokenizer_config.json with a chat template; the number of tokens.

    Ids 0, 1 and 2 are the special tokens; every byte has a token of its own, so that any text can be spelt.
    """
    tokenizer = _byte_level(vocab_size) if kind == "byte_level" else _sentencepiece(vocab_size)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "bos_token": START,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": END,
        "pad_token": PAD,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return tokenizer.get_vocab_size(with_added_tokens=True)


def _byte_level(vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=1,
        show_progress=False,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def _sentencepiece(vocab_size: int) -> Tokenizer:
    """Byte tokens `<0xNN>` for what the merges cannot spell, U+2581 for a space, one before the text."""
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    special = [*SPECIAL_TOKENS, "<unk>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=1,
        show_progress=False,
        special_tokens=[*special, *byte_tokens],
    )
    learner.train_from_iterator(CORPUS, trainer)
    learnt = json.loads(learner.to_str())["model"]
    tokenizer = Tokenizer(
        models.BPE(
            vocab=learnt["vocab"],
            merges=[tuple(merge) for merge in learnt["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    return tokenizer
