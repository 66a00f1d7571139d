"""ServingCost: what a streamed token takes, and how much of that is not the engine."""

from __future__ import annotations

import msgspec

from specdec.evals.bench_metrics import ServerMetrics

STEP_SECONDS = "engine_step_seconds_total"
NUM_TOKENS = "generation_tokens_total"


class ServingCost(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds a token, over all the tokens that the server generated meanwhile."""

    num_tokens: int
    wall_ms: float
    engine_ms: float
    """In steps of the engine."""
    overhead_ms: float
    """The rest: HTTP, streaming, what lies between the processes, and waiting for clients."""
    server_cpu_ms: float | None
    """Processor time of the process that serves; None where the server does not say, or the engine is in it."""
    engine_cpu_ms: float | None

    @classmethod
    def between(cls, before: ServerMetrics, after: ServerMetrics, seconds: float) -> ServingCost | None:
        """Of a load that took so long; None of a server that does not time its steps, or generated nothing."""
        num_tokens = after.values.get(NUM_TOKENS, 0.0) - before.values.get(NUM_TOKENS, 0.0)
        if STEP_SECONDS not in after.values or num_tokens <= 0:
            return None
        engine_s = after.values[STEP_SECONDS] - before.values.get(STEP_SECONDS, 0.0)

        def cpu_ms(process: str) -> float | None:
            if "engine" not in after.cpu_seconds or process not in after.cpu_seconds:
                return None
            return 1000 * (after.cpu_seconds[process] - before.cpu_seconds.get(process, 0.0)) / num_tokens

        return cls(
            num_tokens=int(num_tokens),
            wall_ms=1000 * seconds / num_tokens,
            engine_ms=1000 * engine_s / num_tokens,
            overhead_ms=1000 * (seconds - engine_s) / num_tokens,
            server_cpu_ms=cpu_ms("server"),
            engine_cpu_ms=cpu_ms("engine"),
        )
