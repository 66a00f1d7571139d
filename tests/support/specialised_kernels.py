"""Which kernels a GPU would compile, and when: for an engine at start, and for its requests, where there is no GPU.

    python -P specialised_kernels.py FOLDER DTYPE        where models may be written

The engine computes by the kernels' references. Whatever it asks of a kernel is also asked of Triton, which says what it
would compile for it, by dtypes, alignments and numbers, and compiles nothing. Prints the kernels that were asked for
when requests ran and not before, each with the arguments that nothing before was like.
"""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

from compiled_kernels import MODULES, NUM_PROCESSORS, Driver
from kernel_engines import CASES, answers, config_of, kernel_engine
from tiny_model import write_tiny_model
from triton.runtime import driver
from triton.runtime.jit import JITFunction, compute_cache_key

from specdec import SamplingParams, build
from specdec.kernels import attention_tiling
from specdec.linear import FewRowLinear
from specdec.pool_size import max_batched_tokens, max_logits_rows
from specdec.speculative import MAX_DRAFT_TOKENS
from specdec.warm_up import warm_up_passes, warm_up_sampling

PROMPT_LENGTHS = (1, 2, 7, 33, 100, 470, 3)


class Launches:
    """What was asked of Triton."""

    def __init__(self):
        self.is_launching = False
        """Whether wrappers launch kernels, or run their references."""
        self.phase = None
        """None while nothing is said of it."""
        self.news = []
        self._keys = set()
        self._arguments = {}

    def ask(self, kernel, arguments, options):
        _, names, _, _, binder = kernel.device_caches[0]
        _, specialization, options = binder(*arguments, **options, debug=False)
        key = kernel.fn.__name__, compute_cache_key(names, specialization, options)
        if key in self._keys:
            return
        self._keys.add(key)
        before = self._arguments.setdefault(key[0], [])
        if self.phase is not None:
            nearest = min(before, key=lambda each: sum(map(_differ, each, specialization)), default=specialization)
            named = zip(kernel.params, nearest, specialization, strict=True)
            differing = {param.name: [str(old), str(new)] for param, old, new in named if old != new}
            self.news.append({"phase": self.phase, "kernel": key[0], "differing": differing})
        before.append(specialization)

    def both(self, wrapper):
        @functools.wraps(wrapper)
        def asked_and_computed(*arguments, **options):
            self.is_launching = True
            try:
                wrapper(*arguments, **options)
            finally:
                self.is_launching = False
            wrapper(*arguments, **options)

        return asked_and_computed


def _differ(one, other):
    return one != other


def watch(launches):
    """Wherever the engine calls a kernel's wrapper."""

    def launch_of(kernel, grid):
        return lambda *arguments, **options: launches.ask(kernel, arguments, options)

    JITFunction.__getitem__ = launch_of
    wrappers = {}
    for module in MODULES:
        module.runs_in_triton = lambda _: launches.is_launching
        for name, value in vars(module).items():
            if (
                callable(value)
                and getattr(value, "__module__", "") == module.__name__
                and f"{name}_reference" in vars(module)
            ):
                wrappers[value] = launches.both(value)
    for name, module in list(sys.modules.items()):
        if name.startswith("specdec.") and module not in MODULES:
            for attribute, value in list(vars(module).items()):
                if callable(value) and getattr(value, "__hash__", None) is not None and value in wrappers:
                    setattr(module, attribute, wrappers[value])


def main(folder, dtype):
    torch.cuda.is_available = lambda: False
    driver.set_active(Driver(90))
    attention_tiling._num_processors = lambda _: NUM_PROCESSORS
    launches = Launches()
    watch(launches)
    target = write_tiny_model(folder / "target", seed=1)
    draft = write_tiny_model(
        folder / "draft",
        seed=2,
        num_layers=1,
        hidden_size=48,
        intermediate_size=96,
        num_heads=3,
        num_kv_heads=1,
        head_dim=8,
    )
    sizes = {"max_model_len": 600, "num_kv_blocks": 120, "max_num_batched_tokens": 128}
    config = config_of(target, draft, dtype=dtype, enforce_eager=True, **sizes)
    if dtype == "bfloat16":
        build.linear_method = lambda **_: FewRowLinear()
    engine = kernel_engine(torch.device("cpu"), config)
    # What an engine does at start on a GPU.
    for runner in (engine.runner, engine._runtime.draft_runner):
        warm_up_passes(
            runner,
            num_blocks=config.num_kv_blocks,
            block_size=config.block_size,
            max_model_len=engine.max_model_len,
            max_tokens=max_batched_tokens(config, runner.device),
        )
    num_rows = max_logits_rows(config)
    vocab_size = engine.runner.model.config.vocab_size
    engine._logits.reserve(num_rows, vocab_size)
    warm_up_sampling(
        engine.verifier,
        engine.verifier._sampler,
        engine._logits,
        tokenizer=engine.tokenizer,
        vocab_size=vocab_size,
        max_drafts=min(num_rows - 1, MAX_DRAFT_TOKENS),
    )
    assert launches._keys, "an engine asks for kernels"
    for sampling, speculation in CASES:
        launches.phase = f"{sampling}, {speculation}"
        answers(engine, sampling, speculation)
    launches.phase = "prompts"
    prompts = [[3 + i % 50 for i in range(length)] for length in PROMPT_LENGTHS]
    engine.generate(prompts, SamplingParams(max_tokens=20, seed=3, ignore_eos=True))
    print(json.dumps({"num_kernels": len(launches._keys), "news": launches.news}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
