"""`specdec eval masks`: vocabularies are read and split, each mask is timed once per pass, cold ones are told apart."""

import base64
import importlib.util
import json

import gguf
import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tiny_tokenizer import write_tiny_tokenizer
from typer.testing import CliRunner

from specdec.evals import cli
from specdec.evals.gguf_vocabulary import GreedySplitter
from specdec.evals.mask_engine import SpecdecMasks
from specdec.evals.mask_measurement import MaskMeasurement
from specdec.evals.mask_texts import MaskTexts, TokenizedCase
from specdec.evals.mask_timing import DisagreeingMaskError, RefusedTokenError, loop_overhead, time_walk
from specdec.evals.mask_worker import MaskRefusal, SchemaTimes, TextTimes
from specdec.evals.percentiles import Percentiles
from specdec.evals.schema_engine import CompileOptions
from specdec.evals.schema_suite import LabelledInstance, SchemaCase, SchemaSuite
from specdec.evals.vocabularies import VocabularyError, load_vocabulary

OPTIONS = CompileOptions(format="assert")
NAMED = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name"],
    "additionalProperties": False,
}
TEXTS = ('{"name":"Alice","age":31}', "The fox, 2024-05-17: [1, 22, 333]\n\n  don't", '{"é":"中文 😀"}')


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary")
    write_tiny_tokenizer(path)
    return path


@pytest.fixture(scope="module")
def vocabulary(folder):
    return load_vocabulary(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def byte_level(folder):
    """(tokens in GPT-2's alphabet by id, merges), and what turns that alphabet into bytes."""
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return tokens, [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]


@pytest.fixture(scope="module")
def tiktoken_file(folder, vocabulary):
    loaded, _ = vocabulary
    lines = [
        b"%s %d\n" % (base64.b64encode(token), rank)
        for rank, token in enumerate(token for token in loaded.token_bytes if token)
    ]
    path = folder / "tiny.tiktoken"
    path.write_bytes(b"".join(lines))
    return path


# Percentiles


def test_percentiles_are_values_that_were_measured():
    assert Percentiles.of(np.arange(1.0, 201.0)) == Percentiles(
        p50=100.0, p95=190.0, p99=198.0, max=200.0, mean=100.5, count=200
    )
    assert Percentiles.of(np.array([7.0])) == Percentiles(p50=7.0, p95=7.0, p99=7.0, max=7.0, mean=7.0, count=1)
    assert Percentiles.of(np.array([])) is None


def test_nanoseconds_of_several_walks_are_one_distribution_of_microseconds():
    found = Percentiles.of_nanoseconds([np.array([3000, 1000]), np.array([], np.int64), np.array([2000])])
    assert found == Percentiles(p50=2.0, p95=3.0, p99=3.0, max=3.0, mean=2.0, count=3)


# Vocabularies


@pytest.mark.parametrize("text", TEXTS)
def test_the_tokens_of_a_text_spell_it(vocabulary, tiktoken_file, text):
    for loaded, splitter in (vocabulary, load_vocabulary(str(tiktoken_file))):
        token_ids = splitter.token_ids(text.encode())
        assert loaded.joins_to(token_ids, text.encode())
        assert len(token_ids) < len(text.encode())


def test_end_of_sequence_has_no_bytes_and_is_inside_the_vocabulary(vocabulary, tiktoken_file):
    for loaded in (vocabulary[0], load_vocabulary(str(tiktoken_file))[0]):
        (eos,) = loaded.eos_token_ids
        assert loaded.token_bytes[eos] is None
        assert eos < loaded.size


def test_special_tokens_spell_nothing(vocabulary):
    loaded, splitter = vocabulary
    assert not loaded.joins_to(splitter.token_ids(b"<|im_end|>"), b"<|im_end|>")


@given(piece=st.text(st.sampled_from(' "name:ageLondothe{}[],'), min_size=1, max_size=30))
def test_merging_by_rank_is_byte_pair_encoding(byte_level, tiktoken_file, piece):
    """Ids of the tiny vocabulary are in the order of its merges, so that they are ranks; three special ones precede."""
    tokens, merges = byte_level
    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    model = tokenizers.models.BPE(vocab=vocab, merges=[tuple(merge.split(" ")) for merge in merges])
    ((in_alphabet, _),) = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(
        piece
    )
    expected = [token.id - 3 for token in model.tokenize(in_alphabet)]
    _, splitter = load_vocabulary(str(tiktoken_file))
    assert splitter._merged(piece.encode()) == expected


def write_gguf(path, tokens, types, **fields):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_eos_token_id(2)
    if "merges" in fields:
        writer.add_token_merges(fields["merges"])
        writer.add_tokenizer_pre("smollm")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def test_a_gguf_file_splits_as_the_tokenizer_it_was_made_from(tmp_path, vocabulary, byte_level):
    tokens, merges = byte_level
    write_gguf(tmp_path / "tiny.gguf", tokens, [3] * 3 + [1] * (len(tokens) - 3), merges=merges)
    loaded, splitter = load_vocabulary(str(tmp_path / "tiny.gguf"))
    assert loaded.token_bytes == vocabulary[0].token_bytes
    assert loaded.eos_token_ids == (2,)
    for text in TEXTS:
        assert splitter.token_ids(text.encode()) == vocabulary[1].token_ids(text.encode())


def test_a_gguf_file_without_merges_is_split_greedily(tmp_path):
    tokens = ["<unk>", "<s>", "</s>", "<0x0A>", "\u2581the", "the", "\u2581", "t", "h", "e", "n"]
    write_gguf(tmp_path / "piece.gguf", tokens, [2, 3, 3, 6, *[1] * 7])
    loaded, splitter = load_vocabulary(str(tmp_path / "piece.gguf"))
    token_ids = splitter.token_ids(b"the then\n")
    assert [loaded.token_bytes[token_id] for token_id in token_ids] == [b"the", b" the", b"n", b"\n"]
    assert "greedily" in loaded.splitting


def test_greedy_splitting_ends_where_no_token_fits():
    splitter = GreedySplitter([b"a", b"ab", None])
    assert splitter.token_ids(b"abac") == [1, 0]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("words.txt", b"a", "tokenizer.json"),
        ("words.tiktoken", b"!! 1", "line 1"),
        ("words.tiktoken", b"", "no tokens"),
        ("words.tiktoken", b"YQ== 0", "single bytes"),
        ("words.gguf", b"none", "GGUF"),
        ("words.json", b"{}", "cannot be read"),
    ],
)
def test_a_file_that_is_no_vocabulary_says_why(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(VocabularyError, match=said):
        load_vocabulary(str(tmp_path / name))


def test_a_name_that_is_no_model_says_what_was_tried():
    with pytest.raises(VocabularyError, match="catalog"):
        load_vocabulary("no such model")


# Texts


def suite_of(*cases):
    made = tuple(
        SchemaCase(
            name=name,
            group=None,
            schema=schema,
            format="assert",
            instances=tuple(LabelledInstance(name="", data=data, is_valid=valid) for valid, data in instances),
        )
        for name, schema, instances in cases
    )
    return SchemaSuite(path="made", cases=made, documents={})


def test_valid_instances_become_tokens_and_others_are_left_out(vocabulary):
    loaded, splitter = vocabulary
    suite = suite_of(
        ("named", NAMED, [(True, {"age": 31.0, "name": "Al"}), (False, {}), (True, {"name": "<|im_end|>"})]),
        ("only invalid", NAMED, [(False, 1)]),
        ("no text", {}, [(True, "\ud800")]),
    )
    texts = MaskTexts.of(suite, loaded, splitter, lambda: None)
    (case,) = texts.cases
    (renderings,) = case.texts
    spelt = [b"".join(loaded.token_bytes[token_id] or b"" for token_id in ids) for ids in renderings]
    assert spelt == [b'{"name":"Al","age":31.0}', b'{"name":"Al","age":31}']
    assert all(ids[-1] == loaded.eos_token_ids[0] for ids in renderings)
    assert texts.num_texts == 1
    assert texts.left_out.total() == 2


# Timing


def walk_of(vocabulary, text, schema=NAMED):
    loaded, splitter = vocabulary
    grammar = SpecdecMasks(loaded, {}).compile(json.dumps(schema), OPTIONS)
    return grammar, (*splitter.token_ids(text), loaded.eos_token_ids[0])


def test_each_position_has_a_mask_and_an_advance_and_only_new_states_are_cold(vocabulary):
    grammar, token_ids = walk_of(vocabulary, b'{"name":"the fox and the dog"}')
    whole = time_walk(grammar.walk(), token_ids)
    assert len(whole.mask) == len(whole.advance) == len(whole.is_cold) == len(token_ids)
    assert whole.is_cold[0]
    # Inside a string one mask stands for all.
    assert 0 < whole.is_cold.sum() < len(token_ids)
    warm = time_walk(grammar.walk(), token_ids)
    assert len(warm.mask) == len(token_ids)
    assert not warm.is_cold.any()
    assert (whole.mask > 0).all()


def test_a_text_that_is_no_instance_is_refused_where_it_stops_being_one(vocabulary):
    grammar, token_ids = walk_of(vocabulary, b"{}")
    with pytest.raises(RefusedTokenError):
        time_walk(grammar.walk(), token_ids)


class ScriptedWalk:
    """A walk that allows token 1 by its mask, and takes what it is told to."""

    def __init__(self, taken):
        self.words = np.array([0b10], np.uint32)
        self._taken = taken

    def fill(self):
        pass

    def advance(self, token_id):
        return token_id in self._taken

    def num_computed(self):
        return None


def test_a_mask_that_disagrees_with_what_is_taken_is_found():
    assert time_walk(ScriptedWalk({1}), (1, 1)).is_cold is None
    with pytest.raises(DisagreeingMaskError, match="allows token 1"):
        time_walk(ScriptedWalk(set()), (1,))
    with pytest.raises(DisagreeingMaskError, match="forbids token 0"):
        time_walk(ScriptedWalk({0, 1}), (1, 0))


def test_the_loop_itself_takes_less_than_a_microsecond():
    assert 0 < loop_overhead() < 1000


# Measurement


def test_figures_are_over_the_texts_asked_for(vocabulary):
    grammar, token_ids = walk_of(vocabulary, b'{"name":"the fox"}')
    times = TextTimes(
        rendering=0, whole=time_walk(grammar.walk(), token_ids), warm=time_walk(grammar.walk(), token_ids)
    )
    suite = suite_of(("a", NAMED, []), ("b", NAMED, []))
    cases = [TokenizedCase(case=case, schema_text="", texts=((token_ids,),) * 2) for case in suite.cases]
    measurement = MaskMeasurement()
    measurement.add(0, cases[0], SchemaTimes(compile_ms=1.0, texts=(times, TextTimes(rendering=None))))
    measurement.add(1, cases[1], SchemaTimes(compile_ms=3.0, texts=(times, times)))
    every = measurement.all_times()
    assert every["mask_us"]["whole"].count == every["mask_us"]["warm"].count == 3 * len(token_ids)
    assert every["mask_us"]["cold"].count == 3 * int(times.whole.is_cold.sum())
    assert every["advance_us"].count == 3 * len(token_ids)
    assert every["compile_ms"].mean == 2.0
    some = measurement.times_of([(1, 0, 0)])
    assert some["mask_us"]["whole"].count == len(token_ids)
    assert some["compile_ms"].mean == 3.0
    counts = measurement.counts()
    assert (counts["texts"], counts["accepted_texts"], counts["refused_texts"]) == (4, 3, 1)
    slowest = list(measurement.slowest(cases))
    assert len(slowest) == 3
    assert max(each["us"] for each in slowest) == slowest[0]["us"] == times.whole.mask.max() / 1000


def test_a_disagreement_is_no_refusal():
    case = TokenizedCase(case=suite_of(("a", NAMED, [])).cases[0], schema_text="", texts=(((1,),),))
    measurement = MaskMeasurement()
    measurement.add(0, case, SchemaTimes(refusal=MaskRefusal(reason="disagrees", is_fault=True, is_disagreement=True)))
    measurement.add(1, case, SchemaTimes(refusal=MaskRefusal(reason="pattern")))
    measurement.add(2, case, SchemaTimes(refusal=MaskRefusal(reason="took over 20 s", is_fault=True)))
    counts = measurement.counts()
    assert counts["disagreements"] == ["a: disagrees"]
    assert counts["refused_schemas"] == {"pattern": 1}
    assert counts["faults"] == ["a: took over 20 s"]
    assert measurement.all_times()["mask_us"]["whole"] is None


# The command


def invoke(*arguments):
    finished = CliRunner().invoke(cli.app, ["masks", *map(str, arguments), "--json"])
    assert finished.stdout.count("\n") == 1, finished.output
    return finished.exit_code, json.loads(finished.stdout)


@pytest.fixture
def suite_file(tmp_path):
    cases = [
        ("named", NAMED, [(True, {"name": "Alice", "age": 31.0}), (True, {"name": "Bob"}), (False, {})]),
        ("long", {"type": "integer"}, [(True, 10**30)]),
        ("refused", {"pattern": "^(a|b)\\1$"}, [(True, "aa")]),
        ("numbers", {"type": "array", "items": {"type": "integer"}}, [(True, [1, 2])]),
    ]
    path = tmp_path / "cases.jsonl"
    with path.open("w", encoding="utf-8") as lines:
        for name, schema, tests in cases:
            made = [{"valid": valid, "data": data} for valid, data in tests]
            lines.write(json.dumps({"name": name, "schema": schema, "tests": made}) + "\n")
    return path


def test_every_text_is_timed_in_both_passes(suite_file, folder, vocabulary):
    exit_code, shown = invoke("--suite", suite_file, "--vocabulary", folder / "tokenizer.json")
    assert exit_code == 0, shown["failures"]
    _, splitter = vocabulary
    texts = [b'{"name":"Alice","age":31}', b'{"name":"Bob"}', b"[1,2]"]
    num_positions = sum(len(splitter.token_ids(text)) + 1 for text in texts)
    masks = shown["mask_us"]
    assert set(masks) == {"whole", "warm", "cold", "unguarded", "guarded"}
    assert masks["unguarded"]["count"] == masks["warm"]["count"] == shown["advance_us"]["count"] == num_positions
    assert masks["whole"]["count"] == num_positions + masks["guarded"]["count"]
    assert shown["guarded_texts"] == 3
    assert 0 < masks["cold"]["count"] < num_positions
    assert masks["whole"]["p50"] <= masks["whole"]["p95"] <= masks["whole"]["p99"] <= masks["whole"]["max"]
    assert (shown["schemas"], shown["compiled"], shown["texts"]) == (4, 3, 5)
    assert (shown["accepted_texts"], shown["refused_texts"]) == (3, 1)
    assert sum(shown["refused_schemas"].values()) == 1
    assert shown["compile_ms"]["count"] == 3
    assert shown["rows"] > 0
    assert shown["second_renderings"] == 1
    assert shown["row_bytes"] == 4 * -(-shown["settings"]["vocabulary_size"] // 32)
    assert "peers" not in shown
    # Without ends of sequence; what each name stands between is forced.
    forced = shown["forced"]
    assert forced["num_tokens"] == num_positions - 3
    assert 0 < forced["num_forced"] == round(shown["forced_share"] * forced["num_tokens"]) < forced["num_tokens"]


@pytest.mark.parametrize("option", ["--suite", "--vocabulary"])
def test_a_file_that_is_not_there_is_named(suite_file, folder, option):
    given_files = {"--suite": suite_file, "--vocabulary": folder / "tokenizer.json", option: "not-there"}
    finished = CliRunner().invoke(cli.app, ["masks", *(str(each) for pair in given_files.items() for each in pair)])
    assert finished.exit_code == 2
    assert "not-there" in finished.output


@pytest.mark.skipif(importlib.util.find_spec("llguidance") is not None, reason="llguidance is installed")
def test_a_peer_that_is_not_installed_is_named(suite_file, folder):
    finished = CliRunner().invoke(
        cli.app,
        ["masks", "--suite", str(suite_file), "--vocabulary", str(folder / "tokenizer.json"), "--peer", "llguidance"],
    )
    assert finished.exit_code == 2
    assert "specdec-engine[peers]" in finished.output


@pytest.mark.parametrize("peer", ["llguidance", "xgrammar"])
def test_a_peer_takes_the_same_tokens(suite_file, folder, peer):
    pytest.importorskip(peer)
    exit_code, shown = invoke("--suite", suite_file, "--vocabulary", folder / "tokenizer.json", "--peer", peer)
    assert exit_code == 0, shown["failures"]
    figures = shown["peers"][peer]
    assert not figures["faults"] + figures["disagreements"]
    assert figures["mask_us"]["whole"]["count"] == figures["mask_us"]["warm"]["count"] > 0
    common = shown["common"]
    assert 0 < common["texts"] <= min(shown["accepted_texts"], figures["accepted_texts"])
    assert common["specdec"]["mask_us"]["whole"]["count"] == common[peer]["mask_us"]["whole"]["count"]
