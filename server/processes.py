"""ProcessUse: what the processes of one server hold in memory and have computed, under Prometheus's own names."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import msgspec
import psutil
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class ProcessUse(msgspec.Struct, frozen=True, kw_only=True):
    """One of them, or all of its kind."""

    name: str
    """server, engine (where it has a process of its own), or workers: what compiles and judges constraints."""
    resident_bytes: int
    """Pages that several share count for each."""
    cpu_seconds: float | None
    """None for workers, which come and go."""


def process_uses(engine_pid: int) -> Iterator[ProcessUse]:
    """This process, the engine's and its workers'; those that have ended are left out."""
    pids = {"server": os.getpid()}
    if engine_pid != os.getpid():
        pids["engine"] = engine_pid
    for name, pid in pids.items():
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            times = process.cpu_times()
            yield ProcessUse(name=name, resident_bytes=process.memory_info().rss, cpu_seconds=times.user + times.system)
    with contextlib.suppress(psutil.NoSuchProcess):
        workers = 0
        for worker in psutil.Process(engine_pid).children(recursive=True):
            # A worker may end between the listing and the question.
            with contextlib.suppress(psutil.NoSuchProcess):
                workers += worker.memory_info().rss
        yield ProcessUse(name="workers", resident_bytes=workers, cpu_seconds=None)


class ProcessCollector(Collector):
    """They as metric families, asked for anew at each scrape."""

    def __init__(self, engine_pid: int) -> None:
        self._engine_pid = engine_pid

    def collect(self) -> Iterator[Metric]:
        resident = GaugeMetricFamily("process_resident_memory_bytes", "Resident memory.", labels=("process",))
        cpu = CounterMetricFamily("process_cpu_seconds", "User and system time.", labels=("process",))
        for use in process_uses(self._engine_pid):
            resident.add_metric((use.name,), use.resident_bytes)
            if use.cpu_seconds is not None:
                cpu.add_metric((use.name,), use.cpu_seconds)
        yield resident
        yield cpu
