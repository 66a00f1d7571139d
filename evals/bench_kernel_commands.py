"""`specdec bench kernels`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from specdec.evals.flags import MODEL, WORK, Json, Save, end, numbers_of, terminal_of

DEVICE = "Device"
_MAX_BATCH, _MAX_TOKENS, _MAX_STAGES = 4096, 2**20, 8


def kernels(
    op: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Time that one alone; may be given several times.",
            show_default="all of them",
            rich_help_panel=WORK,
        ),
    ] = None,
    batch: Annotated[str, typer.Option(metavar="N,N", help="Sequences.", rich_help_panel=WORK)] = "1,8,64",
    context: Annotated[
        str, typer.Option(metavar="N,N", help="Tokens that each attends to.", rich_help_panel=WORK)
    ] = "1024,4096,16384",
    prompt: Annotated[
        int, typer.Option(min=1, max=_MAX_TOKENS, help="Tokens of a prompt.", rich_help_panel=WORK)
    ] = 8192,
    k: Annotated[
        int, typer.Option("--k", min=1, max=64, help="Drafts that are verified at once.", rich_help_panel=WORK)
    ] = 4,
    vocab_size: Annotated[
        int,
        typer.Option(
            min=64,
            max=_MAX_TOKENS,
            help="Of the logits that are masked, drawn from and verified.",
            rich_help_panel=WORK,
        ),
    ] = 151_936,
    num_stages: Annotated[
        str | None,
        typer.Option(
            metavar="N,N",
            help="Time paged_attention with each of them, as 2,5.",
            show_default="the engine's",
            rich_help_panel=WORK,
        ),
    ] = None,
    num_warps: Annotated[
        str | None,
        typer.Option(
            metavar="N,N", help="And with each of these, as 4,8.", show_default="the engine's", rich_help_panel=WORK
        ),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timed calls of each.", rich_help_panel=WORK)] = 20,
    shape: Annotated[
        str, typer.Option(metavar="NAME", help="Whose sizes; a wrong name lists them.", rich_help_panel=MODEL)
    ] = "llama-3-8b",
    dtype: Annotated[
        Literal["bfloat16", "float16", "float32"], typer.Option(help="Of all but the logits.", rich_help_panel=MODEL)
    ] = "bfloat16",
    device: Annotated[
        Literal["cuda", "cpu"],
        typer.Option(help="cpu times what the engine runs in the kernels' place there.", rich_help_panel=DEVICE),
    ] = "cuda",
    json: Json = False,
    save: Save = False,
) -> None:
    """How near do the kernels come to what the device does at best?

    The bandwidth of a copy and the rate of a product are measured first. Exits with 1 where an op differs from its
    reference, and says nothing of how fast that one is; with 2 without a GPU, unless --device is cpu.
    """
    from specdec.evals.bench_device import MissingDeviceError  # noqa: PLC0415
    from specdec.evals.bench_kernels import OPS, KernelRun, run_kernels  # noqa: PLC0415
    from specdec.evals.bench_shapes import SHAPES  # noqa: PLC0415
    from specdec.kernels.attention_tiling import NUMBERS_OF_WARPS  # noqa: PLC0415

    unknown = sorted(set(op or ()).difference(OPS))
    if unknown:
        raise typer.BadParameter(f"{unknown[0]!r} is none of {', '.join(OPS)}", param_hint="--op")
    if shape not in SHAPES:
        raise typer.BadParameter(f"{shape!r} is none of {', '.join(SHAPES)}", param_hint="--shape")
    contexts = numbers_of(context, _MAX_TOKENS, "--context")
    if min(contexts) <= k:
        raise typer.BadParameter(
            f"a context of {min(contexts)} tokens has no room for {k} drafts and the token before them",
            param_hint="--context",
        )
    ops = tuple(name for name in OPS if not op or name in op)
    stages = _programs_of(num_stages, _MAX_STAGES, "--num-stages", ops, device)
    warps = _programs_of(num_warps, max(NUMBERS_OF_WARPS), "--num-warps", ops, device)
    if not set(warps) <= set(NUMBERS_OF_WARPS):
        raise typer.BadParameter(
            f"{num_warps!r} is no list of {', '.join(map(str, NUMBERS_OF_WARPS))}", param_hint="--num-warps"
        )
    run = KernelRun(
        ops=ops,
        shape=shape,
        dtype=dtype,
        device=device,
        batches=numbers_of(batch, _MAX_BATCH, "--batch"),
        contexts=contexts,
        num_prompt_tokens=prompt,
        num_drafts=k,
        vocab_size=vocab_size,
        num_stages=stages,
        num_warps=warps,
        repeats=repeats,
    )
    terminal = terminal_of(json=json)
    try:
        result = run_kernels(run, terminal)
    except MissingDeviceError as error:
        raise typer.BadParameter(str(error), param_hint="--device") from error
    end(result, terminal, save=save)


def _programs_of(text: str | None, most: int, flag: str, ops: tuple[str, ...], device: str) -> tuple[int, ...]:
    """The numbers, where there is a kernel that they are about; none without the flag. Raises typer's BadParameter."""
    if text is None:
        return ()
    if device == "cpu" or "paged_attention" not in ops:
        raise typer.BadParameter(
            "it is about the kernel of paged_attention, which is not timed: take it among --op, and a GPU",
            param_hint=flag,
        )
    return numbers_of(text, most, flag)
