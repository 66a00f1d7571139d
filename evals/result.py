"""EvalResult: what every eval returns: figures, a verdict, and the conditions they hold under."""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path

import msgspec

from specdec.evals.environment import Environment

RESULTS_FOLDER = Path(os.environ.get("SPECDEC_RESULTS_FOLDER") or Path(__file__).resolve().parent / "results")
"""The variable names another, as for a copy of the repository that is not to last."""


def model_label(model: str) -> str:
    """As a result names it: a folder by its own name, wherever it was on the machine."""
    return Path(model).name if Path(model).is_dir() else model


class EvalResult(msgspec.Struct, frozen=True, kw_only=True):
    """One run of one eval."""

    eval_name: str
    failures: tuple[str, ...]
    """What did not hold, a sentence each; an eval without any has passed."""
    warnings: tuple[str, ...]
    settings: dict[str, object]
    figures: dict[str, object]
    """The eval's own fields; in JSON they stand at the top level."""
    environment: Environment

    @property
    def is_passed(self) -> bool:
        return not self.failures

    def as_json(self) -> dict[str, object]:
        return {
            "eval": self.eval_name,
            "passed": self.is_passed,
            **self.figures,
            "failures": self.failures,
            "warnings": self.warnings,
            "settings": self.settings,
            "environment": self.environment,
        }

    def encode(self) -> str:
        """One line of JSON."""
        return msgspec.json.encode(self.as_json()).decode()

    def save(self, folder: Path = RESULTS_FOLDER) -> Path:
        """Write a dated file; a second one of the same minute gets a number."""
        folder.mkdir(parents=True, exist_ok=True)
        stamp = dt.datetime.now(tz=dt.UTC).strftime("%Y-%m-%dT%H%MZ")
        content = msgspec.json.format(self.encode().encode(), indent=2) + b"\n"
        for attempt in range(1, 1000):
            suffix = "" if attempt == 1 else f"-{attempt}"
            path = folder / f"{self.eval_name}-{stamp}{suffix}.json"
            try:
                with path.open("xb") as file:
                    file.write(content)
            except FileExistsError:
                continue
            return path
        raise FileExistsError(f"{folder} has a thousand results of {self.eval_name} from this minute")
