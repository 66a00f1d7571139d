"""The flags that every command with an engine takes, named as vLLM names them, and the EngineConfig they make."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Final, Literal, get_type_hints

import msgspec
import typer

from specdec.config import EngineConfig
from specdec.errors import ConfigError
from specdec.speculative import CHAIN, NONE, PROPOSERS, SYNTHETIC, SpeculativeConfig, Verification, methods_of

if TYPE_CHECKING:
    from specdec.grammars import Limits

_DEFAULTS: Final = EngineConfig()
_PROPOSER_NAMES: Final = ", ".join(name for name in PROPOSERS if name != SYNTHETIC)

_UNITS: Final = {
    "": 1,
    "B": 1,
    **{f"{prefix}B": 1000**power for power, prefix in enumerate("KMGT", start=1)},
    **{f"{prefix}{unit}": 1024**power for power, prefix in enumerate("KMGT", start=1) for unit in ("", "iB")},
}


def parse_size(text: str) -> int:
    """Bytes of a size as people write it: 2GiB and 2G are 2**31, 2GB is 2 * 10**9, 2048 is 2048."""
    written = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip(), re.ASCII)
    units = {unit.lower(): factor for unit, factor in _UNITS.items()}
    if written is None or written[2].lower() not in units:
        raise typer.BadParameter(f"{text!r} is no size; write 512MiB, 2GiB, 2GB or a number of bytes")
    return int(float(written[1]) * units[written[2].lower()])


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFlags:
    """The flags as given; None where one was left out."""

    model: Annotated[
        str,
        typer.Argument(
            help="A catalog name, a folder (config.json, *.safetensors, tokenizer.json) or a Hugging Face id."
        ),
    ] = _DEFAULTS.model
    dtype: Annotated[
        Literal["auto", "bfloat16", "float16", "float32"],
        typer.Option(help="Arithmetic of the weights; auto is the checkpoint's own.", rich_help_panel="Model"),
    ] = _DEFAULTS.dtype
    device: Annotated[
        Literal["auto", "cpu", "cuda"],
        typer.Option(help="Where the model runs; auto is a CUDA device where there is one.", rich_help_panel="Model"),
    ] = _DEFAULTS.device
    max_model_len: Annotated[
        int | None,
        typer.Option(
            help="Prompt and output tokens of one sequence.", show_default="the model's own", rich_help_panel="Model"
        ),
    ] = None
    seed: Annotated[
        int, typer.Option(help="Source of the seeds of requests that bring none.", rich_help_panel="Model")
    ] = _DEFAULTS.seed
    exact: Annotated[
        bool,
        typer.Option(
            "--exact",
            help="Row-invariant arithmetic: the same tokens whatever else is in the batch, at some speed.",
            rich_help_panel="Model",
        ),
    ] = _DEFAULTS.exact
    enforce_eager: Annotated[
        bool,
        typer.Option(
            "--enforce-eager",
            help="Launch a GPU's kernels one by one, never as captured graphs: a faster start, slower steps.",
            rich_help_panel="Model",
        ),
    ] = _DEFAULTS.enforce_eager
    spec: Annotated[
        str | None,
        typer.Option(
            metavar="METHOD",
            help=(
                f"Who drafts: chain (all of them, the draft model where --draft names one), none, or names joined "
                f"by +: {_PROPOSER_NAMES}."
            ),
            show_default="grammar, or chain with --draft",
            rich_help_panel="Speculation",
        ),
    ] = None
    draft: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="A smaller model to draft with; it must share the tokenizer.",
            rich_help_panel="Speculation",
        ),
    ] = None
    num_speculative_tokens: Annotated[
        int | None,
        typer.Option(
            help="Tokens of every draft.", show_default="as many as pay, draft by draft", rich_help_panel="Speculation"
        ),
    ] = None
    verification: Annotated[
        Verification | None,
        typer.Option(
            help="How drafts are verified: coupled gives the same tokens as without drafts, the others the same law.",
            show_default=str(Verification.COUPLED),
            rich_help_panel="Speculation",
        ),
    ] = None
    speculative_config: Annotated[
        str | None,
        typer.Option(
            metavar="JSON",
            help='All of it at once: \'{"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 4}\'.',
            rich_help_panel="Speculation",
        ),
    ] = None
    max_num_seqs: Annotated[
        int, typer.Option(help="Sequences computed at once.", rich_help_panel="Scheduling & memory")
    ] = _DEFAULTS.max_num_seqs
    max_num_batched_tokens: Annotated[
        int | None,
        typer.Option(
            help="Tokens of one step, over target and draft.",
            show_default="512, on a GPU 2048, or --max-num-seqs where that is more",
            rich_help_panel="Scheduling & memory",
        ),
    ] = None
    async_scheduling: Annotated[
        bool | None,
        typer.Option(
            "--async-scheduling/--no-async-scheduling",
            help="Launch passes before the tokens before them, or a draft model's, are known to the host.",
            show_default="on a GPU",
            rich_help_panel="Scheduling & memory",
        ),
    ] = _DEFAULTS.async_scheduling
    kv_cache_dtype: Annotated[
        Literal["auto", "fp8"],
        typer.Option(
            help="How keys and values are kept: auto is as --dtype; fp8 takes half the memory, on a GPU.",
            rich_help_panel="Scheduling & memory",
        ),
    ] = _DEFAULTS.kv_cache_dtype
    block_size: Annotated[int, typer.Option(help="Tokens in a KV block.", rich_help_panel="Scheduling & memory")] = (
        _DEFAULTS.block_size
    )
    gpu_memory_utilization: Annotated[
        float | None,
        typer.Option(
            help="Part of the GPU's memory for weights, KV cache and steps.",
            show_default=str(_DEFAULTS.gpu_memory_utilization),
            rich_help_panel="Scheduling & memory",
        ),
    ] = None
    kv_cache_memory: Annotated[
        int | None,
        typer.Option(
            metavar="SIZE",
            parser=parse_size,
            help="Memory of the KV cache, as 2GiB.",
            show_default="1GiB on a CPU, else by --gpu-memory-utilization",
            rich_help_panel="Scheduling & memory",
        ),
    ] = None
    num_kv_blocks: Annotated[
        int | None,
        typer.Option(
            help="Blocks of the KV cache.", show_default="what its memory holds", rich_help_panel="Scheduling & memory"
        ),
    ] = None
    enable_prefix_caching: Annotated[
        bool,
        typer.Option(
            "--enable-prefix-caching/--no-enable-prefix-caching",
            help="Keep the KV of prompts for prompts that begin alike.",
            rich_help_panel="Scheduling & memory",
        ),
    ] = _DEFAULTS.enable_prefix_caching
    grammar_limit: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="A limit of what a schema may be or take, as max_schema_bytes=8000000; may be given several times.",
            show_default="those of docs/json-schema.md",
            rich_help_panel="Schemas",
        ),
    ] = None
    num_compile_workers: Annotated[
        int,
        typer.Option(
            help="Processes that compile constraints; 0 compiles them in the engine's own process.",
            rich_help_panel="Structured outputs",
        ),
    ] = _DEFAULTS.num_compile_workers
    check_outputs: Annotated[
        bool,
        typer.Option(
            "--check-outputs",
            help="Judge every finished constrained answer by an independent validator, in a process of its own.",
            rich_help_panel="Structured outputs",
        ),
    ] = _DEFAULTS.check_outputs

    def config(self) -> EngineConfig:
        """The engine's configuration. Raises ConfigError naming the flag, also where two contradict each other."""
        self._refuse_two_sizes()
        return EngineConfig(
            model=self.model,
            dtype=self.dtype,
            device=self.device,
            max_model_len=self.max_model_len,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            kv_cache_dtype=self.kv_cache_dtype,
            block_size=self.block_size,
            kv_cache_memory=self.kv_cache_memory,
            gpu_memory_utilization=(
                _DEFAULTS.gpu_memory_utilization if self.gpu_memory_utilization is None else self.gpu_memory_utilization
            ),
            num_kv_blocks=self.num_kv_blocks,
            seed=self.seed,
            enable_prefix_caching=self.enable_prefix_caching,
            exact=self.exact,
            enforce_eager=self.enforce_eager,
            async_scheduling=self.async_scheduling,
            speculative=self._speculative(),
            grammar_limits=self._grammar_limits(),
            num_compile_workers=self.num_compile_workers,
            check_outputs=self.check_outputs,
        )

    def notes(self) -> dict[str, str]:
        """What to tell a user whose engine turns out to run on the device: by device, one line each."""
        if self.gpu_memory_utilization is None:
            return {}
        return {"cpu": "--gpu-memory-utilization has no effect on a CPU; --kv-cache-memory sizes its KV cache"}

    def _grammar_limits(self) -> Limits | None:
        if not self.grammar_limit:
            return None
        # Not before it is needed: it loads the compiler.
        from specdec.grammars import Limits

        given = {name: value for name, _, value in (one.partition("=") for one in self.grammar_limit)}
        try:
            limits = msgspec.convert(given, Limits, strict=False)
        except msgspec.ValidationError as error:
            raise ConfigError(
                f"{', '.join(self.grammar_limit)} cannot be read: {error}; the names are "
                f"{', '.join(Limits.__struct_fields__)}",
                flag="--grammar-limit",
            ) from None
        for name, value in given.items():
            if not getattr(limits, name) > 0:
                raise ConfigError(f"{name} is {value}; it must be positive", flag="--grammar-limit")
        return limits

    def _refuse_two_sizes(self) -> None:
        given = [
            flag
            for flag, value in (
                ("--num-kv-blocks", self.num_kv_blocks),
                ("--kv-cache-memory", self.kv_cache_memory),
                ("--gpu-memory-utilization", self.gpu_memory_utilization),
            )
            if value is not None
        ]
        if len(given) > 1:
            raise ConfigError(f"{' and '.join(given)} each size the KV cache; keep one of them", flag=given[0])

    def _speculative(self) -> SpeculativeConfig | None:
        if self.speculative_config is not None:
            return self._speculative_from_json(self.speculative_config)
        if self.draft == "":
            raise ConfigError("the draft model has no name", flag="--draft")
        if self.spec == NONE:
            for flag, value in (
                ("--draft", self.draft),
                ("--num-speculative-tokens", self.num_speculative_tokens),
                ("--verification", self.verification),
            ):
                if value is not None:
                    raise ConfigError("--spec none drafts nothing; drop one of the two", flag=flag)
            return None
        default = _DEFAULTS.speculative
        assert default is not None, "an engine drafts unless told otherwise"
        method = self.spec
        if method is None:
            method = default.method if self.draft is None else CHAIN
        self._refuse_spec(method)
        try:
            return SpeculativeConfig(
                method=method,
                model=self.draft,
                num_speculative_tokens=self.num_speculative_tokens,
                verification=self.verification or default.verification,
            )
        except ConfigError as error:
            # The engine knows only the JSON spelling of what was given by a flag of its own; the others are checked.
            raise ConfigError(str(error), flag="--num-speculative-tokens") from error

    def _refuse_spec(self, method: str) -> None:
        try:
            methods = methods_of(method, has_draft_model=self.draft is not None)
        except ConfigError as error:
            raise ConfigError(str(error), flag="--spec") from error
        if SYNTHETIC in methods:
            raise ConfigError("synthetic needs its rates, which only --speculative-config takes", flag="--spec")
        if "draft_model" in methods and self.draft is None:
            raise ConfigError("draft_model needs a model; name one with --draft", flag="--spec")
        if self.draft is not None and "draft_model" not in methods:
            raise ConfigError(
                f"--spec {method} drafts without a model; drop --draft, or use --spec {method}+draft_model",
                flag="--draft",
            )

    def _speculative_from_json(self, text: str) -> SpeculativeConfig:
        for flag, value in (
            ("--spec", self.spec),
            ("--draft", self.draft),
            ("--num-speculative-tokens", self.num_speculative_tokens),
            ("--verification", self.verification),
        ):
            if value is not None:
                raise ConfigError(
                    f"{flag} says the same as --speculative-config; keep one of them", flag="--speculative-config"
                )
        try:
            return msgspec.json.decode(text, type=SpeculativeConfig)
        except ConfigError as error:
            raise ConfigError(str(error), flag="--speculative-config") from error
        except msgspec.MsgspecError as error:
            keys = ", ".join(SpeculativeConfig.__struct_fields__)
            raise ConfigError(
                f"{error}; it takes a JSON object with the keys {keys}", flag="--speculative-config"
            ) from error


def takes_engine_flags(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameter `engine: EngineFlags` is spread, for typer, into one flag for each field."""
    hints = get_type_hints(EngineFlags, include_extras=True)
    flags = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in fields(EngineFlags)
    ]
    own = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in inspect.signature(command, eval_str=True).parameters.items()
        if name != "engine"
    ]

    @functools.wraps(command)
    def spread(**given: object) -> None:
        names = {flag.name for flag in flags}
        engine = EngineFlags(**{name: given.pop(name) for name in names})  # type: ignore[arg-type]  # typer checked them
        command(engine=engine, **given)

    parameters = [*flags, *own]
    spread.__signature__ = inspect.Signature(parameters, return_annotation=None)  # type: ignore[attr-defined]
    spread.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return spread
