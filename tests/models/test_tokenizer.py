"""Tokens to bytes to text, against the tokenizers library and transformers."""

import json
import shutil

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from specdec.errors import CheckpointError, RequestError
from specdec.tokenizer import Detokenizer, Tokenizer

TEXTS = (
    "",
    "Hello, world!",
    " leading and trailing  ",
    "tabs\t\tand\nnew\r\nlines\n\n\n  indented",
    '{"name": "Zoë", "n": [1, 22, 333.50, -4e10], "ok": null}',
    "def f(x):\n    return x ** 2  # comment\n",
    "日本語 中文 한국어 العربية עברית हिन्दी",
    "🙂👩‍👩‍👧‍👦🏳️‍🌈 é é ﬁ Å",
    "   2024   12 345.67",
    "<|im_start|>user\nHi<|im_end|>\n",
    "it's we'll THEY'VE don't",
    "\u00a0\u200b\u2028\ufeff",
)
FOLDERS = ("tiny_model_folder", "tiny_sentencepiece_folder")
text_of_one_form = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@pytest.fixture(scope="session", params=FOLDERS)
def folder(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def tokenizer(folder):
    return Tokenizer.from_folder(folder)


def joined(tokenizer, token_ids, *, skip_special_tokens=True):
    """The specification: the bytes of all tokens, decoded at once."""
    pieces = [
        piece if piece is not None else b"" if skip_special_tokens else tokenizer.token_text(token_id).encode()
        for token_id, piece in ((token_id, tokenizer.token_bytes()[token_id]) for token_id in token_ids)
    ]
    return b"".join(pieces).decode("utf-8", errors="replace")


@given(data=st.data())
def test_pieces_of_any_split_join_to_the_whole(tokenizer, data):
    token_ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=40))
    skip = data.draw(st.booleans())
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip)
    pieces, start = [], 0
    while start < len(token_ids):
        end = start + data.draw(st.integers(1, 5))
        pieces.append(detokenizer.push(token_ids[start:end]))
        start = end
    pieces.append(detokenizer.flush())
    assert "".join(pieces) == joined(tokenizer, token_ids, skip_special_tokens=skip)


@given(text=text_of_one_form)
def test_a_code_point_is_held_back_until_it_is_whole(tokenizer, text):
    """Valid text, token by token: every prefix shown is a prefix of the text, without replacement characters."""
    token_ids = tokenizer.encode(text)
    whole = joined(tokenizer, token_ids)
    detokenizer, shown = Detokenizer(tokenizer), ""
    for token_id in token_ids:
        shown += detokenizer.push([token_id])
        assert whole.startswith(shown)
    assert shown == whole
    assert detokenizer.flush() == ""


@given(text=text_of_one_form)
def test_text_survives_a_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(text=text_of_one_form)
def test_decode_agrees_with_the_library(folder, tokenizer, text):
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    token_ids = library.encode(text, add_special_tokens=False).ids
    assert tokenizer.encode(text) == token_ids
    assert tokenizer.decode(token_ids) == library.decode(token_ids)


@pytest.mark.parametrize("text", TEXTS)
def test_ids_and_text_agree_with_transformers(folder, tokenizer, text):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder)
    token_ids = theirs.encode(text, add_special_tokens=False)
    assert tokenizer.encode(text) == token_ids
    for skip in (True, False):
        expected = theirs.decode(token_ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
        assert tokenizer.decode(token_ids, skip_special_tokens=skip) == expected


def test_special_tokens_are_ids_with_a_name_and_without_bytes(tokenizer):
    start, end = tokenizer.encode("<|im_start|><|im_end|>")[-2:]
    assert tokenizer.token_bytes()[start] is None
    assert {start, end} <= tokenizer.special_token_ids
    assert (tokenizer.bos_token_id, tokenizer.eos_token_ids) == (start, (end,))
    assert tokenizer.token_text(start) == "<|im_start|>"


def test_every_byte_has_a_token_of_its_own(tokenizer):
    held = tokenizer.token_bytes()
    assert {bytes([byte]) for byte in range(256)} <= set(held)
    assert [token_id for token_id, piece in enumerate(held) if piece is None] == sorted(tokenizer.special_token_ids)


def test_an_invalid_byte_becomes_a_replacement_character(tokenizer):
    held = tokenizer.token_bytes()
    broken = [held.index(bytes([byte])) for byte in (0xE6, 0x97, 0x41, 0xFF)]
    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.push([token_id]) for token_id in broken] == ["", "", "\ufffdA", "\ufffd"]
    assert detokenizer.push([held.index(b"\xf0")]) == ""
    assert detokenizer.flush() == "\ufffd"


def test_a_sentencepiece_space_is_kept_by_the_stream_and_dropped_at_the_start_of_a_text(tiny_sentencepiece_folder):
    tokenizer = Tokenizer.from_folder(tiny_sentencepiece_folder)
    token_ids = tokenizer.encode("Paris")
    assert tokenizer.decode(token_ids) == "Paris"
    assert Detokenizer(tokenizer).push(token_ids) == " Paris"


def edited(source, target, **files):
    """A copy of a model folder without weights, with JSON files changed by functions."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors"))
    for name, change in files.items():
        path = target / f"{name}.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        change(content)
        path.write_text(json.dumps(content), encoding="utf-8")
    return target


def test_added_tokens_that_are_not_special_have_the_bytes_of_their_text(tiny_model_folder, tmp_path):
    def add(content):
        for offset, text in enumerate(("<think>", "naïve é", "a b")):
            content["added_tokens"].append(
                {
                    **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False),
                    "id": 448 + offset,
                    "content": text,
                }
            )

    tokenizer = Tokenizer.from_folder(edited(tiny_model_folder, tmp_path / "added", tokenizer=add))
    assert tokenizer.vocab_size == 451
    assert tokenizer.token_bytes()[448:] == [b"<think>", "naïve é".encode(), b"a b"]
    token_ids = tokenizer.encode("x <think>naïve é")
    assert token_ids[-2:] == [448, 449]
    assert tokenizer.decode(token_ids) == "x <think>naïve é"


def test_holes_in_the_ids_have_no_bytes(tiny_model_folder, tmp_path):
    def widen(content):
        vocab = content["model"]["vocab"]
        vocab["Zq"] = 460

    tokenizer = Tokenizer.from_folder(edited(tiny_model_folder, tmp_path / "holes", tokenizer=widen))
    assert tokenizer.vocab_size == 461
    assert tokenizer.token_bytes()[448:460] == [None] * 12
    assert tokenizer.token_bytes()[460] == b"Zq"


def test_end_ids_of_all_files_count_and_have_no_bytes(tiny_model_folder, tmp_path):
    folder = edited(
        tiny_model_folder, tmp_path / "ends", generation_config=lambda content: content.update(eos_token_id=[300, 2])
    )
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.eos_token_ids == (2, 300)
    assert tokenizer.token_bytes()[300] is None
    assert 300 in tokenizer.special_token_ids


def test_settings_of_training_neither_cut_nor_fill_a_prompt(tiny_model_folder, tmp_path):
    def limit(content):
        content["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
        content["padding"] = {
            "strategy": {"Fixed": 64},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "<|endoftext|>",
        }

    limited = Tokenizer.from_folder(edited(tiny_model_folder, tmp_path / "limited", tokenizer=limit))
    plain = Tokenizer.from_folder(tiny_model_folder)
    text = "The quick brown fox jumps over the lazy dog"
    assert limited.encode(text) == plain.encode(text)


def test_fingerprints_are_equal_for_equal_vocabularies_only(
    tiny_model_folder, tiny_draft_folder, tiny_sentencepiece_folder, tmp_path
):
    def respell(content):
        vocab = content["model"]["vocab"]
        vocab["Zq"] = vocab.pop("\u0100")  # a byte that no merge uses

    target = Tokenizer.from_folder(tiny_model_folder).fingerprint()
    assert Tokenizer.from_folder(tiny_draft_folder).fingerprint() == target
    respelt = edited(tiny_model_folder, tmp_path / "respelt", tokenizer=respell)
    specials = edited(
        tiny_model_folder,
        tmp_path / "specials",
        tokenizer=lambda content: content["added_tokens"][0].update(special=False),
        tokenizer_config=lambda content: content.pop("pad_token"),
    )
    others = [Tokenizer.from_folder(other) for other in (respelt, specials, tiny_sentencepiece_folder)]
    assert len({target, *(other.fingerprint() for other in others)}) == 4


def test_a_lone_surrogate_is_refused(tokenizer):
    with pytest.raises(RequestError, match="lone surrogate at character 1"):
        tokenizer.encode("a\ud800b")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda content: content.pop("model"), "cannot be read"),
        (lambda content: content.update(decoder={"type": "WordPiece", "prefix": "##", "cleanup": True}), "WordPiece"),
        (lambda content: content.update(decoder=None), "decodes by nothing"),
    ],
)
def test_a_tokenizer_whose_bytes_are_not_known_is_refused(tiny_model_folder, tmp_path, change, named):
    folder = edited(tiny_model_folder, tmp_path / "other", tokenizer=change)
    with pytest.raises(CheckpointError, match=named):
        Tokenizer.from_folder(folder)


def test_an_absent_tokenizer_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)
