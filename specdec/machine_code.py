"""MachineCode: functions in LLVM's text, compiled for this processor and run by the threads of torch's own operators.

Two pools of OpenMP threads take each other's cores: a thread spins for a while before it sleeps. So a function is
called through the very library that torch calls, whose threads are torch's.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import struct
import threading
from typing import Any, Final

import torch

from specdec.errors import ConfigError

logger = logging.getLogger(__name__)

_LEAST_LLVM: Final = 19
"""Earlier ones do not know `splat`."""
_SCRATCH_STEP: Final = 2**18
"""Floats: contexts grow by a token a step, and their scores with them."""


class MachineCode:
    """Functions `void (ptr job)`, each called by all threads at once with the same job, an array of 64-bit numbers."""

    def __init__(self, text: str, *names: str) -> None:
        """Compile the module `text`, some tenths of a second, and take the functions of these names."""
        # Importing it takes a while, which those who never multiply on a CPU need not pay.
        from llvmlite import binding  # noqa: PLC0415

        _initialize()
        module = binding.parse_assembly(text)
        module.verify()
        machine = binding.Target.from_default_triple().create_target_machine(
            cpu=binding.get_host_cpu_name(), features=binding.get_host_cpu_features().flatten(), opt=3, jit=True
        )
        passes = binding.create_pass_builder(machine, binding.create_pipeline_tuning_options(speed_level=3))
        passes.getModulePassManager().run(module, passes)
        # It owns the code.
        self._engine: Any = binding.create_mcjit_compiler(module, machine)
        self._engine.finalize_object()
        self._addresses = {name: self._engine.get_function_address(name) for name in names}
        fork = _fork()
        assert fork is not None, "asked for where threads cannot be had"
        self._fork = fork
        self._job = _Job()

    def run(self, name: str, job: tuple[int, ...], *, num_threads: int) -> None:
        """Return when every thread has returned. `job` is as long each time; the threads write to a copy."""
        self._job.fill(job)
        self._fork(self._addresses[name], self._job.address, num_threads, 0)


@functools.cache
def is_available() -> bool:
    """Whether such code runs here: on x86 processors with AVX2, beside torch's OpenMP threads."""
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        return False
    missing = _missing()
    if missing:
        logger.warning("layers are worked out by the library, which is slower on this CPU: %s", missing)
    return not missing


def _missing() -> str:
    """What there is to make code with, or to run it, that is not here; empty where all is."""
    if _fork() is None:
        return "this build of torch has no OpenMP with GNU's entry"
    try:
        from llvmlite import binding  # noqa: PLC0415
    except ImportError:
        return "llvmlite cannot be imported"
    if binding.llvm_version_info[0] < _LEAST_LLVM:
        return f"llvmlite has LLVM {binding.llvm_version_info[0]}, and {_LEAST_LLVM} is the least"
    return ""


class Scratch(threading.local):
    """Memory of the calling thread, lent to those that work for it."""

    def __init__(self) -> None:
        self._numbers = self._of_size(0)

    def of(self, size: int) -> int:
        """A pointer to so many floats."""
        if self._numbers.shape[0] < size:
            # The old ones go first.
            self._numbers = self._of_size(0)
            self._numbers = self._of_size(-(-size // _SCRATCH_STEP) * _SCRATCH_STEP)
        return self._numbers.data_ptr()

    @staticmethod
    def _of_size(size: int) -> torch.Tensor:
        # Whatever defaults a process has set.
        return torch.empty(size, dtype=torch.float32, device="cpu")


class _Job(threading.local):
    """The calling thread's memory for a job."""

    def __init__(self) -> None:
        self._format: struct.Struct | None = None

    def fill(self, job: tuple[int, ...]) -> None:
        if self._format is None:
            self._format = struct.Struct(f"{len(job)}q")
            self._memory = ctypes.create_string_buffer(self._format.size)
            self.address = ctypes.addressof(self._memory)
        self._format.pack_into(self._memory, 0, *job)


@functools.cache
def _fork() -> Any | None:  # a foreign function, which ctypes leaves untyped
    """GNU's entry to a parallel region, which LLVM's and Intel's runtimes have as well; None where torch has none."""
    # As the linker bound torch's own calls: to what the whole process sees, else to what torch brings.
    found = getattr(ctypes.CDLL(None), "GOMP_parallel", None) if os.name == "posix" else None
    if found is None:
        found = getattr(ctypes.CDLL(torch._C.__file__), "GOMP_parallel", None)  # noqa: SLF001
    if found is not None:
        found.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        found.restype = None
    return found


@functools.cache
def _initialize() -> None:
    from llvmlite import binding  # noqa: PLC0415

    try:
        binding.check_jit_execution()
    except OSError as error:
        raise ConfigError(
            f"memory for machine code cannot be had ({error}): allow what can be written to be executed, as systemd's "
            "MemoryDenyWriteExecute and SELinux's execmem may forbid"
        ) from error
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
