"""An engine that follows a script: the edge at which the tests of AsyncEngine inject delays and faults."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from specdec.config import EngineConfig
from specdec.description import EngineDescription
from specdec.errors import RequestError
from specdec.grammars import Interest
from specdec.request import FinishReason, Request, TokenDelta
from specdec.stats import EngineStats


@dataclass
class ScriptedEngine:
    """Emits token i with text "i " in step i of each choice, until max_tokens; one choice holds one block."""

    step_seconds: float = 0.0
    before_step: Callable[[int], None] = lambda _: None
    on_prepare: Callable[[Request], None] = lambda _: None
    config: EngineConfig = field(default_factory=EngineConfig)
    model_name: str = "scripted"
    max_model_len: int = 10**6
    model_folder: Path = Path()
    num_steps: int = 0
    num_added: int = 0
    interests: list[Interest] = field(default_factory=list)
    thread_ids: set[int] = field(default_factory=set)
    is_open: threading.Event = field(default_factory=threading.Event)
    is_warm: threading.Event = field(default_factory=threading.Event)
    _progress: dict[str, list[int]] = field(default_factory=dict)
    _requests: dict[str, Request] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.is_open.set()

    def prepare(self, request: Request, interest: Interest) -> Request:
        self.interests.append(interest)
        self.on_prepare(request)
        if not request.prompt_token_ids:
            raise RequestError("the prompt has no tokens", param="prompt")
        return request

    def add_request(self, request: Request) -> None:
        self._note_thread()
        if request.request_id in self._requests:
            raise RequestError("duplicate", param="request_id")
        self.num_added += 1
        self._requests[request.request_id] = request
        self._progress[request.request_id] = [0] * request.sampling_params.n

    def warm_up_thread(self) -> None:
        self._note_thread()
        self.is_warm.set()

    def close(self) -> None:
        pass

    def describe(self) -> EngineDescription:
        return EngineDescription(
            model=self.model_name, dtype="none", device="none", num_threads=1, num_kv_blocks=100, block_size=1,
            kv_cache_bytes=0, kv_cache_dtype="", max_model_len=self.max_model_len, max_concurrency=1.0, max_num_seqs=1,
            max_num_batched_tokens=1, proposer="none", num_speculative_tokens=0, exact=False,
        )  # fmt: skip

    def abort_request(self, request_id: str) -> None:
        self._note_thread()
        self._requests.pop(request_id, None)
        self._progress.pop(request_id, None)

    @property
    def request_ids(self) -> frozenset[str]:
        """Of the unfinished requests."""
        return frozenset(self._requests)

    def has_unfinished_requests(self) -> bool:
        return bool(self._requests)

    def step(self) -> list[TokenDelta]:
        self._note_thread()
        assert self.is_open.wait(timeout=120), "shut for ever"
        self.before_step(self.num_steps)
        self.num_steps += 1
        time.sleep(self.step_seconds)
        deltas = []
        for request_id, request in list(self._requests.items()):
            last = request.sampling_params.max_tokens or 10**9
            for choice_index, done in enumerate(self._progress[request_id]):
                if done == last:
                    continue
                self._progress[request_id][choice_index] = done + 1
                deltas.append(
                    TokenDelta(
                        request_id=request_id,
                        choice_index=choice_index,
                        token_ids=(done,),
                        text=f"{done} ",
                        finish_reason=FinishReason.LENGTH if done + 1 == last else None,
                    )
                )
            if all(done == last for done in self._progress[request_id]):
                del self._requests[request_id], self._progress[request_id]
        return deltas

    def stats(self) -> EngineStats:
        return EngineStats(num_kv_blocks=100, num_kv_blocks_in_use=sum(map(len, list(self._progress.values()))))

    def _note_thread(self) -> None:
        self.thread_ids.add(threading.get_ident())
