"""EngineStats: what the engine has counted so far, as one value to read at any time."""

from __future__ import annotations

import msgspec

from specdec.request import SpeculationStats
from specdec.step_tokens import StepTokenStats


class EngineStats(msgspec.Struct, frozen=True, kw_only=True):
    """Gauges as they are now, counters since the engine was built."""

    num_requests_running: int = 0
    """Choices being computed: a request with n=3 counts three."""
    num_requests_waiting: int = 0
    num_waiting_by_reason: dict[str, int] = {}
    """The same by what they wait for (Scheduler.num_waiting_by_reason)."""
    num_kv_blocks: int = 0
    num_kv_blocks_in_use: int = 0
    """Blocks that a running choice holds; blocks kept only for the prefix cache are free."""
    num_kv_blocks_cached: int = 0
    """Blocks with a prefix hash, in use or free."""
    block_size: int = 0
    num_steps: int = 0
    step_seconds: float = 0.0
    """Time spent in steps."""
    step_tokens: StepTokenStats = StepTokenStats()
    """Prompt tokens that steps computed, those of prompts computed again included, and tokens that they generated."""
    num_prompt_tokens: int = 0
    """Prompt tokens computed, prefix-cache hits included."""
    num_generation_tokens: int = 0
    num_passes_ahead: int = 0
    """Passes of the target launched before their tokens were known, the last step's or drafts; none on a CPU."""
    num_passes_ahead_used: int = 0
    num_passes_ahead_dropped: int = 0
    """Those that came to nothing; of the one under way it is not known yet."""
    prefix_cache_queries: int = 0
    """Prompt tokens looked up in the prefix cache."""
    prefix_cache_hits: int = 0
    num_preemptions: int = 0
    num_finished: dict[str, int] = {}
    """Choices by finish reason; `stop` counts those as well that fail their check afterwards."""
    num_faults: dict[str, int] = {}
    """Requests ended by a fault of the engine's own, by the part of the work that failed (faults.py)."""
    speculation: SpeculationStats = SpeculationStats()
    """Of all choices, those included that are not finished."""
    num_requests_undrafted: int = 0
    """Running choices that could be speculated on, and whose last pass verified no draft."""
    num_drafts_cut_by_grammar: int = 0
    """Draft runs that a proposer ended because the grammar forbade its next token."""
    num_draft_tokens_followed: int = 0
    """Tokens of the draft model under a grammar behind which it drew another without the host; none on a CPU."""
    num_draft_tokens_unfollowed: int = 0
    """Those behind which it could not, since the device did not know where they lead."""
    num_draft_tokens_guarded: int = 0
    """Those behind which it could not, since the mask depends on the tokens left."""
    grammar_cache_hits: int = 0
    grammar_cache_misses: int = 0
    grammar_cache_entries: int = 0
    grammar_cache_bytes: int = 0
    """Memory of the grammars kept, roughly."""
    grammar_compile_seconds: float = 0.0
    num_compilations_killed: int = 0
    """Compilations ended for their time, their memory, or because nobody waited any more."""
    grammar_mask_seconds: float = 0.0
    num_mask_rows: int = 0
    num_outputs_checked: int = 0
    """Finished constrained choices that were judged, with `check_outputs`."""
    num_output_check_failures: int = 0
    """Those of them that did not satisfy their constraint."""
    num_outputs_not_checked: int = 0
    """Finished constrained choices that could not be judged: a pattern that Python's re does not read, or too slow."""
