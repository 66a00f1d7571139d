"""From a configuration to the one proposer that drafts for every request, whatever its plan."""

from __future__ import annotations

import functools

from specdec.build import Runtime
from specdec.config import EngineConfig
from specdec.grammars import MaskTable
from specdec.models.progress import ProgressCallback
from specdec.proposers.base import Drafter
from specdec.proposers.chain import ChainProposer
from specdec.proposers.device_passes import DevicePasses
from specdec.proposers.draft_model import DraftModel
from specdec.proposers.grammar import GrammarDrafter
from specdec.proposers.length import DraftLengths
from specdec.proposers.ngram import NgramDrafter
from specdec.proposers.prediction import PredictionDrafter
from specdec.proposers.suffix import SuffixDrafter
from specdec.proposers.synthetic import SyntheticDrafter
from specdec.sampler import DraftSampler
from specdec.speculative import MAX_DRAFT_TOKENS, SpeculativeConfig
from specdec.step_time import measure_step_time


def build_proposer(
    config: EngineConfig,
    runtime: Runtime,
    sampler: DraftSampler,
    mask_table: MaskTable,
    progress: ProgressCallback | None = None,
) -> ChainProposer:
    """Every drafter, since a request may ask for any, and the draft model where there is one, with its graphs.

    Measures how long passes take, which is what the lengths of drafts are chosen by.
    """
    speculative = config.speculative or SpeculativeConfig(method="none")
    remembers = "suffix" in speculative.methods
    drafters: list[Drafter] = [
        GrammarDrafter(),
        PredictionDrafter(),
        SuffixDrafter(
            max_tree_depth=speculative.suffix_decoding_max_tree_depth,
            max_cached_requests=speculative.suffix_decoding_max_cached_requests if remembers else 0,
            max_spec_factor=speculative.suffix_decoding_max_spec_factor,
            min_token_prob=speculative.suffix_decoding_min_token_prob,
        ),
        NgramDrafter(prompt_lookup_min=speculative.prompt_lookup_min, prompt_lookup_max=speculative.prompt_lookup_max),
        SyntheticDrafter(),
    ]
    measured = functools.partial(
        measure_step_time,
        num_blocks=runtime.description.num_kv_blocks,
        block_size=config.block_size,
        max_model_len=runtime.description.max_model_len,
        max_tokens=runtime.description.max_num_batched_tokens,
    )
    # Of a draft's tokens and one more, and of one token of each sequence.
    target_time = measured(runtime.runner, max_rows=1 + MAX_DRAFT_TOKENS)
    draft_model, draft_time = None, None
    if runtime.draft_runner is not None:
        num_token_ids = runtime.tokenizer.vocab_size
        passes = runtime.backend.drafting(runtime.draft_runner, sampler, mask_table, num_token_ids)
        if runtime.graphs is not None:
            assert isinstance(passes, DevicePasses), "what is captured are kernels"
            runtime.graphs.capture_drafting(passes, runtime.draft_runner.model, progress)
        draft_model = DraftModel(passes)
        draft_time = measured(runtime.draft_runner, max_rows=config.max_num_seqs)
    return ChainProposer(drafters, draft_model, DraftLengths(target_time, draft_time))
