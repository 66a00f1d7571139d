"""KernelCell: one call of one op, with what it has to move; and KernelOp, which makes them and vouches for itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from specdec.backend import FP8_CAPABILITY
from specdec.evals.bench_device import BenchDevice, Launch
from specdec.evals.bench_work import Work
from specdec.models.config import ModelConfig

TOLERANCE: Final = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 2e-2}
"""Of what is computed in fp32 and rounded once or twice, for numbers of about 1."""
CHECK_VOCABULARIES: Final = (33, 1027, 4999)
"""Widths of the logits that checks are made with: no multiples of a word or of a tile, within one tile and beyond."""


@dataclass(frozen=True, slots=True)
class KernelSetting:
    """What the ops of one run are made for."""

    bench: BenchDevice
    dtype: torch.dtype
    shape: ModelConfig
    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    num_prompt_tokens: int
    num_drafts: int
    """Of each sequence, where drafts are verified: K."""
    vocab_size: int
    """Of the logits that are masked, drawn from and verified."""
    num_stages: tuple[int, ...] = ()
    """Of paged_attention's programs, each timed; none is the engine's own, as in the next."""
    num_warps: tuple[int, ...] = ()

    @property
    def device(self) -> torch.device:
        return self.bench.device

    @property
    def cache_dtypes(self) -> tuple[torch.dtype, ...]:
        """Those that keys and values are kept in, where the device reads it fp8 as well."""
        if not self.bench.is_gpu:
            return (self.dtype,)
        if self.device.type == "cuda" and torch.cuda.get_device_capability(self.device) < FP8_CAPABILITY:
            return (self.dtype,)
        return (self.dtype, torch.float8_e4m3fn)

    def random(self, *size: int, dtype: torch.dtype | None = None, seed: int = 0) -> Tensor:
        """Standard normal numbers on the device, of the setting's dtype unless told otherwise."""
        generator = torch.Generator(self.device).manual_seed(seed)
        return torch.randn(*size, generator=generator, device=self.device).to(dtype or self.dtype)

    def row_counts(self) -> list[int]:
        """Tokens of a step: decoding, verification of the largest batch's drafts, a prompt."""
        return sorted({*self.batches, max(self.batches) * (self.num_drafts + 1), self.num_prompt_tokens})


@dataclass(frozen=True, slots=True)
class KernelCell:
    label: str
    work: Work
    num_allocated_bytes: int
    prepare: Callable[[], Callable[[], object]]
    """Allocates; what it returns is the call to be timed, and may be repeated."""
    launch: Launch = Launch.AS_GRAPH
    obstacle: str | None = None
    """Why it cannot be timed; None where it can."""


@dataclass(frozen=True, slots=True)
class KernelOp:
    name: str
    check: Callable[[KernelSetting], str | None]
    """Runs it at small shapes beside its reference; what differs, or None."""
    cells: Callable[[KernelSetting], list[KernelCell]]
    on_cpu: str | None
    """What the engine runs in its place on a CPU, which is then checked and timed; None where there is nothing."""


def difference(what: str, actual: Tensor, expected: Tensor, tolerance: float = 0.0) -> str | None:
    """In words; None where each number is as expected. NaN is no number that was expected."""
    if actual.shape != expected.shape:
        return f"{what}: the shape is {list(actual.shape)}, not {list(expected.shape)}"
    if actual.is_floating_point():
        found, due = actual.double(), expected.double()
        is_wrong = ~((found == due) | ((found - due).abs() <= tolerance * (1.0 + due.abs())))
    else:
        found, due = actual, expected
        is_wrong = found != due
    num_wrong = int(is_wrong.sum())
    if not num_wrong:
        return None
    place = is_wrong.nonzero()[0].tolist()
    return (
        f"{what}: {num_wrong} of {actual.numel()} numbers differ from the reference's; at {place} "
        f"{found[tuple(place)].item():.6g} stands for {due[tuple(place)].item():.6g}"
    )


def first_difference(found: Sequence[str | None]) -> str | None:
    return next((each for each in found if each is not None), None)
