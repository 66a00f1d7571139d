"""The commands of `specdec eval` about speculation: the same answers, and what is gained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from specdec.config import DEFAULT_MODEL
from specdec.evals.flags import (
    MODEL,
    OUTPUT,
    SPECULATION,
    WORK,
    Draft,
    Dtype,
    Exact,
    Json,
    MaxTokens,
    Model,
    Repeats,
    Save,
    Size,
    end,
    faults_of_parameters,
    numbers_of,
    shallow_draft_of,
    terminal_of,
)
from specdec.speculative import Verification

if TYPE_CHECKING:
    from specdec.evals.result import EvalResult


def equivalence(
    model: Model = DEFAULT_MODEL,
    exact: Exact = True,
    dtype: Annotated[
        Literal["both", "float32", "bfloat16"], typer.Option(help="Arithmetic.", rich_help_panel=MODEL)
    ] = "both",
    size: Size = "standard",
    num_cells: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Cells to run of the grid, spread over its settings.",
            show_default="so many that any two settings meet; all with --size full",
            rich_help_panel=WORK,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of cells.", rich_help_panel=WORK)] = 0,
    json: Json = False,
    save: Save = False,
) -> None:
    """Do speculation, batching and preemption leave every answer as the plain engine gives it?

    Crosses every proposer, the target as its own draft and its first 6 layers as its draft among them, with greedy and
    sampled tokens, penalties, schemas, one request at a time and sixteen at once, room and a pool that forces
    preemption; and runs so many cells that any two of these meet, or with --size full all.
    --num-cells runs fewer or more, and another --seed others.
    --no-exact counts the differences that fast arithmetic makes, and never fails because of them.
    """
    import msgspec  # noqa: PLC0415

    from specdec.evals.equivalence import run_equivalence  # noqa: PLC0415
    from specdec.evals.equivalence_grid import EquivalenceGrid  # noqa: PLC0415

    terminal = terminal_of(json=json)
    grid = msgspec.structs.replace(EquivalenceGrid.of_size(size), num_cells=num_cells, seed=seed)
    if dtype != "both":
        grid = msgspec.structs.replace(grid, dtypes=(dtype,))
    if num_cells is not None and num_cells > (num_all := len(grid.all_cells())):
        raise typer.BadParameter(f"the grid has {num_all} cells", param_hint="--num-cells")
    end(run_equivalence(model=model, exact=exact, grid=grid, terminal=terminal), terminal, save=save)


def law(
    samples: Annotated[int, typer.Option(min=1000, help="Texts sampled in each cell.", rich_help_panel=WORK)] = 200_000,
    seed: Annotated[int, typer.Option(help="Seed of the first text.", rich_help_panel=WORK)] = 0,
    json: Json = False,
    save: Save = False,
) -> None:
    """Do speculative answers have the law of plain ones, by every kind of verification?

    Texts of 2 to 4 tokens over 6 or 8, free and constrained, sampled by the engine's own sampler and verifier. Their
    total variation from the plain law, which is written out, may be 3 times that of as many plain samples. Drafts have
    fixed lengths, or those that the engine finds to pay. Four faults are planted, each of which must show as 10 times;
    with fewer samples than 200,000, as less.
    """
    from specdec.evals.law import run_law  # noqa: PLC0415

    terminal = terminal_of(json=json)
    end(run_law(num_samples=samples, seed=seed, terminal=terminal), terminal, save=save)


def acceptance(
    spec: Annotated[
        list[str] | None,
        typer.Option(
            "--spec",
            metavar="METHOD",
            help="Who drafts, as in `specdec serve --spec`; once for each arm to compare.",
            show_default="chain; with --url, as the server was started",
            rich_help_panel=SPECULATION,
        ),
    ] = None,
    draft: Draft = None,
    num_speculative_tokens: Annotated[
        str | None,
        typer.Option(
            metavar="N,N",
            help="Tokens of every draft, an arm each.",
            show_default="as many as pay, draft by draft",
            rich_help_panel=SPECULATION,
        ),
    ] = None,
    compare_masks: Annotated[
        bool,
        typer.Option(
            "--compare-masks",
            help="Every arm once more, its draft model not held to the grammar.",
            rich_help_panel=SPECULATION,
        ),
    ] = False,
    verification: Annotated[
        Verification, typer.Option(help="How drafts are verified.", rich_help_panel=SPECULATION)
    ] = Verification.COUPLED,
    model: Annotated[
        str | None,
        typer.Option(
            help="A catalog name, a folder or a Hugging Face id; with --url, the name to ask for.",
            show_default=f"{DEFAULT_MODEL}; with --url, the first that the server names",
            rich_help_panel=MODEL,
        ),
    ] = None,
    dtype: Dtype = "auto",
    exact: Exact = False,
    url: Annotated[
        str | None,
        typer.Option(
            help="Ask an OpenAI-compatible server, as http://127.0.0.1:8000, instead of an engine in process.",
            show_default=False,
            rich_help_panel="Server",
        ),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="SPECDEC_API_KEY", help="Its key.", show_default=False, rich_help_panel="Server"),
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.", rich_help_panel=WORK)] = 0.0,
    concurrency: Annotated[
        str, typer.Option(metavar="N,N", help="Requests at once, by comma.", rich_help_panel=WORK)
    ] = "1,4,16",
    size: Size = "standard",
    group: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A group of the shipped tasks, as `structured`, `chat` or `code_edit, predicted`; once for each.",
            show_default="all, or none with --dataset",
            rich_help_panel=WORK,
        ),
    ] = None,
    dataset: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Tasks of your own: JSON lines of {prompt, schema}, Spec-Bench questions, or MaskBench schemas.",
            show_default=False,
            rich_help_panel=WORK,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the sample of a dataset.", rich_help_panel=WORK)] = 0,
    num_tasks: Annotated[
        int | None,
        typer.Option(min=1, help="Tasks of each group.", show_default="by --size", rich_help_panel=WORK),
    ] = None,
    repeats: Repeats = None,
    parts: Annotated[
        int,
        typer.Option(
            min=1,
            help="Parts of each group's tasks, of which a run answers one and the next run of its arm the next: for "
            "many tasks in little time.",
            rich_help_panel=WORK,
        ),
    ] = 1,
    control: Annotated[
        bool,
        typer.Option(
            "--control",
            help="Answer plainly once more a run: what that seems to gain over plain is the machine's noise.",
            rich_help_panel=WORK,
        ),
    ] = False,
    max_tokens: MaxTokens = None,
    csv: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a line for each arm.", show_default=False, rich_help_panel=OUTPUT),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write a report with plots; needs specdec-engine[reports].",
            show_default=False,
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    json: Json = False,
    save: Save = False,
) -> None:
    """How many drafts are accepted, whose, while what is written, and what does it gain?

    Every group of tasks is answered plainly and by each --spec, in turns. Every finished constrained answer must
    validate, and every drafted token end as exactly one of accepted, rejected and discarded.

    With --url a server answers: a specdec in every arm; any other one as it was started, and what it drafted is shown
    as far as it reports that.
    """
    from specdec.errors import ConfigError, RequestError  # noqa: PLC0415
    from specdec.evals.acceptance import (  # noqa: PLC0415
        AcceptanceGrid,
        AcceptanceSize,
        dataset_group,
        run_acceptance,
        shipped_groups,
    )
    from specdec.evals.dataset import load_dataset  # noqa: PLC0415
    from specdec.speculative import CHAIN, methods_of  # noqa: PLC0415

    terminal = terminal_of(json=json)
    if url is not None and (draft is not None or dtype != "auto" or exact):
        raise typer.BadParameter("the server computes as it was started; leave out --draft, --dtype and --exact")
    if url is not None and parts > 1:
        raise typer.BadParameter("a server answers all tasks in every run; leave out --parts", param_hint="--parts")
    for path in (csv, html):
        if path is not None and not path.resolve().parent.is_dir():
            raise typer.BadParameter(f"there is no folder {path.resolve().parent}")
    grid = AcceptanceGrid(
        methods=tuple(spec or [CHAIN]),
        lengths=(None,)
        if num_speculative_tokens is None
        else numbers_of(num_speculative_tokens, 64, "--num-speculative-tokens"),
        masks=(True, False) if compare_masks else (True,),
        concurrencies=numbers_of(concurrency, 1024, "--concurrency"),
        verification=verification,
        has_control=control,
    )
    for method in grid.methods:
        try:
            if not methods_of(method, has_draft_model=draft is not None or url is not None) - {"synthetic"}:
                raise typer.BadParameter("there is nothing to accept without a proposer", param_hint="--spec")
        except ConfigError as error:
            raise typer.BadParameter(str(error), param_hint="--spec") from error
    sized = AcceptanceSize.of_size(size, num_tasks=num_tasks, rounds=repeats, max_tokens=max_tokens, num_parts=parts)
    if parts > sized.rounds:
        raise typer.BadParameter(
            f"{sized.rounds} runs leave tasks of {parts} parts unanswered; give --repeats {parts} or more",
            param_hint="--parts",
        )
    groups = {} if dataset and not group else shipped_groups(group or ())
    with faults_of_parameters():
        for path in dataset or ():
            groups |= dataset_group(path, load_dataset(path, sample=sized.num_tasks, seed=seed))
    if url is not None:
        from specdec.evals.acceptance_served import run_acceptance_on_server  # noqa: PLC0415

        is_chosen = spec or num_speculative_tokens or compare_masks or verification is not Verification.COUPLED
        if control and not is_chosen:
            raise typer.BadParameter("a control stands beside arms that are asked for; name one by --spec")
        result = run_acceptance_on_server(
            url=url,
            model=model,
            api_key=api_key,
            temperature=temperature,
            groups=groups,
            grid=grid if is_chosen else None,
            size=sized,
            concurrencies=grid.concurrencies,
            terminal=terminal,
        )
        _write(result, csv=csv, html=html)
        end(result, terminal, save=save)
        return
    name = model or DEFAULT_MODEL
    try:
        result = run_acceptance(
            model=name,
            draft=shallow_draft_of(name) if draft == "shallow" else draft,
            dtype=dtype,
            exact=exact,
            temperature=temperature,
            groups=groups,
            grid=grid,
            size=sized,
            terminal=terminal,
        )
    except RequestError as error:
        raise typer.BadParameter(str(error), param_hint="--spec") from error
    _write(result, csv=csv, html=html)
    end(result, terminal, save=save)


def _write(result: EvalResult, *, csv: Path | None, html: Path | None) -> None:
    """The files that `acceptance` was asked for."""
    from specdec.evals.acceptance_report import write_report  # noqa: PLC0415
    from specdec.evals.acceptance_tables import write_csv  # noqa: PLC0415

    if csv is not None:
        write_csv(result, csv)
    if html is not None:
        write_report(result, html)


def stress(
    num_requests: Annotated[int, typer.Option(min=1, help="Requests in all.", rich_help_panel=WORK)] = 2000,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at once.", rich_help_panel=WORK)] = 16,
    max_tokens: Annotated[
        int,
        typer.Option(min=1, help="Longest answer, in tokens, where its schema needs no more.", rich_help_panel=WORK),
    ] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Of everything that is drawn.", rich_help_panel=WORK)] = 0,
    draft: Draft = None,
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = "auto",
    json: Json = False,
    save: Save = False,
) -> None:
    """Does everything hold with everything at once?

    Constrained requests with random proposers, draft lengths, verifications, temperatures, penalties, predictions and
    aborts, in a pool small enough to preempt. Every answer must validate, every block come back, every drafted token
    end as exactly one of accepted, rejected and discarded.
    """
    from specdec.evals.stress import StressRun, run_stress  # noqa: PLC0415

    terminal = terminal_of(json=json)
    result = run_stress(
        StressRun(num_requests=num_requests, concurrency=concurrency, max_tokens=max_tokens, seed=seed),
        model=model,
        draft=shallow_draft_of(model) if draft == "shallow" else draft,
        dtype=dtype,
        terminal=terminal,
    )
    end(result, terminal, save=save)
