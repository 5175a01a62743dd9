"""Commands of archives: score them with trained models, look at them, compare them with a reference."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.frame import EXECUTION, Port, announce, command, errors
from flows.cli.pipeline import until_score
from tasks import server

PANEL = "Archives"
_CANCELLED = 130  # what shells say of Ctrl-C
app = typer.Typer()


@app.command(rich_help_panel=PANEL)
def score(
    what: Annotated[str, typer.Argument(metavar="CONFIG.yaml|MANIFEST.parquet", help="with --model also a manifest, s3:// too")],
    model: Annotated[
        list[str] | None, typer.Option(metavar="[NAME=]BUNDLE", help="a trained model; several read each picture once")
    ] = None,
    into: Annotated[str | None, typer.Option(metavar="ARCHIVE", help="folder or s3://bucket/prefix of the archive's scores")] = None,
    new_version: Annotated[bool, typer.Option("--new-version", help="keep another model's scores and begin new ones beside them")] = False,
    execution: Annotated[str | None, typer.Option(help=EXECUTION)] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="processes on this machine; one a core, or one a GPU, when not given")] = None,
    memory_mb: Annotated[int | None, typer.Option(min=2, help="most MiB of pictures that a process holds ahead of the model")] = None,
    shard_rows: Annotated[int | None, typer.Option(min=1, help="samples of a new store's shard; by its maps when not given")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="images at once in a new store; the fastest when not given")] = None,
    metrics_port: Annotated[int | None, typer.Option(min=1, max=65535, help="of http://127.0.0.1:N/metrics, for Prometheus")] = None,
    port: Port = None,
) -> None:
    """Curate, train and score: writes one score store a detector. With --model and --into: score an archive with trained models.

    An archive takes days and machines fail: give the same command again, and the shards that lack are scored. Give a manifest that
    has grown, and its new samples are. Exits with 0 when every sample is scored, or failed with a reason; with 130 when the run was
    cancelled in the Prefect UI.
    """
    if bool(model) != bool(into):
        raise typer.BadParameter("--model and --into belong together: give both to score an archive, none to train first")
    if model and into:
        if metrics_port is not None:
            os.environ["NORMASCOPE_METRICS_PORT"] = str(metrics_port)  # over the setting of the file, in this process
        new = {"new_version": new_version, "shard_rows": shard_rows, "batch_size": batch_size}
        _score_archive(what, model, into, execution=execution, workers=workers, memory_mb=memory_mb, port=port, **new)
        return
    if new_version or any(option is not None for option in (execution, workers, memory_mb, shard_rows, batch_size, metrics_port)):
        raise typer.BadParameter("these options are of an archive, with --model and --into; without, CONFIG.yaml has keys for them")
    with command(port):
        for store in until_score(Path(what))[3]:
            typer.echo(f"scores of {store['kind']}: {store['uri']}")


@app.command(rich_help_panel=PANEL)
def view(
    archive: Annotated[str, typer.Argument(metavar="ARCHIVE", help="an archive, or a score store of `normascope run`; s3:// too")],
    port: Annotated[int | None, typer.Option(help="port of the page; 8321 or a free one when not given")] = None,
) -> None:
    """Look at an archive in the browser: samples by score with their maps, slides with their heatmaps. Ctrl-C ends it.

    The page only reads, answers on this machine alone and to the address that is printed. An archive that is still being scored shows
    what is there; a reload shows more.
    """
    with errors():
        from tasks.view import serve

        server.configure_prefect()
        serve(archive, port, announce=typer.echo)


@app.command(rich_help_panel=PANEL)
def drift(
    archive: Annotated[str, typer.Argument(metavar="ARCHIVE", help="what `score --into` wrote; s3:// too")],
    reference: Annotated[
        str, typer.Option(metavar="STORE|ARCHIVE", help="a score store of `run` (its validation normals), an archive, or the same archive")
    ],
    slot: Annotated[str | None, typer.Option(metavar="NAME", help="of the archive, where several have a model of the reference")] = None,
    rows: Annotated[str, typer.Option(metavar="FIRST:STOP", help="rows of the archive; those before FIRST are its own reference")] = ":",
    fail_above: Annotated[
        float | None, typer.Option(metavar="PSI", help="exit with 1 when the stability index is above this beyond doubt")
    ] = None,
    port: Port = None,
) -> None:
    """Compare the scores of an archive with a reference of the same model, as a whole and by source; ends with the path of a page.

    Prints the KS distance, the population stability index, and shifts of mean, quantiles and called shares, each with its interval over
    subjects and the p-value of permuting them.
    """
    with command(port) as ui_url:
        from flows.drift import drift as flow
        from storage import filesystems
        from tasks.drift import describe_drift
        from tasks.drift_sides import parse_rows

        found = flow(filesystems.absolute(archive), filesystems.absolute(reference), slot=slot, rows=parse_rows(rows))
        for line in describe_drift(found):
            typer.echo(line)
        announce(found, ui_url, painted=False)
    if fail_above is not None and found["psi_low"] > fail_above:  # only here: for _errors an exit is an error
        typer.secho(f"drift: the stability index, at least {found['psi_low']:.3g}, is above {fail_above:g}", fg="red", err=True)
        raise typer.Exit(1)


def _score_archive(
    what: str,
    given: list[str],
    into: str,
    *,
    execution: str | None,
    workers: int | None,
    memory_mb: int | None,
    port: int | None,
    **new: Any,
) -> None:
    with errors():  # without Prefect, which is not needed where nothing is to be done
        from storage import filesystems
        from tasks.archive_scoring import ArchiveScoringConfig, find_finished, name_models, reference_rows
        from tasks.execution import parse_execution
        from tasks.score_shard import Limits
        from tasks.settings import load_settings

        archive, models = filesystems.absolute(into), name_models(given)
        is_config = what.endswith((".yaml", ".yml"))
        rows = None if is_config else reference_rows(filesystems.absolute(what))
        if rows and (slots := find_finished(archive, rows["digest"], models)):
            for slot in slots:
                typer.echo(f"{slot.title}: all {slot.store.rows} samples are done, nothing to do: {slot.store.uri}")
            return
        scoring = ArchiveScoringConfig(**new, limits=Limits(ahead_mb=memory_mb // 2) if memory_mb else Limits())  # two shards in flight
        where = parse_execution(execution or load_settings().execution)
    with command(port):
        from prefect.exceptions import CancelledRun

        from flows.score_archive import score_archive
        from tasks.archive_groups import describe_summary

        if rows is None:
            configured, rows = _curate_rows(Path(what))
            where = where if execution else configured
        where = where.model_copy(update={"workers": workers or where.workers})
        cancelled = None
        try:
            for line in describe_summary(score_archive(archive, rows, models, scoring=scoring, execution=where)):
                typer.echo(line)
        except CancelledRun as error:
            cancelled = str(error)
    if cancelled is not None:  # only here: for _errors an exit is an error
        typer.secho(f"cancelled: {cancelled}", fg="red", err=True)
        raise typer.Exit(_CANCELLED)


def _curate_rows(path: Path) -> tuple[Any, Any]:
    from flows.config import load_config
    from flows.curate import curate as curate_flow
    from tasks.references import RowsReference

    loaded = load_config(path)
    manifest = curate_flow(loaded)
    return loaded.execution, RowsReference(uri=manifest["uri"], digest=manifest["digest"])
