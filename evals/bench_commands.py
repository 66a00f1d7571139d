"""The commands of `specdec bench`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

import typer

from specdec.evals.flags import OUTPUT, SPECULATION, WORK, Save, end, faults_of_parameters, numbers_of, terminal_of

SERVER, LOAD, FAULTS = "Server", "Load", "Faults"
_MAX_CONCURRENCY = 10_000
_DEFAULT_CONCURRENCY = "4"
_DEFAULT_NUM_PROMPTS = 64


def serve(
    base_url: Annotated[
        str, typer.Option(help="An OpenAI-compatible server, with or without /v1.", rich_help_panel=SERVER)
    ] = "http://127.0.0.1:8000",
    model: Annotated[
        str | None,
        typer.Option(
            help="The name to ask for.", show_default="the first that the server names", rich_help_panel=SERVER
        ),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="OPENAI_API_KEY", help="Its key.", show_default=False, rich_help_panel=SERVER),
    ] = None,
    endpoint: Annotated[
        Literal["chat", "completions"], typer.Option(help="Which of the two to ask.", rich_help_panel=SERVER)
    ] = "chat",
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds without a byte that end a request.", rich_help_panel=SERVER)
    ] = 600.0,
    watch_pid: Annotated[
        int | None,
        typer.Option(
            metavar="PID",
            help="A process of this machine whose memory is watched, with that of its children.",
            show_default="the server's, as its /metrics say",
            rich_help_panel=SERVER,
        ),
    ] = None,
    dataset: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Prompts of your own: JSON lines, Spec-Bench's questions or MaskBench's schemas; a file or a folder.",
            show_default="the shipped workloads",
            rich_help_panel=WORK,
        ),
    ] = None,
    max_tokens: Annotated[
        int,
        typer.Option(min=1, help="Longest answer, in tokens; raised where a schema needs more.", rich_help_panel=WORK),
    ] = 128,
    constrained: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Share of requests under a schema.",
            show_default="that of the prompts that have one",
            rich_help_panel=WORK,
        ),
    ] = None,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.", rich_help_panel=WORK)] = 0.0,
    seed: Annotated[
        int, typer.Option(min=0, help="Of the requests drawn, their times and their answers.", rich_help_panel=WORK)
    ] = 0,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Answers without a schema all have --max-tokens.", rich_help_panel=WORK)
    ] = False,
    unique_prompts: Annotated[
        bool,
        typer.Option(
            "--unique-prompts", help="Number the prompts, so that no prefix cache holds them.", rich_help_panel=WORK
        ),
    ] = False,
    num_prompts: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Requests at each point.",
            show_default=f"{_DEFAULT_NUM_PROMPTS}, without --duration",
            rich_help_panel=LOAD,
        ),
    ] = None,
    duration: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            help="Seconds for which each point sends requests; the last ones end after it.",
            show_default=False,
            rich_help_panel=LOAD,
        ),
    ] = None,
    concurrency: Annotated[
        str | None,
        typer.Option(
            metavar="N,N",
            help="Requests in flight at once, a point each; with --request-rate the most of them.",
            show_default=f"{_DEFAULT_CONCURRENCY}, without --request-rate",
            rich_help_panel=LOAD,
        ),
    ] = None,
    request_rate: Annotated[
        str | None,
        typer.Option(
            metavar="R,R",
            help="Requests a second at random times, a point each; inf sends all at once.",
            show_default=False,
            rich_help_panel=LOAD,
        ),
    ] = None,
    burstiness: Annotated[
        float,
        typer.Option(
            min=0.01, help="Of those times: 1 is Poisson, less comes in bursts, more evenly.", rich_help_panel=LOAD
        ),
    ] = 1.0,
    warmup: Annotated[int, typer.Option(min=0, help="Requests before it all, not measured.", rich_help_panel=LOAD)] = 0,
    aborted: Annotated[
        float,
        typer.Option(min=0, max=1, help="Share of requests whose client leaves midway.", rich_help_panel=FAULTS),
    ] = 0.0,
    malformed: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Share of requests that are broken; each has to be refused with the status that is due.",
            rich_help_panel=FAULTS,
        ),
    ] = 0.0,
    speculative: Annotated[
        Literal["on", "off", "default"],
        typer.Option(help="What requests say of speculation; default is nothing.", rich_help_panel=SPECULATION),
    ] = "default",
    slo: Annotated[
        list[str] | None,
        typer.Option(
            "--slo",
            "--goodput",
            metavar="NAME:MS",
            help="Objectives of a good request, as 'ttft:500 tpot:100'; e2el is the whole.",
            show_default=False,
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    max_memory_growth: Annotated[
        float | None,
        typer.Option(
            metavar="MB/MIN",
            help="Growth of the server's memory, after the first minute, that fails the run.",
            show_default=False,
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    json: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Also write all figures there, as one JSON object.",
            show_default=False,
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    save: Save = False,
) -> None:
    """How fast, how steadily and how correctly does a server answer under load?

    Exits with 1 where a request is answered with a status that is not due, a finished answer is no instance of its
    schema, or a specdec server holds blocks or requests once nothing runs.
    """
    from specdec.evals.bench_arrivals import sweep  # noqa: PLC0415
    from specdec.evals.bench_latency import parse_objectives  # noqa: PLC0415
    from specdec.evals.bench_serve import BenchRun, run_bench  # noqa: PLC0415
    from specdec.evals.bench_traffic import Mix  # noqa: PLC0415
    from specdec.evals.dataset import load_dataset  # noqa: PLC0415
    from specdec.evals.workload import load_workload  # noqa: PLC0415

    if request_rate is None and concurrency is None:
        concurrency = _DEFAULT_CONCURRENCY
    rates = [] if request_rate is None else _rates(request_rate)
    if concurrency is None and num_prompts is None and math.inf in rates:
        raise typer.BadParameter("inf sends all requests at once; say how many: --num-prompts", param_hint="--duration")
    if json is not None and not json.absolute().parent.is_dir():
        raise typer.BadParameter(f"there is no folder {json.absolute().parent}", param_hint="--json")
    try:
        objectives = parse_objectives(slo or [])
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--slo") from error
    with faults_of_parameters():
        tasks = (
            load_dataset(dataset, sample=None, seed=seed)
            if dataset is not None
            else [*load_workload("structured"), *load_workload("free_text")]
        )
    share_with_schema = sum(task.schema is not None for task in tasks) / len(tasks)
    if constrained and not share_with_schema:
        raise typer.BadParameter("no prompt of the dataset has a schema", param_hint="--constrained")
    run = BenchRun(
        url=base_url,
        model=model,
        endpoint=endpoint,
        points=tuple(
            sweep(
                [] if concurrency is None else numbers_of(concurrency, _MAX_CONCURRENCY, "--concurrency"),
                rates,
                burstiness=burstiness,
                num_requests=_DEFAULT_NUM_PROMPTS if num_prompts is None and duration is None else num_prompts,
                duration_s=duration,
            )
        ),
        mix=Mix(
            constrained=share_with_schema if constrained is None else constrained, aborted=aborted, malformed=malformed
        ),
        max_tokens=max_tokens,
        temperature=temperature,
        ignore_eos=ignore_eos,
        speculative=speculative,
        are_prompts_unique=unique_prompts,
        num_warm_up=warmup,
        seed=seed,
        objectives=objectives,
        timeout_s=timeout,
        max_mb_per_minute=max_memory_growth,
    )
    terminal = terminal_of(json=False)
    try:
        result = run_bench(run, tasks, api_key=api_key, watch_pid=watch_pid, terminal=terminal)
    except ProcessLookupError as error:
        raise typer.BadParameter(str(error), param_hint="--watch-pid") from error
    if json is not None:
        json.write_text(result.encode() + "\n", encoding="utf-8")
        terminal.notes.print(f"written to {json}", soft_wrap=True)
    end(result, terminal, save=save)


def _rates(text: str) -> list[float]:
    """Rates by comma. Raises typer's BadParameter."""
    rates = []
    for part in text.split(","):
        try:
            rate = float(part)
        except ValueError:
            rate = math.nan
        if not rate > 0:
            raise typer.BadParameter(f"{text!r} is no list of positive rates, as 1,4,inf", param_hint="--request-rate")
        rates.append(rate)
    return rates
