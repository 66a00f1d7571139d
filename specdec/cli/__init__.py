"""The command line: `specdec serve`, `run`, `pull`, `schema`, `eval`, `version`."""

from specdec.cli.app import app, main

__all__ = ["app", "main"]
