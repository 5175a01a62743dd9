"""The `normascope` command. Heavy imports happen inside the commands, so that --help answers at once."""

import logging
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from flows import config_cli, scores_cli
from tasks import server

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="markdown",
    help="""Learns what healthy tissue looks like and finds what does not.

    `normascope demo` shows the whole pipeline on slides that it builds itself. `normascope run CONFIG.yaml` does the same on your own
    pictures. The other commands stop earlier. Every step is cached: what is there is not done again, and a run that was interrupted
    goes on where it was. Steps, logs and history stand in the Prefect UI (`normascope ui`).""",
)

app.add_typer(config_cli.app, name="config")
app.add_typer(scores_cli.app, name="scores")

_LEAKS_SHOWN = 50
_CANCELLED = 130  # what shells say of Ctrl-C
_EXECUTION = "`local` (a Dask cluster on this machine), `process`, or tcp://host:port of a Dask scheduler"

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="the run's configuration; README.md shows one of a dozen lines")]
Port = Annotated[int | None, typer.Option(help="port of the Prefect server to start; 4200 or the next free one when not given")]


@app.command()
def demo(
    store: Annotated[str, typer.Option(help="where everything is kept")] = "normascope-demo",
    quick: Annotated[bool, typer.Option("--quick", help="smaller slides and less training: under a minute, for CI")] = False,
    execution: Annotated[str | None, typer.Option(help=_EXECUTION)] = None,
    port: Port = None,
) -> None:
    """Build slides of real tissue with painted anomalies and run the whole pipeline on them.

    Takes about three minutes on two cores, and seconds when nothing has changed. Ends with the path of the HTML report and the
    address of the Prefect UI.
    """
    with _command(port) as ui_url:
        from flows.demo import demo as flow
        from flows.demo import demo_config
        from tasks.execution import parse_execution
        from tasks.settings import load_settings

        where = parse_execution(execution or load_settings().execution)
        config, plans = demo_config(store=store + ("-quick" if quick and store == "normascope-demo" else ""), quick=quick, execution=where)
        _announce(flow(config, plans), ui_url, painted=True)


@app.command()
def run(config: ConfigPath, port: Port = None) -> None:
    """Run the whole pipeline on your own pictures: curate, train, score, evaluate."""
    with _command(port) as ui_url:
        from flows.config import load_config
        from flows.run import run as flow

        loaded = load_config(config)
        _announce(flow(loaded), ui_url, painted=loaded.shown_notice is not None)


@app.command()
def curate(config: ConfigPath, port: Port = None) -> None:
    """Only curate: list the sources, cut slides and photographs, find duplicates, split by group, write the manifest.

    Prints the samples by data set, label, split and, where they are excluded, the reason; previews show what was cut.
    """
    with _command(port):
        from flows.config import load_config
        from flows.curate import curate as flow

        loaded = load_config(config)
        manifest = flow(loaded)
        from tasks.curate import count_rows

        for row in count_rows(manifest):
            why = f" ({row['excluded']})" if row["excluded"] else ""
            typer.echo(f"{row['samples']:>8} {row['label']:<9} {row['split']:<11} {row['dataset']}, {row['subjects']} subjects{why}")
        typer.echo(f"manifest of {manifest['rows']} samples: {manifest['uri']}")
        typer.echo(f"previews:   {loaded.store}/previews")


@app.command()
def train(config: ConfigPath, port: Port = None) -> None:
    """Curate and train: writes one model bundle a detector."""
    with _command(port):
        for model in _until_train(config)[2]:
            typer.echo(f"model {model['kind']}: {model['uri']}")


@app.command()
def score(
    what: Annotated[str, typer.Argument(metavar="CONFIG.yaml|MANIFEST.parquet", help="with --model also a manifest, s3:// too")],
    model: Annotated[
        list[str] | None, typer.Option(metavar="[NAME=]BUNDLE", help="a trained model; several read each picture once")
    ] = None,
    into: Annotated[str | None, typer.Option(metavar="ARCHIVE", help="folder or s3://bucket/prefix of the archive's scores")] = None,
    new_version: Annotated[bool, typer.Option("--new-version", help="keep another model's scores and begin new ones beside them")] = False,
    execution: Annotated[str | None, typer.Option(help=_EXECUTION)] = None,
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
    with _command(port):
        for store in _until_score(Path(what))[3]:
            typer.echo(f"scores of {store['kind']}: {store['uri']}")


@app.command()
def evaluate(config: ConfigPath, port: Port = None) -> None:
    """Everything up to the metrics and the report; what earlier commands have done is taken from the cache."""
    with _command(port) as ui_url:
        from flows.evaluate import evaluate as flow

        loaded, manifest, models, stores = _until_score(config)
        _announce(flow(loaded, manifest, models, stores), ui_url, painted=loaded.shown_notice is not None)


@app.command()
def benchmark(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="classes, seeds and the run's file; see deploy/configs/benchmarks")],
    port: Port = None,
) -> None:
    """Compare detectors on a one-class data set: every class in turn is normal, with every seed; ends with one table.

    Every training is a step of its own: what an interrupted benchmark has done is not done again.
    """
    with _command(port):
        from flows.benchmark import benchmark as flow
        from flows.benchmark import load_benchmark
        from storage import filesystems

        table = flow(*load_benchmark(config))
        typer.echo(filesystems.read_bytes(table["markdown_uri"]).decode())
        typer.echo(f"table: {table['json_uri']} (.csv, .md)")


@app.command()
def reproduce(
    paper: Annotated[str | None, typer.Argument(metavar="PAPER", help="skin, hands, dermoscopy, melanoma, perceptual or mnist")] = None,
    data: Annotated[str | None, typer.Option(metavar="DIR", help="folder that holds the data sets; ./data when not given")] = None,
    miniature: Annotated[bool, typer.Option("--miniature", help="on GENERATED data, everything small: shows that it works")] = False,
    store: Annotated[
        str | None, typer.Option(metavar="DIR", help="where everything is kept; normascope-reproductions when not given")
    ] = None,
    execution: Annotated[str | None, typer.Option(help=_EXECUTION + "; as the paper's configurations say when not given")] = None,
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
    with _command(port) as ui_url:
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


@app.command()
def search(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="space, anomalies and the run's file; see deploy/configs/search")],
    study: Annotated[bool, typer.Option("--study", help="also study the number of anomalies: trains every trial once more")] = False,
    port: Port = None,
) -> None:
    """Choose a detector's hyperparameters by cross-validation and a few anomalies; compare that choice with those that need none.

    Every trial on every fold is a step of its own: what a search that was stopped has done is not done again. Ends with what each
    criterion chose, its figures on the test split, and the winner as a file for `normascope run`.
    """
    with _command(port) as ui_url:
        from flows.search import load_search
        from flows.search import search as flow
        from storage import filesystems
        from tasks.search import StudyConfig
        from tasks.search_report import describe_choices

        run_config, plan = load_search(config)
        if study and plan.study is None:
            plan = plan.model_copy(update={"study": StudyConfig()})
        reference = flow(run_config, plan)
        for line in describe_choices(reference):
            typer.echo(line)
        typer.echo(f"winner:     {filesystems.local_path(reference['best_uri']) or reference['best_uri']}")
        _announce(reference, ui_url, painted=run_config.shown_notice is not None)


@app.command()
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
    with _command(port) as ui_url:
        from flows.drift import drift as flow
        from storage import filesystems
        from tasks.drift import describe_drift
        from tasks.drift_sides import parse_rows

        found = flow(filesystems.absolute(archive), filesystems.absolute(reference), slot=slot, rows=parse_rows(rows))
        for line in describe_drift(found):
            typer.echo(line)
        _announce(found, ui_url, painted=False)
    if fail_above is not None and found["psi_low"] > fail_above:  # only here: for _errors an exit is an error
        typer.secho(f"drift: the stability index, at least {found['psi_low']:.3g}, is above {fail_above:g}", fg="red", err=True)
        raise typer.Exit(1)


@app.command()
def retrain(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="a run's file with a section `retrain`; see deploy/configs")],
    port: Port = None,
) -> None:
    """Train a challenger where there are new data, promote it where the evidence says so, score the archive with what is in use.

    Champion and challenger are compared on a frozen test set by a paired bootstrap over subjects. Where nothing is new it ends in seconds;
    where a step fails the champion stays, and the same command goes on from there.
    """
    with _command(port) as ui_url:
        from flows.retrain import load_retrain
        from flows.retrain import retrain as flow
        from tasks.retrain_story import describe_retraining

        for line in describe_retraining(flow(*load_retrain(config))):
            typer.echo(line)
        typer.echo(f"Prefect UI: {ui_url}")


Store = Annotated[str, typer.Argument(metavar="STORE", help="the store of `normascope retrain`; s3:// too")]


@app.command()
def champion(store: Store, history: Annotated[bool, typer.Option("--history", help="and all that are remembered")] = False) -> None:
    """Say which model of a store is in use, since when and why, and which was before it."""
    with _errors():
        from storage import filesystems
        from storage.champions import describe, read_champion

        for line in describe(read_champion(filesystems.absolute(store)), history=history):
            typer.echo(line)


@app.command()
def rollback(store: Store) -> None:
    """Put the model that was in use before the champion into use again; a second time undoes the first."""
    with _errors():
        from storage import filesystems
        from storage.champions import describe, roll_back

        for line in describe(roll_back(filesystems.absolute(store))):
            typer.echo(line)


@app.command(name="check-splits")
def check_splits(
    manifest: Annotated[str, typer.Argument(metavar="MANIFEST", help="Parquet or CSV with split and subject_id, ours or not; s3:// too")],
    across_datasets: Annotated[bool, typer.Option(help="the same id in two data sets is the same person")] = False,
) -> None:
    """Prove that no subject, lesion, slide, duplicate or group is in two splits of a manifest, or list those that are and exit with 1."""
    with _errors():
        from tasks.grouping import describe_leaks

        summary, leaks = describe_leaks(manifest, across_datasets=across_datasets)
        for leak in leaks[:_LEAKS_SHOWN]:
            typer.echo(leak)
        if len(leaks) > _LEAKS_SHOWN:
            typer.echo(f"… and {len(leaks) - _LEAKS_SHOWN} more")
        typer.echo(summary)
    if leaks:
        raise typer.Exit(1)


@app.command()
def ui(
    port: Port = None,
    stop: Annotated[bool, typer.Option("--stop", help="stop the server; its history is kept")] = False,
    browse: Annotated[bool, typer.Option("--open/--no-open", help="open the page in a browser")] = True,
) -> None:
    """Start the Prefect server on the history of all runs, if it does not run already, and open its page."""
    with _errors():
        server.configure_prefect()
        if stop:
            stopped = server.stop_server()
            typer.echo(f"stopped the server at {stopped.ui_url}" if stopped else "no server of ours is running")
            return
        address = server.ensure_server(port=port)
        typer.echo(f"Prefect UI: {address} (history in {server.home() / 'prefect'}; `normascope ui --stop` stops it)")
        if browse and sys.stdout.isatty():
            typer.launch(address)


@app.command()
def serve(
    deployments: Annotated[Path, typer.Argument(metavar="PREFECT.yaml", help="what runs when")] = Path("deploy/prefect.yaml"),
    port: Port = None,
) -> None:
    """Run what is scheduled on this machine, until Ctrl-C: Prefect server, work pool, a worker, deployments and automations.

    Uses the server at PREFECT_API_URL where that is set. History and schedules outlive a restart; runs that are under way at the end are
    cancelled, and their next run goes on from the finished steps. Runs work in the folder where this command is given.
    """
    with _errors():
        server.configure_prefect()
        from flows.serve import serve_file

        serve_file(deployments, port=port, say=typer.echo)


@app.command()
def view(
    archive: Annotated[str, typer.Argument(metavar="ARCHIVE", help="an archive, or a score store of `normascope run`; s3:// too")],
    port: Annotated[int | None, typer.Option(help="port of the page; 8321 or a free one when not given")] = None,
) -> None:
    """Look at an archive in the browser: samples by score with their maps, slides with their heatmaps. Ctrl-C ends it.

    The page only reads, answers on this machine alone and to the address that is printed. An archive that is still being scored shows
    what is there; a reload shows more.
    """
    with _errors():
        from tasks.view import serve

        server.configure_prefect()
        serve(archive, port, announce=typer.echo)


@app.command()
def clean(
    place: Annotated[str, typer.Argument(metavar="STORE|ARCHIVE", help="of `run`, or of `score --into`; s3:// too")],
    dry_run: Annotated[bool, typer.Option("--dry-run/--yes", help="only show what would go, or remove it")] = True,
    older_than: Annotated[float | None, typer.Option(metavar="DAYS", help="cached results of that age go too; checkpoints: 30")] = None,
    keep: Annotated[int, typer.Option(min=1, help="finished versions of each slot that stay, the newest ones")] = 2,
    orphans: Annotated[bool, typer.Option("--orphans", help="evaluations and scores of models that are gone go too")] = False,
    champion: Annotated[str | None, typer.Option(metavar="FILE", help="a champion.json elsewhere, whose model's scores stay")] = None,
) -> None:
    """List what nothing refers to any more, with sizes, or remove it with --yes.

    Cached results whose outputs are gone, checkpoints of trainings that were given up, replaced versions of an archive's slots, and what
    killed writes have left. An archive that a run works on is refused.
    """
    with _errors():
        from storage import filesystems
        from tasks.clean import Rules, describe_items, plan_cleaning, remove_items

        server.configure_prefect()
        uri, rules = filesystems.absolute(place), Rules(older_than_days=older_than, keep=keep, orphans=orphans)
        items = (plan_cleaning if dry_run else remove_items)(uri, rules, champion=champion)
        for line in describe_items(items, removed=not dry_run):
            typer.echo(line)


@app.command()
def doctor(
    store: Annotated[str, typer.Option(help="the store to look at; a small file is written there, read and removed")] = "normascope-demo",
    execution: Annotated[str | None, typer.Option(help=_EXECUTION + ", to look at")] = None,
    backbone: Annotated[str | None, typer.Option(metavar="NAME", help="also let this network say what three photographs show")] = None,
    weights: Annotated[str | None, typer.Option(metavar="FILE", help="its weights; without, those that belong to its name")] = None,
    sha256: Annotated[str | None, typer.Option(metavar="DIGEST", help="of the weight file")] = None,
) -> None:
    """Look at everything a run needs: versions, GPU, store, disk, server and its workers, Dask. Exits with 1 when something is missing.

    With --backbone also whether pretrained weights are what they are called: efficientnet-lite0 (bundled), torchvision/resnet18,
    timm/resnet18.a1_in1k and so on must recognise a cup of coffee, a cat and a rocket.
    """
    from tasks.doctor import examine, examine_backbone
    from tasks.execution import parse_execution
    from tasks.settings import load_settings

    if backbone is None and (weights or sha256):
        raise typer.BadParameter("--weights and --sha256 are of a --backbone; name it")
    with _errors():
        where = parse_execution(execution or load_settings().execution)
        findings = examine(store, scheduler=where.address)
    if backbone is not None:
        findings.append(examine_backbone(backbone, weights=weights, weights_sha256=sha256))
    for finding in findings:
        typer.echo(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.name:<12} {finding.text}")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


def main() -> None:
    """Entry point of the command."""
    app()


def _list_papers() -> None:
    with _errors():
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


def _until_train(path: Path) -> tuple[Any, Any, Any]:
    from flows.config import load_config
    from flows.curate import curate as curate_flow
    from flows.train import train as train_flow

    loaded = load_config(path)
    manifest = curate_flow(loaded)
    return loaded, manifest, train_flow(loaded, manifest)


def _until_score(path: Path) -> tuple[Any, Any, Any, Any]:
    from flows.score import score as score_flow

    loaded, manifest, models = _until_train(path)
    return loaded, manifest, models, score_flow(loaded, manifest, models)


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
    with _errors():  # without Prefect, which is not needed where nothing is to be done
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
    with _command(port):
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


@contextmanager
def _command(port: int | None) -> Iterator[str]:
    """A server to record on, a tag that this command's runs carry, Ctrl-C that stops at once, and the count of steps at the end."""
    with _errors():
        server.configure_prefect()
        started = time.monotonic()
        address = server.ensure_server(port=port)
        typer.echo(f"Prefect UI: {address}", err=True)
        tag = f"command-{uuid.uuid4().hex[:8]}"
        _stop_at_once(tag)
        from prefect import tags

        _show_warnings()
        with tags(tag):
            yield address
        from tasks.caching import steps

        typer.echo(f"{steps.summarise()} ({time.monotonic() - started:.1f} s)", err=True)


def _show_warnings() -> None:
    """What a run has to say of the data goes to the terminal as well as to the UI."""
    from tasks.logs import ROOMS, write_json_lines
    from tasks.settings import load_settings

    if load_settings().log_format == "json":
        write_json_lines()
        return
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    for room in ROOMS:
        logging.getLogger(room).addHandler(handler)


@contextmanager
def _errors() -> Iterator[None]:
    """Errors that a person can mend become one message and exit code 1; all others keep their traceback."""
    try:
        yield
    except (ValueError, RuntimeError, OSError) as error:
        logging.getLogger(__name__).debug("failed", exc_info=True)
        text = str(error)
        if isinstance(error, OSError) and error.errno is not None and error.strerror:
            text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
            if error.errno == 28:
                text += ". The disk is full: nothing half-written is left; make room and run the same command again"
        typer.secho(f"{type(error).__name__}: {text}", fg="red", err=True)
        raise typer.Exit(1) from None


def _announce(report: Any, ui_url: str, *, painted: bool) -> None:
    from storage import filesystems

    typer.echo(
        f"report:     {filesystems.local_path(report['html_uri']) or report['html_uri']}" + (" (painted anomalies)" if painted else "")
    )
    typer.echo(f"Prefect UI: {ui_url}")


def _stop_at_once(tag: str) -> None:
    """On Ctrl-C: say so in the UI, end the workers, leave. Every file is written whole or not at all, so nothing else is to be done."""

    def handler(number: int, _frame: Any) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C does not wait for the server
        sys.stderr.write("\nstopping; the same command goes on from here\n")
        from tasks.cancel import cancel_runs, kill_children

        kill_children()
        cancel_runs(tag)
        os._exit(128 + number)

    handle: Callable[[int, Any], None] = handler
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)
