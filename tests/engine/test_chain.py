"""ChainProposer: who is asked when, what the grammar leaves of it, and when the draft model runs."""

from types import SimpleNamespace

import pytest

from specdec.batch import Batch, ScheduledSequence
from specdec.grammars import BudgetedGrammar, GrammarCompiler, Vocabulary
from specdec.proposers import chain as chain_module
from specdec.proposers.acceptance import AcceptanceEstimates
from specdec.proposers.base import Guess, Source
from specdec.proposers.chain import ChainProposer
from specdec.proposers.length import DraftLengths
from specdec.request import SamplingParams
from specdec.sequence import Sequence, SequenceStatus
from specdec.speculative import SpeculationPlan
from specdec.step_time import StepTime
from specdec.verifier import Outcome

EOS = 256
BYTES = [bytes((byte,)) for byte in range(256)]
FLAT = [(1, 0.02), (64, 0.02)]


class Scripted:
    """Says what it was told to say after a text that ends with certain tokens."""

    def __init__(self, name, after, confidence=0, *, yields_to_model=False):
        self.name = name
        self.after = after
        self.confidence = confidence
        self.yields_to_model = yields_to_model
        self.num_asked = 0
        self.forgotten = []

    def guess(self, draft):
        self.num_asked += 1
        for ending, token_ids in self.after.items():
            if bytes(draft.last(len(ending))) == ending:
                return Guess(list(token_ids), self.confidence, self.yields_to_model)
        return Guess(())

    def finished(self, sequence):
        self.forgotten.append(sequence)


def sequence(text=b"x", *, methods=("grammar", "suffix", "ngram"), grammar=None, num_tokens=None):
    result = Sequence(
        request_id="r",
        choice_index=0,
        params=SamplingParams(),
        seed=0,
        max_tokens=100,
        eos_token_ids=frozenset({EOS}),
        num_prompt_tokens=len(text),
        token_ids=list(text),
        detokenizer=None,
        grammar=grammar,
        grammar_state=grammar.initial_state if grammar else None,
        plan=SpeculationPlan(frozenset(methods), num_tokens),
    )
    result.num_computed_tokens = len(text) - 1
    return result


def proposals(drafters, *sequences, num_slots=8):
    chain = ChainProposer(drafters, None, DraftLengths(StepTime(FLAT), None))
    found = chain.propose(Batch([ScheduledSequence(each, 1, num_slots, 0) for each in sequences]))
    return chain, found


def test_drafters_are_asked_again_after_each_guess():
    first = Scripted("grammar", {b"b": b"cd"}, confidence=1)
    second = Scripted("ngram", {b"x": b"ab", b"d": b"e"}, confidence=8)
    _, [proposal] = proposals([first, second], sequence())
    assert bytes(proposal.token_ids) == b"abcde"
    assert [source.proposer for source in proposal.sources] == ["ngram", "ngram", "grammar", "grammar", "ngram"]
    assert proposal.sources[2] == Source("grammar", 1)
    assert list(proposal.distributions) == [None] * 5


def test_a_draft_is_never_longer_than_its_slots():
    endless = Scripted("ngram", {b"": b"ab"})
    for num_slots in range(5):
        _, [proposal] = proposals([endless], sequence(), num_slots=num_slots)
        assert bytes(proposal.token_ids) == b"abab"[:num_slots]


def test_only_those_that_a_plan_names_are_asked():
    grammar, ngram = Scripted("grammar", {b"": b"g"}), Scripted("ngram", {b"": b"n"})
    _, found = proposals(
        [grammar, ngram],
        sequence(methods=("ngram",)),
        sequence(methods=()),
        sequence(methods=("grammar", "ngram")),
        num_slots=2,
    )
    assert [bytes(proposal.token_ids) for proposal in found] == [b"nn", b"", b"gg"]


def test_nothing_is_drafted_after_the_end_of_an_answer():
    drafter = Scripted("ngram", {b"x": [ord("a"), EOS, ord("b")]})
    _, [proposal] = proposals([drafter], sequence())
    assert list(proposal.token_ids) == [ord("a"), EOS]


@pytest.fixture(scope="module")
def word():
    compiler = GrammarCompiler(Vocabulary([*BYTES, None], [EOS]))
    return BudgetedGrammar(compiler.compile_json_schema({"enum": ["abcd", "abed"]}), 20)


def test_the_grammar_takes_what_it_allows_and_others_go_on_from_there(word):
    wrong = Scripted("suffix", {b"x": b'"abz', b"ab": b"e"}, confidence=5)
    right = Scripted("ngram", {b"e": b'd"]'}, confidence=8)
    chain, [proposal] = proposals([wrong, right], sequence(grammar=word), num_slots=20)
    assert bytes(proposal.token_ids) == b'"abed"'
    assert [source.proposer for source in proposal.sources] == ["suffix"] * 4 + ["ngram"] * 2
    # `z`; the bracket comes after the end, where nothing is asked any more.
    assert chain.num_drafts_cut_by_grammar == 1


def test_a_guess_that_the_grammar_takes_nothing_of_is_as_good_as_none(word):
    wrong, right = Scripted("suffix", {b"": b"zzz"}), Scripted("ngram", {b"x": b'"a'})
    _, [proposal] = proposals([wrong, right], sequence(grammar=word))
    assert bytes(proposal.token_ids) == b'"a'


def test_of_several_guesses_the_likeliest_is_taken_by_what_became_of_its_kind():
    prediction = Scripted("prediction", {b"x": b"p"}, confidence=1)
    suffix = Scripted("suffix", {b"x": b"s"}, confidence=5)
    ngram = Scripted("ngram", {b"x": b"n"}, confidence=5)
    lengths = DraftLengths(StepTime(FLAT), None)
    chain = ChainProposer([prediction, suffix, ngram], None, lengths)
    running = sequence(methods=("prediction", "suffix", "ngram"))
    batch = Batch([ScheduledSequence(running, 1, 1, 0)])
    taken = []
    for _ in range(60):
        [proposal] = found = chain.propose(batch)
        taken.append(bytes(proposal.token_ids))
        chain.learn(batch, found, [Outcome([1], 0, len(proposal.token_ids), [])], 0.02)
    by_first = list(dict.fromkeys(taken))
    assert [token for token in by_first if token] == [b"s", b"p", b"n"], "as their priors say, each until it does worse"


def test_what_the_grammar_forces_comes_before_what_is_likelier():
    forced, likelier = Scripted("grammar", {b"x": b"g"}), Scripted("suffix", {b"x": b"s"}, confidence=5)
    _, [proposal] = proposals([likelier, forced], sequence(), num_slots=1)
    assert bytes(proposal.token_ids) == b"g"


def test_a_guess_that_a_draft_model_betters_is_taken_where_none_drafts():
    unsure = Scripted("prediction", {b"x": b"p", b"n": b"q"}, yields_to_model=True)
    ngram = Scripted("ngram", {b"x": b"n"}, confidence=8)
    methods = ("prediction", "ngram")
    _, [proposal] = proposals([unsure, ngram], sequence(methods=methods))
    assert bytes(proposal.token_ids) == b"nq"
    _, [proposal] = proposals([unsure, ngram], sequence(methods=(*methods, "draft_model")))
    assert bytes(proposal.token_ids) == b"n"


def test_what_became_of_drafts_is_learnt_and_ended_answers_are_forgotten():
    drafter = Scripted("ngram", {b"": b"a"})
    lengths = DraftLengths(StepTime(FLAT), None)
    chain = ChainProposer([drafter], None, lengths)
    ended, running = sequence(), sequence()
    before = lengths.estimates.probability(running, Source("ngram"))
    batch = Batch([ScheduledSequence(each, 1, 4, 0) for each in (ended, running)])
    found = chain.propose(batch)
    ended.status = SequenceStatus.FINISHED
    outcomes = [Outcome([1], 0, len(proposal.token_ids), []) for proposal in found]
    chain.learn(batch, found, outcomes, 0.02)
    assert drafter.forgotten == [ended]
    assert lengths.estimates.probability(running, Source("ngram")) < before


@pytest.mark.parametrize(("num_tokens", "is_asked_always"), [(None, False), (4, True)])
def test_a_slow_drafter_whose_guesses_save_nothing_is_asked_less_unless_the_length_is_fixed(
    monkeypatch, num_tokens, is_asked_always
):
    now = [0.0]
    monkeypatch.setattr(chain_module, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    quick, slow = Scripted("grammar", {b"x": b"a"}, confidence=1), Scripted("ngram", {})
    guess = slow.guess
    slow.guess = lambda draft: now.__setitem__(0, now[0] + 0.05) or guess(draft)
    chain = ChainProposer([quick, slow], None, DraftLengths(StepTime(FLAT), None))
    running = sequence(num_tokens=num_tokens)
    for _ in range(100):
        batch = Batch([ScheduledSequence(running, 1, 4, 0)])
        [proposal] = found = chain.propose(batch)
        chain.learn(batch, found, [Outcome([1, 2], 1, len(proposal.token_ids), [])], 0.02)
    assert quick.num_asked >= 100
    assert (slow.num_asked >= 100) is is_asked_always
    assert slow.num_asked > 3


def test_nothing_is_looked_for_behind_what_is_hardly_ever_right():
    unlikely = Scripted("suffix", {b"x": b"abc", b"c": b"d"})
    chance = AcceptanceEstimates().probability(sequence(), Source("suffix", 0)) ** 3
    _, [proposal] = proposals([unlikely], sequence(methods=("suffix",)))
    assert chance < chain_module._LEAST_CHANCE
    assert bytes(proposal.token_ids) == b"abc"
    _, [proposal] = proposals([unlikely], sequence(methods=("suffix",), num_tokens=4))
    assert bytes(proposal.token_ids) == b"abcd", "a fixed length is filled"
