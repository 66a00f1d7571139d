"""World: a target and a draft that are tables, with masks, so that the law of short texts can be written down.

V tokens; T texts that are shorter than a sample, each with a row of its own in every table. Texts are numbered by
length, those of one length by their tokens read as digits.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specdec.evals.law_cell import Cell
from specdec.grammars import MaskTable, Vocabulary
from specdec.proposers.base import Draft
from specdec.sampler import Sampler, SamplingRow, distributions
from specdec.sequence import Sequence
from specdec.speculative import SpeculationPlan
from specdec.tokenizer import Detokenizer

_PROMPT_TOKEN_IDS = (0,)
_LEAD_SCALE = 4.0
"""Of the logits in a world with leads: the fewer texts are likely, the less noise there is to hide a fault."""
_MOVED = 0.1
"""Of the probability of each half's likeliest token, what the draft gives to the least likely one."""
_LEAST = 0.02
"""What it leaves that one at least."""
_SURE_LOGIT = 7.0
"""By how much a token that is all but certain is above all others."""
_PADDING_LOGIT = 50.0
"""Of an id beyond the vocabulary, which no sample may hold."""


class _Silent(Detokenizer):
    """Of tokens without text."""

    def __init__(self) -> None:
        pass


class World:
    """What the tokens of a cell are drawn from."""

    def __init__(self, cell: Cell) -> None:
        vocab_size, num_tokens = cell.vocab_size, cell.num_tokens
        generator = np.random.default_rng((vocab_size, num_tokens))
        self._cell = cell
        self.vocab_size = vocab_size
        self._first_of_length = [sum(vocab_size**i for i in range(length)) for length in range(num_tokens + 1)]
        num_texts = self._first_of_length[num_tokens]
        target = generator.normal(0.0, 1.2, (num_texts, vocab_size))
        draft = 0.5 * target + generator.normal(0.0, 1.2, (num_texts, vocab_size))
        self.num_sure = [0] * num_texts
        """Of each text, how many tokens that follow are all but certain, each the target's likeliest."""
        if cell.num_sure:
            target, draft = self._with_leads(target, cell.num_sure)
        self.target_logits = _padded(target)
        """fp32 [T, V + 1]."""
        self.draft_logits = _padded(draft)
        """fp32 [T, V + 1]."""
        # Of a grammar's smallest vocabulary, the world has the first tokens.
        vocabulary = Vocabulary([bytes([i]) for i in range(256)], [256], 257)
        self._mask_table = MaskTable(vocabulary, max_bytes=0)
        self.sampler = Sampler(self._mask_table, vocab_size)
        self.mask_rows: list[int | None] = [None] * num_texts
        """Of each text, what may follow it; None without a grammar."""
        if cell.num_allowed is not None:
            for text in range(num_texts):
                words = np.zeros(vocabulary.num_words, np.uint32)
                for token_id in generator.choice(vocab_size, cell.num_allowed, replace=False).tolist():
                    words[0] |= np.uint32(1 << token_id)
                self.mask_rows[text] = self._mask_table.intern(words)

    def _with_leads(
        self, logits: NDArray[np.float64], num_sure: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Logits [T, V] of target and draft, of a world in which half of the tokens lead to others.

        After a token of the lower half, `num_sure` tokens are all but certain. Otherwise either half is as likely by
        target and draft, and as likely to be accepted, so that nothing but what it led to tells a lead apart.
        """
        num_texts, vocab_size = logits.shape
        half = np.exp(_LEAD_SCALE * logits[:, : vocab_size // 2])
        target = 0.5 * half / half.sum(axis=1, keepdims=True)
        draft = target.copy()
        texts = np.arange(num_texts)
        moved = np.minimum(_MOVED, target.max(axis=1) - _LEAST)
        draft[texts, target.argmax(axis=1)] -= moved
        draft[texts, target.argmin(axis=1)] += moved
        target, draft = (np.log(np.concatenate([probs, probs], axis=1)) for probs in (target, draft))
        for text in range(num_texts):
            if self.num_sure[text]:
                target[text, logits[text].argmax()] = target[text].max() + _SURE_LOGIT
            for token_id in range(vocab_size):
                longer = self.next_text(text, token_id)
                if longer < num_texts:
                    is_lead = not self.num_sure[text] and token_id < vocab_size // 2
                    self.num_sure[longer] = num_sure if is_lead else max(0, self.num_sure[text] - 1)
        return target, draft

    @property
    def num_samples_possible(self) -> int:
        """Texts of a sample's length, the forbidden ones included."""
        return int(self._cell.vocab_size**self._cell.num_tokens)

    def sequence(self, seed: int, output_token_ids: tuple[int, ...] = ()) -> Sequence:
        """With the text so far."""
        return Sequence(
            request_id="",
            choice_index=0,
            params=self._cell.params,
            seed=seed,
            max_tokens=self._cell.num_tokens,
            eos_token_ids=frozenset(),
            num_prompt_tokens=len(_PROMPT_TOKEN_IDS),
            token_ids=[*_PROMPT_TOKEN_IDS, *output_token_ids],
            detokenizer=_Silent(),
            plan=SpeculationPlan(frozenset({"draft_model", "ngram"}), verification=self._cell.verification),
        )

    def text(self, sequence: Sequence) -> int:
        """The number of a sequence's text among the shorter ones, or among those of a sample's length."""
        number = 0
        for token_id in sequence.output_token_ids:
            number = number * self._cell.vocab_size + token_id
        num_tokens = sequence.num_output_tokens
        return number if num_tokens == self._cell.num_tokens else self._first_of_length[num_tokens] + number

    def next_text(self, text: int, token_id: int) -> int:
        """The number of a text, by that of the text without its last token; both are shorter than a sample."""
        return text * self._cell.vocab_size + token_id + 1

    def text_of(self, draft: Draft) -> int:
        """The number of a sequence's text with what was drafted, shorter than a sample."""
        text = self.text(draft.sequence)
        for token_id in draft.token_ids:
            text = self.next_text(text, token_id)
        return text

    def likeliest(self, text: int) -> int:
        """The token that the target would most likely draw after a text."""
        return int(self.target_logits[text, : self.vocab_size].argmax())

    def allows(self, text: int, token_id: int) -> bool:
        row = self.mask_rows[text]
        return row is None or self._mask_table.allows(row, token_id)

    def law(self) -> NDArray[np.float64]:
        """What the target alone draws, written out: the probability of every text of a sample's length."""
        vocab_size = self._cell.vocab_size
        texts: list[tuple[int, ...]] = [()]
        rows: list[SamplingRow] = []
        for _ in range(self._cell.num_tokens):
            rows += [
                SamplingRow(self.sequence(0, text), (), self.mask_rows[len(rows) + i]) for i, text in enumerate(texts)
            ]
            texts = [(*text, token_id) for text in texts for token_id in range(vocab_size)]
        logits = self.target_logits.clone()
        self.sampler.shape(logits, rows)
        probs = distributions(logits, rows)[:, :vocab_size].numpy()
        law = np.ones(1)
        for length in range(self._cell.num_tokens):
            first = self._first_of_length[length]
            law = (law[:, None] * probs[first : first + len(law)]).ravel()
        return law


def _padded(logits: NDArray[np.float64]) -> Tensor:
    padding = np.full((len(logits), 1), _PADDING_LOGIT)
    return torch.tensor(np.concatenate([logits, padding], axis=1), dtype=torch.float32)
