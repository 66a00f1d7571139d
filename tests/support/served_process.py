"""serve() in a process of the test's own, whose engine can be slowed down and broken."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
from live_server import TIMEOUT_S, chat_body, read_events, wait_until

FAULTY_CHILD = Path(__file__).parent / "faulty_engine_child.py"
STEP_SECONDS = 0.005
PROGRAM = """
import sys, time
import msgspec
import specdec.engine_process
import specdec.server.run
from specdec import EngineConfig
from specdec.server import ServerConfig, serve

folder, die_at, step_seconds, child, death_notice_s, num_compile_workers, config = sys.argv[1:]
if death_notice_s:
    specdec.server.run.DEATH_NOTICE_S = float(death_notice_s)
in_process = child == ""
if in_process:
    import specdec.engine
    step = specdec.engine.Engine.step

    def faulty_step(engine):
        time.sleep(float(step_seconds))
        if engine.stats().num_steps == int(die_at):
            raise RuntimeError("injected")
        return step(engine)

    specdec.engine.Engine.step = faulty_step
else:
    specdec.engine_process.PROGRAM = (child, step_seconds, die_at)
engine_config = EngineConfig(model=folder, num_kv_blocks=600, num_compile_workers=int(num_compile_workers))
print_info = lambda info: print(msgspec.json.encode(info).decode(), flush=True)
config = msgspec.json.decode(config, type=ServerConfig)
sys.exit(serve(engine_config, config, on_ready=print_info, in_process=in_process))
"""


class Served:
    """A process that serves."""

    def __init__(
        self, folder: Path, *, in_process: bool = False, die_at: int = -1, death_notice_s: float | None = None,
        num_compile_workers: int = 0, **config: object,
    ) -> None:  # fmt: skip
        """With `death_notice_s` it stays up for that long once its engine has died."""
        fields = {"port": 0, "served_model_names": ["tiny"], **config}
        child = "" if in_process else str(FAULTY_CHILD)
        self.process = subprocess.Popen(
            [
                sys.executable, "-c", PROGRAM, str(folder), str(die_at), str(STEP_SECONDS), child,
                "" if death_notice_s is None else str(death_notice_s), str(num_compile_workers), json.dumps(fields),
            ],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate(timeout=TIMEOUT_S)[1]
        self.info = json.loads(line)
        self.url: str = self.info["url"]

    def stop(self) -> tuple[int, str, float]:
        """SIGTERM; the exit code, what was logged, and how long it took."""
        start = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        return *self.end(), time.monotonic() - start

    def end(self) -> tuple[int, str]:
        """Wait until it ends by itself; the exit code, and what was logged."""
        _, log = self.process.communicate(timeout=TIMEOUT_S)
        return self.process.returncode, log


def last_event(url: str, **fields: object) -> dict:
    body = chat_body(stream=True, **fields)
    with httpx.stream("POST", url + "/v1/chat/completions", json=body, timeout=TIMEOUT_S) as response:
        return list(read_events(response))[-1]


def wait_for_running(url: str, num_requests: int) -> None:
    gauge = f'num_requests_running{{model_name="tiny"}} {num_requests}.0'
    wait_until(lambda: gauge in httpx.get(url + "/metrics").text, f"{num_requests} requests to run")
