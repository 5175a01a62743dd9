"""`normascope scores …`: prove that an archive's scores are whole, hand them out as a table."""

from typing import Annotated

import typer

from flows.cli.frame import errors

_PROBLEMS_SHOWN = 50

app = typer.Typer(no_args_is_help=True, help="Prove that scores are whole; export them as a table.")

Slots = Annotated[list[str] | None, typer.Option("--slot", metavar="NAME", help="only the scores of this model; may be given again")]


@app.command()
def verify(
    archive: Annotated[str, typer.Argument(metavar="ARCHIVE", help="what `score --into` wrote, or one score store; s3:// too")],
    slot: Slots = None,
    quick: Annotated[bool, typer.Option("--quick", help="compare files with records, without decoding values or reading rows")] = False,
) -> None:
    """Prove that every sample is scored once or failed with a reason, and that no byte has changed; else say where and exit with 1."""
    with errors():
        from tasks.score_tools import verify_archive

        found = verify_archive(archive, slots=tuple(slot or ()), quick=quick)
        for line in found.summary:
            typer.echo(line)
        for problem in found.problems[:_PROBLEMS_SHOWN]:
            typer.secho(f"PROBLEM {problem}", fg="red")
        if len(found.problems) > _PROBLEMS_SHOWN:
            typer.echo(f"… and {len(found.problems) - _PROBLEMS_SHOWN} more")
        typer.echo(f"{len(found.problems)} problems" if found.problems else "verified: no problem")
    if found.problems:
        raise typer.Exit(1)


@app.command()
def export(
    archive: Annotated[str, typer.Argument(metavar="ARCHIVE", help="what `score --into` wrote; s3:// too")],
    table: Annotated[str, typer.Argument(metavar="TABLE", help="the file to write, .parquet or .csv; s3:// too")],
    slot: Slots = None,
) -> None:
    """Write sample, subject, slide, label, status, reason, image score and p-values of every row as one table."""
    with errors():
        from tasks.score_tools import export_archive

        for line in export_archive(archive, table, slots=tuple(slot or ())):
            typer.echo(line)
