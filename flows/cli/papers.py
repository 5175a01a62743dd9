"""Commands that compare detectors: benchmarks and the papers' tables."""

from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.frame import EXECUTION, Port, command, errors
from tasks import server

PANEL = "Benchmarks and papers"
app = typer.Typer()


@app.command(rich_help_panel=PANEL)
def benchmark(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="classes, seeds and the run's file; see deploy/configs/benchmarks")],
    port: Port = None,
) -> None:
    """Compare detectors on a one-class data set: every class in turn is normal, with every seed; ends with one table.

    Every training is a step of its own: what an interrupted benchmark has done is not done again.
    """
    with command(port):
        from flows.benchmark import benchmark as flow
        from flows.benchmark import load_benchmark
        from storage import filesystems

        table = flow(*load_benchmark(config))
        typer.echo(filesystems.read_bytes(table["markdown_uri"]).decode())
        typer.echo(f"table: {table['json_uri']} (.csv, .md)")


@app.command(rich_help_panel=PANEL)
def reproduce(
    paper: Annotated[str | None, typer.Argument(metavar="PAPER", help="skin, hands, dermoscopy, melanoma, perceptual or mnist")] = None,
    data: Annotated[str | None, typer.Option(metavar="DIR", help="folder that holds the data sets; ./data when not given")] = None,
    miniature: Annotated[bool, typer.Option("--miniature", help="on GENERATED data, everything small: shows that it works")] = False,
    store: Annotated[
        str | None, typer.Option(metavar="DIR", help="where everything is kept; normascope-reproductions when not given")
    ] = None,
    execution: Annotated[str | None, typer.Option(help=EXECUTION + "; as the paper's configurations say when not given")] = None,
    port: Port = None,
) -> None:
    """Run a paper's tables and print ours beside what is published; without PAPER, list the papers and the data that each needs.

    Every training, scoring and evaluation of a table is a step of its own: what a run that was stopped has done is not done again. A cell
    that fails says why in the table, the others go on, and the exit code is 1.
    """
    if paper is None:
        _list_papers()
        return
    if miniature and (data is not None or paper == "mnist"):
        raise typer.BadParameter("--miniature generates its data: give no --data; mnist needs none, its digits come with the installation")
    place = store or ("normascope-reproductions-GENERATED" if miniature else "normascope-reproductions")
    failed: list[str] = []
    with command(port) as ui_url:
        from storage import filesystems
        from tasks.execution import parse_execution

        options = {"store": filesystems.absolute(place), "execution": parse_execution(execution) if execution else None}
        if paper == "mnist":
            _reproduce_mnist(options)
        else:
            failed = _reproduce_paper(paper, data, options, ui_url, miniature=miniature)
    for line in failed:
        typer.secho(f"failed: {line}", fg="red", err=True)
    if failed:  # only here: for _errors an exit is an error
        raise typer.Exit(1)


def _list_papers() -> None:
    with errors():
        server.configure_prefect()
        from flows.reproduce import list_papers

        for plan in list_papers():
            typer.echo(f"{plan.paper:<12} {plan.title}")
            for name, needed in plan.data.items():
                typer.echo(f"{'':<12}   DIR/{name}: {needed.what}; from {needed.where}")
        typer.echo(f"{'mnist':<12} All detectors on 5,000 real digits, each in turn normal, with three seeds; needs nothing")
        typer.echo("`normascope reproduce PAPER --data DIR`; with --miniature a paper needs no data, and its figures mean nothing")


def _reproduce_paper(paper: str, data: str | None, options: dict[str, Any], ui_url: str, *, miniature: bool) -> list[str]:
    from flows.reproduce import find_data, load_paper
    from flows.reproduce import reproduce as flow
    from storage import filesystems

    plan, configs = load_paper(paper, data=find_data(paper, data, miniature=miniature), **options)
    title = f"{'GENERATED miniature - ' if miniature else ''}{plan.title}"
    reference = flow(title, plan, configs, miniature=miniature, store=options["store"])
    typer.echo(filesystems.read_bytes(reference["markdown_uri"]).decode())
    typer.echo(f"tables:     {filesystems.local_path(reference['html_uri']) or reference['html_uri']} (.json, .csv, .md)")
    typer.echo(f"Prefect UI: {ui_url}")
    return list(reference["failed"])


def _reproduce_mnist(options: dict[str, Any]) -> None:
    from flows.benchmark import benchmark as flow
    from flows.reproduce import load_mnist
    from storage import filesystems

    table = flow(*load_mnist(**options))
    typer.echo(filesystems.read_bytes(table["markdown_uri"]).decode())
    typer.echo(f"table: {table['json_uri']} (.csv, .md)")
