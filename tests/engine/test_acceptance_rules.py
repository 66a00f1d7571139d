"""The acceptance rules, enumerated: every draft, and every way to accept it, add up to the target's own law.

Small vocabularies, random laws. How likely a rule is to do what it does is found from the rule itself, by bisecting the
uniform that decides. Laws are of the next K + 1 tokens: what is not emitted in one pass is the target's own.
"""

import itertools

import numpy as np
import pytest
import torch

from specdec.acceptance_rules import DraftRow, accepts_whole_draft, block, rejection, residual

RULES = pytest.mark.parametrize("rule", [rejection, block])


def tables(generator, vocab_size, num_rows, sharpness):
    """One law a row, for every draft so far: index by the tuple of tokens before."""
    return {
        context: generator.dirichlet(np.full(vocab_size, sharpness))
        for length in range(num_rows)
        for context in itertools.product(range(vocab_size), repeat=length)
    }


def one_hot(probs):
    return np.eye(len(probs))[probs.argmax()]


def outcomes_of(decide):
    """What a decision by a uniform comes to, with the probability of each: at most one change on the way."""
    low, high = 2.0**-53, 1.0 - 2.0**-53
    first, last = decide(low), decide(high)
    if first == last:
        return [(1.0, first)]
    while high - low > 1e-15:
        middle = (low + high) / 2
        low, high = (middle, high) if decide(middle) == first else (low, middle)
    return [(low, first), (1.0 - low, last)]


def residual_of(target_probs, draft_probs, weight):
    tensors = [torch.tensor(each, dtype=torch.float64)[None] for each in (target_probs, draft_probs)]
    return residual(*tensors, torch.tensor([[weight]], dtype=torch.float64))[0].numpy()


def ways_to_leave(rule, target, drafts, draft_ids):
    """(probability, number of accepted tokens, law of the token after them) for one draft."""
    num_drafts = len(draft_ids)
    ways = []

    def walk(i, probability, weight, left_at):
        context = draft_ids[:i]
        if i == num_drafts or weight == 0.0:
            for own, is_whole in outcomes_of(lambda u: i == num_drafts and accepts_whole_draft(weight, u)):
                if is_whole:
                    ways.append((probability * own, i, target[context]))
                else:
                    # By rounding alone the answer may leave nowhere; the engine then draws as the target would.
                    assert left_at is not None or probability * own < 1e-12
                    ways.append((probability * own, *(left_at or (0, target[()]))))
            return
        rest = residual_of(target[context], drafts[context], weight)
        token_id = draft_ids[i]

        def decide(u):
            return rule(DraftRow(weight, rest.sum(), target[context][token_id], drafts[context][token_id], u))

        for own, step in outcomes_of(decide):
            left = (i, rest / rest.sum()) if step.leaves else left_at
            walk(i + 1, probability * own, step.weight, left)

    walk(0, 1.0, 1.0, None)
    return ways


def law_of(target, vocab_size, length):
    law = {(): 1.0}
    for _ in range(length):
        law = {(*context, x): p * target[context][x] for context, p in law.items() for x in range(vocab_size)}
    return law


def law_and_mean_accepted(rule, target, drafts, vocab_size, num_drafts):
    law = dict.fromkeys(itertools.product(range(vocab_size), repeat=num_drafts + 1), 0.0)
    mean = 0.0
    for draft_ids in itertools.product(range(vocab_size), repeat=num_drafts):
        drafted = np.prod([drafts[draft_ids[:i]][x] for i, x in enumerate(draft_ids)])
        if drafted == 0.0:
            continue
        for probability, num_accepted, last in ways_to_leave(rule, target, drafts, draft_ids):
            mean += drafted * probability * num_accepted
            emitted = {(*draft_ids[:num_accepted], x): drafted * probability * last[x] for x in range(vocab_size)}
            for text, p in emitted.items():
                for tail in itertools.product(range(vocab_size), repeat=num_drafts + 1 - len(text)):
                    whole = (*text, *tail)
                    law[whole] += p * np.prod([target[whole[:i]][whole[i]] for i in range(len(text), len(whole))])
    return law, mean


def assert_equal_laws(law, other):
    assert max(abs(law[text] - other[text]) for text in other) < 1e-12


@RULES
@pytest.mark.parametrize(("vocab_size", "num_drafts"), [(3, 1), (3, 2), (3, 3), (4, 1), (4, 2), (4, 3)])
@pytest.mark.parametrize("kind", ["drawn", "one-hot", "mixed", "equal", "disjoint", "half forbidden"])
def test_the_law_is_the_targets(rule, vocab_size, num_drafts, kind):
    generator = np.random.default_rng(7 * vocab_size + num_drafts)
    target = tables(generator, vocab_size, num_drafts + 1, 0.7)
    drafts = tables(generator, vocab_size, num_drafts, 0.7)
    if kind == "one-hot":
        drafts = {context: one_hot(probs) for context, probs in drafts.items()}
    elif kind == "mixed":
        drafts = {context: one_hot(probs) if len(context) % 2 else probs for context, probs in drafts.items()}
    elif kind == "equal":
        drafts = {context: target[context] for context in drafts}
    elif kind == "disjoint":
        lower = np.arange(vocab_size) < vocab_size // 2
        target = {context: np.where(lower, probs, 0) / probs[lower].sum() for context, probs in target.items()}
        drafts = {context: np.where(lower, 0, probs) / probs[~lower].sum() for context, probs in drafts.items()}
    elif kind == "half forbidden":
        # A grammar holds the target, and nothing the draft; it always allows the last token.
        for context, probs in target.items():
            allowed = generator.random(vocab_size) < 0.5
            allowed[-1] = True
            target[context] = np.where(allowed, probs, 0.0) / probs[allowed].sum()
    law, _ = law_and_mean_accepted(rule, target, drafts, vocab_size, num_drafts)
    assert_equal_laws(law, law_of(target, vocab_size, num_drafts + 1))


@pytest.mark.parametrize("seed", range(5))
def test_block_keeps_more_than_rejection_where_drafts_are_drawn_and_as_much_where_they_are_certain(seed):
    generator = np.random.default_rng(seed)
    target, drafts = tables(generator, 3, 3, 1.0), tables(generator, 3, 2, 1.0)
    means = [law_and_mean_accepted(rule, target, drafts, 3, 2)[1] for rule in (rejection, block)]
    assert means[0] < means[1]
    certain = {context: one_hot(probs) for context, probs in drafts.items()}
    means = [law_and_mean_accepted(rule, target, certain, 3, 2)[1] for rule in (rejection, block)]
    assert abs(means[0] - means[1]) < 1e-12


def test_rejection_accepts_with_the_ratio_of_probabilities():
    for target_prob, draft_prob in ((0.3, 0.6), (0.6, 0.3), (0.0, 0.4), (0.25, 1.0), (0.5, 0.5)):
        decisions = outcomes_of(lambda u, t=target_prob, d=draft_prob: rejection(DraftRow(1.0, 0.5, t, d, u)).leaves)
        accepted = sum(probability for probability, leaves in decisions if not leaves)
        assert abs(accepted - min(1.0, target_prob / draft_prob)) < 1e-14


def test_block_leaves_as_its_paper_says():
    """h of algorithm 2: S / (S + 1 - p), with p = min(1, p * target_prob / draft_prob) from row to row."""
    for weight, mass in ((1.0, 0.2), (0.4, 0.1), (0.9, 0.0)):
        decisions = outcomes_of(lambda u, w=weight, s=mass: block(DraftRow(w, s, 0.3, 0.4, u)).leaves)
        left = sum(probability for probability, leaves in decisions if leaves)
        assert abs(left - mass / (mass + 1.0 - weight)) < 1e-14
        assert block(DraftRow(weight, mass, 0.3, 0.4, 0.5)).weight == min(1.0, weight * 0.3 / 0.4)


def test_a_forbidden_draft_token_is_never_accepted_and_nothing_after_it_either():
    for rule in (rejection, block):
        for uniform in (2.0**-53, 0.5, 1.0 - 2.0**-53):
            assert rule(DraftRow(0.7, 0.3, 0.0, 0.1, uniform)).weight == 0.0
