"""The engine's process with slow steps, one of which fails: the edge at which tests of another process inject faults.

python faulty_engine_child.py STEP_SECONDS DIE_AT FD [PARENT_PID]
"""

from __future__ import annotations

import sys
import time

import specdec.engine
from specdec.engine_child import main

step_seconds, die_at = float(sys.argv[1]), int(sys.argv[2])
step = specdec.engine.Engine.step


def faulty_step(engine: specdec.engine.Engine) -> object:
    time.sleep(step_seconds)
    if engine.stats().num_steps == die_at:
        raise RuntimeError("injected: device lost at 0xdeadbeef")
    return step(engine)


specdec.engine.Engine.step = faulty_step
main(int(sys.argv[3]), int(sys.argv[4]) if len(sys.argv) > 4 else None)
