"""ServerMetrics: the counts that a server exposes under vLLM's names, whatever the prefix before them."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from typing import Final

import httpx
import msgspec
from prometheus_client.parser import text_string_to_metric_families

_SETTLE_S: Final = 10.0
"""How long after its last request a server has to free everything. A snapshot of its gauges may be a second old."""
_POLL_S: Final = 0.1


class SpeculationCounts(msgspec.Struct, frozen=True, kw_only=True):
    """What became of drafts."""

    num_drafts: int = 0
    """Target passes that verified one."""
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_discarded_tokens: int = 0
    """Never compared, since the answer had ended; servers that do not count them say 0."""

    def plus(self, other: SpeculationCounts, sign: int = 1) -> SpeculationCounts:
        """Field by field."""
        return SpeculationCounts(
            **{name: getattr(self, name) + sign * getattr(other, name) for name in self.__struct_fields__}
        )

    @property
    def acceptance_rate(self) -> float | None:
        """Of the tokens that were compared; None without any."""
        num_compared = self.num_draft_tokens - self.num_discarded_tokens
        return self.num_accepted_tokens / num_compared if num_compared else None

    @property
    def mean_acceptance_length(self) -> float | None:
        """Tokens a verified draft yields, the target's own included; None without drafts."""
        return 1 + self.num_accepted_tokens / self.num_drafts if self.num_drafts else None


class ServerMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """One scrape: every sample by its name without prefix, labels added up."""

    prefix: str
    """As `vllm` or `specdec`."""
    values: dict[str, float]
    resident_bytes: dict[str, float] = {}
    """Of the server's processes, by the label `process`; of a server that says it of one alone, `server`."""
    cpu_seconds: dict[str, float] = {}

    @classmethod
    def parse(cls, text: str) -> ServerMetrics | None:
        """None for an exposition without vLLM's gauge of running requests. Raises ValueError for none at all."""
        values: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        by_process: dict[str, dict[str, float]] = defaultdict(dict)
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                prefix, _, name = sample.name.rpartition(":")
                values[prefix][name] += sample.value
                if not prefix:
                    by_process[name][sample.labels.get("process", "server")] = sample.value
        # A server may say the same under two names; its own comes first.
        found = [prefix for prefix, named in values.items() if "num_requests_running" in named]
        if not found:
            return None
        return cls(
            prefix=found[0],
            values=dict(values[found[0]]),
            resident_bytes=by_process["process_resident_memory_bytes"],
            cpu_seconds=by_process["process_cpu_seconds_total"],
        )

    def speculation(self) -> SpeculationCounts | None:
        """None where the server counts no drafts."""
        names = {
            "num_drafts": "spec_decode_num_drafts_total",
            "num_draft_tokens": "spec_decode_num_draft_tokens_total",
            "num_accepted_tokens": "spec_decode_num_accepted_tokens_total",
            "num_discarded_tokens": "spec_decode_num_discarded_tokens_total",
        }
        if names["num_drafts"] not in self.values:
            return None
        return SpeculationCounts(**{field: int(self.values.get(name, 0)) for field, name in names.items()})

    def held(self) -> dict[str, float]:
        """What an idle server must not hold, where it is not zero."""
        names = ("num_requests_running", "num_requests_waiting", "kv_blocks_in_use", "kv_cache_usage_perc")
        return {name: self.values[name] for name in names if self.values.get(name)}


async def scrape(client: httpx.AsyncClient) -> ServerMetrics | None:
    """None where the server has no /metrics, or one of another kind."""
    try:
        response = await client.get("/metrics")
        return ServerMetrics.parse(response.text) if response.status_code == httpx.codes.OK else None
    except (httpx.HTTPError, ValueError):
        return None


async def resident_bytes(client: httpx.AsyncClient) -> dict[str, float]:
    """Of the server's processes, by name; empty where it does not say."""
    metrics = await scrape(client)
    return {} if metrics is None else metrics.resident_bytes


async def held_after(client: httpx.AsyncClient) -> dict[str, float]:
    """What the server still holds some time after the last request has ended; nothing, if all is well."""
    deadline = time.monotonic() + _SETTLE_S
    while True:
        metrics = await scrape(client)
        held = {"metrics_unreadable": 1.0} if metrics is None else metrics.held()
        if not held or time.monotonic() > deadline:
            return held
        await asyncio.sleep(_POLL_S)
