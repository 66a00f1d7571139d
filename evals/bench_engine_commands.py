"""`specdec bench engine`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

import typer

from specdec.evals.flags import MODEL, SPECULATION, WORK, Json, Save, end, numbers_of, terminal_of

_DEVICE, _BESIDE = "Device", "Beside another library"
_MAX_BATCH, _MAX_TOKENS = 4096, 2**20
_MAX_DRAFTS = 64
_ONLY_PHASES = ("phase", "temperature", "steps", "k", "acceptance", "draft_shape", "kv_cache_dtype")
_ONLY_BESIDE = ("ways", "new_tokens")


def engine(
    given: typer.Context,
    phase: Annotated[
        str, typer.Option(metavar="NAME,NAME", help="What to time: decode, prefill.", rich_help_panel=WORK)
    ] = "decode,prefill",
    batch: Annotated[
        str, typer.Option(metavar="N,N", help="Sequences that are decoded at once.", rich_help_panel=WORK)
    ] = "1,8,64",
    context: Annotated[str, typer.Option(metavar="N,N", help="Tokens of a prompt.", rich_help_panel=WORK)] = "1024",
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.", rich_help_panel=WORK)] = 0.0,
    steps: Annotated[int, typer.Option(min=1, help="Timed steps of decoding.", rich_help_panel=WORK)] = 32,
    repeats: Annotated[
        int, typer.Option(min=1, help="Timed runs of each prompt, or beside.", rich_help_panel=WORK)
    ] = 3,
    max_num_batched_tokens: Annotated[
        int, typer.Option(min=1, max=_MAX_TOKENS, help="Tokens of a step, as of a server.", rich_help_panel=WORK)
    ] = 8192,
    seed: Annotated[int, typer.Option(min=0, help="Of weights and prompts.", rich_help_panel=WORK)] = 0,
    shape: Annotated[
        str, typer.Option(metavar="NAME", help="Whose sizes; a wrong name lists them.", rich_help_panel=MODEL)
    ] = "smollm2-135m",
    dtype: Annotated[
        Literal["bfloat16", "float16", "float32"],
        typer.Option(help="Of weights, keys and values.", rich_help_panel=MODEL),
    ] = "bfloat16",
    kv_cache_dtype: Annotated[
        Literal["auto", "fp8"],
        typer.Option(help="Of keys and values: as --dtype, or, on a GPU, half of 16 bits.", rich_help_panel=MODEL),
    ] = "auto",
    k: Annotated[
        str, typer.Option("--k", metavar="N,N", help="Drafts of each sequence; 0 is none.", rich_help_panel=SPECULATION)
    ] = "0,4",
    acceptance: Annotated[
        str,
        typer.Option(
            metavar="R,R",
            help="The share of drafts that are accepted up to their first token, up to their second, and so on.",
            rich_help_panel=SPECULATION,
        ),
    ] = "0.7,0.4,0.25,0.15",
    draft_shape: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A model to draft with, of the same vocabulary.",
            show_default="drafts cost nothing",
            rich_help_panel=SPECULATION,
        ),
    ] = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="As of a server.", rich_help_panel=_DEVICE)
    ] = "auto",
    enforce_eager: Annotated[
        bool, typer.Option("--enforce-eager", help="As of a server: no captured graphs.", rich_help_panel=_DEVICE)
    ] = False,
    async_scheduling: Annotated[
        bool,
        typer.Option(
            "--async-scheduling/--no-async-scheduling",
            help="As of a server: passes launched before their tokens are known to the host, on a GPU.",
            rich_help_panel=_DEVICE,
        ),
    ] = True,
    beside: Annotated[
        Literal["transformers"] | None,
        typer.Option(
            help="Time answers, from prompts to last tokens, in turns with that library instead of phases.",
            show_default=False,
            rich_help_panel=_BESIDE,
        ),
    ] = None,
    ways: Annotated[
        str,
        typer.Option(
            metavar="NAME,NAME",
            help="Through it: generate, static (a compiled step over a fixed cache), continuous, continuous-sdpa.",
            rich_help_panel=_BESIDE,
        ),
    ] = "generate,continuous",
    new_tokens: Annotated[
        int, typer.Option(min=2, max=_MAX_TOKENS, help="Of each answer.", rich_help_panel=_BESIDE)
    ] = 128,
    json: Json = False,
    save: Save = False,
) -> None:
    """How near does the engine come to what the device does at best, and how near speculation to its ideal gain?

    Builds a model of that shape with random weights, in memory, and steps the engine as a server does. Drafts are
    accepted at given rates, whatever they are. Exits with 1 where passes give other logits than the model written out
    does, or there is room for no point; nothing is timed then.

    Beside transformers: the same prompts, and as many tokens of each, by both on one copy of the weights. Exits with 1
    where logits or answers differ by more than rounding, which are not timed then.
    """
    from specdec.evals.bench_beside import BesideRun, run_beside  # noqa: PLC0415
    from specdec.evals.bench_device import MissingDeviceError  # noqa: PLC0415
    from specdec.evals.bench_engine import run_engine  # noqa: PLC0415
    from specdec.evals.bench_engine_sweep import PHASES, EngineRun  # noqa: PLC0415
    from specdec.evals.bench_shapes import SHAPES  # noqa: PLC0415

    phases = [part.strip() for part in phase.split(",")]
    for name in phases:
        if name not in PHASES:
            raise typer.BadParameter(f"{name!r} is none of {', '.join(PHASES)}", param_hint="--phase")
    for flag, chosen in (("--shape", shape), ("--draft-shape", draft_shape)):
        if chosen is not None and chosen not in SHAPES:
            raise typer.BadParameter(f"{chosen!r} is none of {', '.join(SHAPES)}", param_hint=flag)
    if draft_shape is not None and SHAPES[draft_shape].vocab_size != SHAPES[shape].vocab_size:
        raise typer.BadParameter(
            f"{draft_shape} has {SHAPES[draft_shape].vocab_size} tokens and {shape} {SHAPES[shape].vocab_size}; "
            "a draft must share its target's",
            param_hint="--draft-shape",
        )
    nums_drafts = _nums_drafts(k)
    rates = _rates(acceptance)
    if len(rates) < max(nums_drafts):
        raise typer.BadParameter(
            f"{len(rates)} rates for {max(nums_drafts)} drafts; give one each", param_hint="--acceptance"
        )
    if draft_shape is not None and max(nums_drafts) == 0:
        raise typer.BadParameter("nothing is drafted; give --k as well", param_hint="--draft-shape")
    run = EngineRun(
        shape=shape,
        draft_shape=draft_shape,
        dtype=dtype,
        kv_cache_dtype=kv_cache_dtype,
        device=device,
        enforce_eager=enforce_eager,
        async_scheduling=async_scheduling,
        phases=tuple(name for name in PHASES if name in phases),
        batches=numbers_of(batch, _MAX_BATCH, "--batch"),
        contexts=numbers_of(context, _MAX_TOKENS, "--context"),
        nums_drafts=nums_drafts,
        acceptance_rates=rates,
        temperature=temperature,
        num_steps=steps,
        repeats=repeats,
        max_num_batched_tokens=max_num_batched_tokens,
        seed=seed,
    )
    run_of_beside = BesideRun(
        shape=shape,
        dtype=dtype,
        device=device,
        ways=_ways(ways),
        batches=run.batches,
        contexts=run.contexts,
        num_new_tokens=new_tokens,
        repeats=repeats,
        max_num_batched_tokens=max_num_batched_tokens,
        seed=seed,
    )
    _refuse_others(given, _ONLY_PHASES if beside is not None else _ONLY_BESIDE, is_beside=beside is not None)
    terminal = terminal_of(json=json)
    try:
        result = run_engine(run, terminal) if beside is None else run_beside(run_of_beside, terminal)
    except MissingDeviceError as error:
        raise typer.BadParameter(str(error)) from error
    end(result, terminal, save=save)


def _refuse_others(given: typer.Context, names: Iterable[str], *, is_beside: bool) -> None:
    """Raises typer's BadParameter where a flag was given that changes nothing."""
    for name in names:
        source = given.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(
                f"it changes nothing {'beside another library' if is_beside else 'without --beside'}; leave it out",
                param_hint="--" + name.replace("_", "-"),
            )


def _ways(text: str) -> tuple[str, ...]:
    """Raises typer's BadParameter."""
    from specdec.evals.bench_beside_sides import WAYS  # noqa: PLC0415

    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for name in names:
        if name not in WAYS:
            raise typer.BadParameter(f"{name!r} is none of {', '.join(WAYS)}", param_hint="--ways")
    return names


def _nums_drafts(text: str) -> tuple[int, ...]:
    """Numbers from 0 up, by comma. Raises typer's BadParameter."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) <= _MAX_DRAFTS for part in parts):
        raise typer.BadParameter(
            f"{text!r} is no list of numbers between 0 and {_MAX_DRAFTS}, as 0,4", param_hint="--k"
        )
    return tuple(dict.fromkeys(int(part) for part in parts))


def _rates(text: str) -> tuple[float, ...]:
    """Shares by comma, none above the one before it. Raises typer's BadParameter."""
    try:
        rates = tuple(float(part) for part in text.split(","))
    except ValueError:
        rates = ()
    if not rates or not all(0 <= rate <= 1 for rate in rates) or list(rates) != sorted(rates, reverse=True):
        raise typer.BadParameter(
            f"{text!r} is no list of shares between 0 and 1, none above the one before it, as 0.7,0.4",
            param_hint="--acceptance",
        )
    return rates
