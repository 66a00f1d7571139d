"""Admission: how much may be in flight at once, shared out among the callers who are there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from specdec import Request, TokenDelta
from specdec.server.errors import RETRY_AFTER_S, ApiError, ErrorObject
from specdec.server.metrics import ServerMetrics


@dataclass(slots=True)
class _InFlight:
    """Of one caller, or of all."""

    num_choices: int = 0
    num_prompt_tokens: int = 0


class Admission:
    """Counts what is in flight, and refuses what is more than `max_num_choices` or `max_num_prompt_tokens`.

    Choices count from admission to their end, prompt tokens until the first token of the answer; None does not limit.
    While several callers have something in flight, each may have its equal share of a limit, so that one of them
    cannot use up the room of the others; alone, a caller may have all of it. What is larger than a limit is admitted
    when nothing else is in flight.
    """

    def __init__(
        self, metrics: ServerMetrics, *, max_num_choices: int | None, max_num_prompt_tokens: int | None
    ) -> None:
        self._metrics = metrics
        self._max_num_choices = max_num_choices
        self._max_num_prompt_tokens = max_num_prompt_tokens
        self._all = _InFlight()
        self._by_caller: dict[str, _InFlight] = {}

    def admit(self, caller: str, requests: Sequence[Request]) -> Ticket:
        """Let the requests in, until the ticket is closed. Raises ApiError, a 503, where there is no room now."""
        ticket = Ticket(self, caller, requests)
        own = self._by_caller.get(caller, _InFlight())
        if not self._has_room(
            self._max_num_choices, ticket.num_choices, own.num_choices, self._all.num_choices, caller
        ):
            self._metrics.count_rejection("queued_reqs")
            raise _full(f"{self._all.num_choices} choices are in flight", self._max_num_choices)
        if not self._has_room(
            self._max_num_prompt_tokens,
            ticket.num_prompt_tokens,
            own.num_prompt_tokens,
            self._all.num_prompt_tokens,
            caller,
        ):
            self._metrics.count_rejection("queued_tokens")
            raise _full(f"{self._all.num_prompt_tokens} prompt tokens are waiting", self._max_num_prompt_tokens)
        self.add(caller, ticket.num_choices, ticket.num_prompt_tokens)
        return ticket

    def _has_room(self, limit: int | None, asked: int, held: int, held_by_all: int, caller: str) -> bool:
        if limit is None or not held_by_all or held_by_all + asked <= limit:
            return True
        num_callers = len(self._by_caller.keys() | {caller})
        return num_callers > 1 and held + asked <= limit // num_callers

    def add(self, caller: str, num_choices: int, num_prompt_tokens: int) -> None:
        """Count what a ticket takes up, or with negative numbers gives back."""
        own = self._by_caller.setdefault(caller, _InFlight())
        for each in (own, self._all):
            each.num_choices += num_choices
            each.num_prompt_tokens += num_prompt_tokens
        if not own.num_choices:
            del self._by_caller[caller]


@dataclass(slots=True)
class Ticket:
    """What one submission takes up."""

    _admission: Admission
    _caller: str
    _requests: Sequence[Request]
    num_choices: int = field(init=False)
    num_prompt_tokens: int = field(init=False)
    _waiting_prompts: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self.num_choices = sum(request.sampling_params.n for request in self._requests)
        self._waiting_prompts = {request.request_id: len(request.prompt_token_ids) for request in self._requests}
        self.num_prompt_tokens = sum(self._waiting_prompts.values())

    def observe(self, delta: TokenDelta) -> None:
        """Give back what a delta says is done."""
        num_choices = int(delta.finish_reason is not None and self.num_choices > 0)
        self._give_back(num_choices, self._waiting_prompts.pop(delta.request_id, 0))

    def close(self) -> None:
        """Give back the rest; idempotent."""
        self._waiting_prompts.clear()
        self._give_back(self.num_choices, self.num_prompt_tokens)

    def _give_back(self, num_choices: int, num_prompt_tokens: int) -> None:
        if num_choices or num_prompt_tokens:
            self.num_choices -= num_choices
            self.num_prompt_tokens -= num_prompt_tokens
            self._admission.add(self._caller, -num_choices, -num_prompt_tokens)


def _full(what: str, limit: int | None) -> ApiError:
    return ApiError(
        503,
        ErrorObject(
            message=f"the server is full: {what}, of at most {limit}; try again later",
            type="service_unavailable",
            code="queue_full",
        ),
        {"retry-after": str(RETRY_AFTER_S)},
    )
