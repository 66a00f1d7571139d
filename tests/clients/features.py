"""What a client's script says of each feature it was made to use: one line of JSON."""

from __future__ import annotations

import asyncio
import importlib.metadata
import inspect
import json
import sys
import traceback
from collections.abc import Callable


def try_out(client: str, **features: Callable[[str, str], object]) -> None:
    """Call each feature with the server's URL and the model's name, which the command line has; print how it went."""
    url, model = sys.argv[1:]
    version = importlib.metadata.version(client)
    for name, feature in features.items():
        problem = None
        try:
            result = feature(url, model)
            if inspect.iscoroutine(result):
                asyncio.run(result)
        except Exception:  # noqa: BLE001, whatever a client raises is what is asked
            problem = traceback.format_exc()
        line = {"client": f"{client} {version}", "feature": name.replace("_", " "), "problem": problem}
        print(json.dumps(line), flush=True)
