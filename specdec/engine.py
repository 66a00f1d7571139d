"""Engine: the loop. Read `step` first."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from collections.abc import Sequence as AbstractSequence
from pathlib import Path
from typing import TypeAlias

import torch
from msgspec.structs import replace

from specdec.admission import PreparedRequest, admit
from specdec.batch import Batch
from specdec.block_pool import BlockPool
from specdec.build import build_runtime
from specdec.config import EngineConfig
from specdec.description import EngineDescription
from specdec.device_verifier import DeviceVerifier
from specdec.errors import EngineError, GenerationError, RequestError, RequestFaultError, SpecdecError
from specdec.faults import SequenceFaultError
from specdec.grammars import (
    GrammarCompiler,
    Interest,
    LeftError,
    Limits,
    SchemaOptions,
    TextOrToolCalls,
    Vocabulary,
)
from specdec.models.loader import WeightLoader, load_weights
from specdec.models.progress import ModelProgress, ProgressCallback
from specdec.output_check import OutputChecker
from specdec.output_types import constraint_of
from specdec.overlapped_passes import OverlappedPasses
from specdec.pool_size import max_logits_rows
from specdec.proposers.base import Proposal
from specdec.proposers.build import build_proposer
from specdec.request import FinishReason, Request, RequestOutput, SamplingParams, TokenDelta
from specdec.request_output import OutputCollector
from specdec.scheduler import Scheduler
from specdec.sequence import Sequence
from specdec.speculative import MAX_DRAFT_TOKENS, SpeculativeParams
from specdec.stats import EngineStats
from specdec.stop import StopChecker
from specdec.target_pass import RowMasks, masks_of_rows
from specdec.tokenizer import Detokenizer, Tokenizer
from specdec.warm_up import warm_up_sampling

Prompt: TypeAlias = str | AbstractSequence[int] | AbstractSequence[Mapping[str, object]]
"""Text, token ids, or chat messages."""

_PREPARING = "Preparing grammars (takes longer the first time)"

_FAULT = "the engine failed on this request, by a fault of its own; its log says why"

_CHECK_WAIT_SECONDS = 0.005
"""How long a step with nothing to compute waits for a verdict; aborts and new requests wait as long."""

_RESERVED_ROWS = 3
"""Of logits for each sequence on a CPU, from the start: those of a token and two drafts. A GPU's pool leaves room for
all there can be, and they are taken at once."""

_SEED_BITS = 53
"""A drawn seed is returned, so that its answer can be repeated: it must survive a client whose numbers are doubles."""


class Engine:
    """A model, or a target with its draft, behind one loop; not thread-safe but for `prepare` and `stats`."""

    def __init__(
        self, config: EngineConfig, *, progress: ProgressCallback | None = None, load: WeightLoader = load_weights
    ) -> None:
        """Load everything; `progress` is called as models are pulled and read (specdec.models.progress).

        `load` fills the models' weights.

        Raises ConfigError and ModelError.
        """
        self.config = config
        self._runtime = build_runtime(config, progress=progress, load=load)
        self.tokenizer: Tokenizer = self._runtime.tokenizer
        self.max_model_len: int = self._runtime.description.max_model_len
        self.model_name: str = config.model
        self.model_folder: Path = self._runtime.folder
        tokenizer = self.tokenizer
        report = progress or (lambda _: None)
        report(ModelProgress(stage="preparing", description=_PREPARING, total=1))
        self._compiler = GrammarCompiler(
            Vocabulary(
                tokenizer.token_bytes(),
                tokenizer.eos_token_ids,
                size=self._runtime.model_config.vocab_size,
                special_tokens=tokenizer.special_tokens(),
            ),
            limits=config.grammar_limits or Limits(),
            retokenizer=lambda text: tokenizer.encode_by_pre_token(text.decode()),
            num_workers=config.num_compile_workers,
        )
        report(ModelProgress(stage="preparing", description=_PREPARING, completed=1, total=1))
        self._eos_token_ids = frozenset(tokenizer.eos_token_ids)
        self._seeds = random.Random(config.seed)  # noqa: S311, sampling noise, not secrets
        self._request_ids: set[str] = set()
        self._num_steps = 0
        self._step_seconds = 0.0
        self._mask_seconds = 0.0
        self._checker = OutputChecker() if config.check_outputs else None

        sampler, self.verifier = self._runtime.backend.sampling(
            self._compiler.mask_table,
            tokenizer.vocab_size,
            tokenizer.pieces(skip_special_tokens=False),
            () if config.speculative is None else config.speculative.synthetic_acceptance_rates,
        )
        self.runner = self._runtime.runner
        self._logits = self.runner.logits
        num_rows = max_logits_rows(config)
        if self.runner.device.type == "cpu":
            num_rows = min(self._runtime.description.max_num_batched_tokens, _RESERVED_ROWS * config.max_num_seqs)
        self._logits.reserve(num_rows, self._runtime.model_config.vocab_size)
        self.proposer = build_proposer(config, self._runtime, sampler, self._compiler.mask_table, progress)
        if self._runtime.backend.compiles:
            warm_up_sampling(
                self.verifier,
                sampler,
                self._logits,
                tokenizer=tokenizer,
                vocab_size=self._runtime.model_config.vocab_size,
                max_drafts=min(num_rows - 1, MAX_DRAFT_TOKENS),
            )
        self._description = replace(self._runtime.description, num_drafting_graphs=self.proposer.num_graphs)
        if self._runtime.graphs is not None:
            assert isinstance(self.verifier, DeviceVerifier), "what is captured are kernels"
            vocab_size = self._runtime.model_config.vocab_size
            self._runtime.graphs.capture_sampling(self.verifier, self._logits, vocab_size, progress)
            self._description = replace(self._description, num_sampling_graphs=self.verifier.num_graphs)
        self._pool_tokens = self._runtime.description.num_kv_blocks * config.block_size
        self.scheduler = Scheduler(
            BlockPool(self._runtime.description.num_kv_blocks, enable_prefix_caching=config.enable_prefix_caching),
            block_size=config.block_size,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=self._runtime.description.max_num_batched_tokens,
            max_logits_rows=max_logits_rows(config),
            stop_checker=StopChecker(),
        )
        self._passes = OverlappedPasses(
            self.runner,
            self.verifier,
            self.scheduler,
            may_draft=self.proposer.may_draft,
            vocab_size=tokenizer.vocab_size,
            block_size=config.block_size,
            overlaps=self._runtime.overlaps,
        )

    def warm_up_thread(self) -> None:
        """For the thread that will call `step`, if it is not the one that built the engine.

        A library of products makes a handle and takes a workspace for each thread, which its first step would wait for.
        """
        if self._runtime.backend.compiles:
            model = self.runner.model
            some = torch.zeros(16, 16, dtype=model.dtype, device=model.device)
            torch.mm(some, some)
            self.runner.wait()

    @torch.inference_mode()
    def step(self) -> list[TokenDelta]:
        """One pass of the target over everything scheduled, and what it added to each choice."""
        start = time.perf_counter()
        try:
            batch = self.scheduler.schedule()
            if not batch:
                return self._nothing_scheduled()
            proposals = self.proposer.propose(batch, self._passes.begin_pass)
            logits = self._passes.forward(batch, proposals)
            masks = self._masks_of_rows(batch, proposals)
            outcomes = self._passes.verify(logits, masks, batch, proposals)
        except SequenceFaultError as fault:
            return self._account(self.scheduler.withdraw(fault), start)
        deltas = self.scheduler.commit(batch, proposals, outcomes)
        for failed in self.proposer.learn(batch, proposals, outcomes, self._passes.seconds()):
            deltas += self.scheduler.end(failed)
        return self._account(deltas, start)

    def generate(
        self,
        prompts: Prompt | AbstractSequence[Prompt],
        sampling_params: SamplingParams | AbstractSequence[SamplingParams] | None = None,
        *,
        output_type: object = None,
        options: SchemaOptions | None = None,
        speculative: SpeculativeParams | None = None,
        prediction: str = "",
    ) -> list[RequestOutput]:
        """Answer prompts to the end, one output a prompt, in order.

        `output_type` is what every answer must satisfy: whatever `constraint_of` takes (a JSON Schema, a Python type,
        a pattern, a constraint). `options` say how its schema is read. `speculative` and `prediction`, a text that the
        answers are expected to resemble, change no answer, unless `speculative` asks for another verification than
        coupled, which keeps its law. Raises RequestError before anything is generated if any of the requests cannot be
        served, and GenerationError, with all outputs, once all have ended if one of them has failed.
        """
        constraint = None if output_type is None else constraint_of(output_type, options)
        if constraint is None and options is not None:
            raise RequestError("options belong to an output_type, and there is none", param="options")
        prompt_list = [prompts] if _is_one_prompt(prompts) else list(prompts)
        if sampling_params is None or isinstance(sampling_params, SamplingParams):
            params_list = [sampling_params or SamplingParams()] * len(prompt_list)
        else:
            params_list = list(sampling_params)
            if len(params_list) != len(prompt_list):
                raise RequestError(
                    f"{len(params_list)} sampling_params for {len(prompt_list)} prompts; give one, or one each",
                    param="sampling_params",
                )
        prepared = [
            self.prepare(
                Request(
                    request_id=f"generate-{self._seeds.getrandbits(64):016x}",
                    prompt_token_ids=tuple(self._encode(prompt)),
                    sampling_params=params,
                    constraint=constraint,
                    speculative=speculative,
                    prediction=prediction,
                )
            )
            # prompts is str | Sequence of several kinds; which, _is_one_prompt has decided.
            for prompt, params in zip(prompt_list, params_list, strict=True)
        ]
        collectors = {each.request.request_id: OutputCollector(each.request) for each in prepared}
        try:
            for each in prepared:
                self.add_request(each)
            while any(not collector.is_finished for collector in collectors.values()):
                for delta in self.step():
                    if delta.request_id in collectors:
                        collectors[delta.request_id].add(delta)
        finally:
            for request_id, collector in collectors.items():
                if not collector.is_finished:
                    self.abort_request(request_id)
        outputs = [collector.output() for collector in collectors.values()]
        for output in outputs:
            for choice in output.choices:
                if choice.finish_reason is FinishReason.ERROR:
                    raise GenerationError(choice.error or _FAULT, tuple(outputs))
        return outputs

    def prepare(self, request: Request, interest: Interest | None = None) -> PreparedRequest:
        """Check a request against model, pool and grammar, and compile its constraint, index its prediction.

        Thread-safe, and the slow part of admission: call it off the engine's thread. Raises RequestError, EngineError
        where no constraint can be compiled now, RequestFaultError, and LeftError once `interest` is left.
        """
        try:
            return admit(
                request,
                compiler=self._compiler,
                speculative=self.config.speculative,
                encode=lambda text: self.tokenizer.encode(text, add_special_tokens=False),
                vocab_size=self.tokenizer.vocab_size,
                max_model_len=self.max_model_len,
                pool_tokens=self._pool_tokens,
                next_seed=lambda: self._seeds.getrandbits(_SEED_BITS),
                interest=interest or Interest(request.caller),
            )
        except (SpecdecError, LeftError):
            raise
        except Exception as error:
            self.scheduler.faults.record_unprepared(request.request_id, error)
            raise RequestFaultError(_FAULT) from error

    def add_request(self, request: Request | PreparedRequest) -> None:
        """Queue every choice of a request, or none.

        Raises RequestError, also for an id that is in flight, and RequestFaultError.
        """
        prepared = request if isinstance(request, PreparedRequest) else self.prepare(request)
        request_id = prepared.request.request_id
        if request_id in self._request_ids:
            raise RequestError(f"request_id {request_id!r} is in flight already", param="request_id")
        self._request_ids.add(request_id)
        try:
            self._queue(prepared)
        except Exception as error:
            self.abort_request(request_id)
            self.scheduler.faults.record_unprepared(request_id, error)
            raise RequestFaultError(_FAULT) from error

    def _queue(self, prepared: PreparedRequest) -> None:
        request = prepared.request
        if self._checker is not None:
            self._checker.watch(request)
        leader: Sequence | None = None
        for choice_index in range(request.sampling_params.n):
            sequence = Sequence(
                request_id=request.request_id,
                choice_index=choice_index,
                params=request.sampling_params,
                seed=prepared.seed,
                max_tokens=prepared.max_tokens,
                eos_token_ids=self._eos_token_ids,
                num_prompt_tokens=len(request.prompt_token_ids),
                token_ids=list(request.prompt_token_ids),
                # The only special tokens in a constrained answer are those that its constraint asks for.
                detokenizer=Detokenizer(self.tokenizer, skip_special_tokens=request.constraint is None),
                cache_salt=request.cache_salt,
                caller=request.caller,
                grammar=prepared.grammar,
                grammar_state=prepared.grammar.initial_state if prepared.grammar else None,
                plan=prepared.plan,
                prediction=prepared.prediction,
                is_traced=request.trace,
                free_text_end=request.constraint.calls.format.text_end
                if isinstance(request.constraint, TextOrToolCalls) and request.constraint.text is None
                else None,
                calls_after=request.constraint.after if isinstance(request.constraint, TextOrToolCalls) else "",
                leader=leader,
            )
            leader = leader or sequence
            self.scheduler.add(sequence)

    def abort_request(self, request_id: str) -> None:
        """Drop a request and free its blocks at once; no more deltas of it come. Unknown ids are ignored."""
        self.scheduler.abort(request_id)
        self._release({request_id})

    def has_unfinished_requests(self) -> bool:
        return self.scheduler.has_unfinished or bool(self._checker and self._checker.request_ids)

    def close(self) -> None:
        """End the processes that compile constraints; also done when the engine is no longer used."""
        self._compiler.close()

    def describe(self) -> EngineDescription:
        """What was built: model, dtype, device, pool, proposer."""
        return self._description

    def stats(self) -> EngineStats:
        """A snapshot; cheap, and readable from any thread."""
        scheduler, pool, compiler = self.scheduler, self.scheduler.block_pool, self._compiler
        speculative = self.config.speculative
        methods = frozenset[str]() if speculative is None else speculative.methods
        num_waiting_by_reason = scheduler.num_waiting_by_reason()
        followed = self.proposer.followed
        return EngineStats(
            num_requests_running=len(scheduler.running),
            num_requests_waiting=sum(num_waiting_by_reason.values()),
            num_waiting_by_reason=num_waiting_by_reason,
            num_kv_blocks=pool.num_blocks,
            num_kv_blocks_in_use=pool.num_in_use,
            num_kv_blocks_cached=pool.num_cached,
            block_size=self.config.block_size,
            num_steps=self._num_steps,
            step_seconds=self._step_seconds,
            step_tokens=scheduler.step_tokens.freeze(),
            num_prompt_tokens=scheduler.num_prompt_tokens,
            num_generation_tokens=scheduler.num_generation_tokens,
            num_passes_ahead=self._passes.num_launched,
            num_passes_ahead_used=self._passes.num_used,
            num_passes_ahead_dropped=self._passes.num_dropped,
            prefix_cache_queries=scheduler.prefix_cache_queries,
            prefix_cache_hits=scheduler.prefix_cache_hits,
            num_preemptions=scheduler.num_preemptions,
            num_faults=scheduler.faults.counts,
            num_finished={str(reason): count for reason, count in scheduler.num_finished.copy().items()},
            speculation=scheduler.speculation.freeze(),
            num_requests_undrafted=sum(
                sequence.is_undrafted and sequence.can_be_drafted_for(methods) for sequence in scheduler.running.copy()
            ),
            num_drafts_cut_by_grammar=self.proposer.num_drafts_cut_by_grammar,
            num_draft_tokens_followed=followed.num_known,
            num_draft_tokens_unfollowed=followed.num_lacking,
            num_draft_tokens_guarded=followed.num_guarded,
            grammar_cache_hits=compiler.cache_hits,
            grammar_cache_misses=compiler.cache_misses,
            grammar_cache_entries=compiler.cache_entries,
            grammar_cache_bytes=compiler.cache_bytes,
            grammar_compile_seconds=compiler.compile_seconds,
            num_compilations_killed=compiler.num_killed,
            grammar_mask_seconds=self._mask_seconds,
            num_mask_rows=compiler.mask_table.num_rows,
            num_outputs_checked=self._checker.num_checked if self._checker else 0,
            num_output_check_failures=self._checker.num_failed if self._checker else 0,
            num_outputs_not_checked=self._checker.num_not_made if self._checker else 0,
        )

    def _encode(self, prompt: object) -> list[int]:
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt, add_special_tokens=True)
        if isinstance(prompt, AbstractSequence):
            if all(isinstance(item, Mapping) for item in prompt) and prompt:
                return self.tokenizer.encode_chat(prompt)
            if all(isinstance(item, int) for item in prompt):
                return list(prompt)
        raise RequestError(
            f"a prompt is text, a list of token ids or a list of chat messages, not {type(prompt).__name__}",
            param="prompt",
        )

    def _nothing_scheduled(self) -> list[TokenDelta]:
        if self.scheduler.has_unfinished:
            raise EngineError("requests are unfinished, yet none could be scheduled; this is a bug")
        return [] if self._checker is None else self._with_ids_freed(self._checker.wait(_CHECK_WAIT_SECONDS))

    def _masks_of_rows(self, batch: Batch, proposals: list[Proposal]) -> list[RowMasks]:
        begin = time.perf_counter()
        masks = masks_of_rows(batch, proposals)
        self._mask_seconds += time.perf_counter() - begin
        return masks

    def _account(self, deltas: list[TokenDelta], start: float) -> list[TokenDelta]:
        deltas = self._with_ids_freed(deltas if self._checker is None else self._checker.hold(deltas))
        self._num_steps += 1
        self._step_seconds += time.perf_counter() - start
        return deltas

    def _with_ids_freed(self, deltas: list[TokenDelta]) -> list[TokenDelta]:
        """The deltas; the ids of requests that they finish can be used again."""
        finished = {delta.request_id for delta in deltas if delta.finish_reason is not None}
        if finished:
            in_flight = {s.request_id for s in (*self.scheduler.running, *self.scheduler.waiting)}
            if self._checker is not None:
                in_flight |= self._checker.request_ids
            self._release(finished - in_flight)
        return deltas

    def _release(self, request_ids: set[str]) -> None:
        self._request_ids -= request_ids
        if self._checker is not None:
            for request_id in request_ids:
                self._checker.forget(request_id)


def _is_one_prompt(prompts: object) -> bool:
    """Text, token ids and messages are one prompt; any other sequence is several."""
    if isinstance(prompts, str):
        return True
    return isinstance(prompts, AbstractSequence) and bool(prompts) and isinstance(prompts[0], int | Mapping)
