"""Commands of the pipeline: from pictures to a report, each stopping at its step."""

from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.frame import EXECUTION, ConfigPath, Port, announce, command, errors

PANEL = "Pipeline"
_LEAKS_SHOWN = 50
app = typer.Typer()


@app.command(rich_help_panel=PANEL)
def demo(
    store: Annotated[str, typer.Option(help="where everything is kept")] = "normascope-demo",
    quick: Annotated[bool, typer.Option("--quick", help="smaller slides and less training: under a minute, for CI")] = False,
    execution: Annotated[str | None, typer.Option(help=EXECUTION)] = None,
    port: Port = None,
) -> None:
    """Build slides of real tissue with painted anomalies and run the whole pipeline on them.

    Takes about three minutes on two cores, and seconds when nothing has changed. Ends with the path of the HTML report and the
    address of the Prefect UI.
    """
    with command(port) as ui_url:
        from flows.demo import demo as flow
        from flows.demo import demo_config
        from tasks.execution import parse_execution
        from tasks.settings import load_settings

        where = parse_execution(execution or load_settings().execution)
        config, plans = demo_config(store=store + ("-quick" if quick and store == "normascope-demo" else ""), quick=quick, execution=where)
        announce(flow(config, plans), ui_url, painted=True)


@app.command(rich_help_panel=PANEL)
def run(config: ConfigPath, port: Port = None) -> None:
    """Run the whole pipeline on your own pictures: curate, train, score, evaluate."""
    with command(port) as ui_url:
        from flows.config import load_config
        from flows.run import run as flow

        loaded = load_config(config)
        announce(flow(loaded), ui_url, painted=loaded.shown_notice is not None)


@app.command(rich_help_panel=PANEL)
def curate(config: ConfigPath, port: Port = None) -> None:
    """Only curate: list the sources, cut slides and photographs, find duplicates, split by group, write the manifest.

    Prints the samples by data set, label, split and, where they are excluded, the reason, and the flags raised; previews show what was cut.
    """
    with command(port):
        from flows.config import load_config
        from flows.curate import curate as flow
        from storage import filesystems
        from tasks.curate import count_rows

        loaded = load_config(config)
        manifest = flow(loaded)

        counts, flags = count_rows(manifest)
        for row in counts:
            why = f" ({row['excluded']})" if row["excluded"] else ""
            typer.echo(f"{row['samples']:>8} {row['label']:<9} {row['split']:<11} {row['dataset']}, {row['subjects']} subjects{why}")
        typer.echo(flags)
        typer.echo(f"manifest of {manifest['rows']} samples: {manifest['uri']}")
        previews = filesystems.join(loaded.store, "previews")
        if filesystems.exists(previews):
            typer.echo(f"previews:   {previews}")


@app.command(name="check-splits", rich_help_panel=PANEL)
def check_splits(
    manifest: Annotated[
        str, typer.Argument(metavar="MANIFEST", help="Parquet or CSV (; and tabs too) with split and subject_id, ours or not; s3:// too")
    ],
    across_datasets: Annotated[bool, typer.Option(help="the same id in two data sets is the same person")] = False,
    subject: Annotated[str, typer.Option(metavar="NAME", help="what the column of persons is called")] = "subject_id",
    split: Annotated[str, typer.Option(metavar="NAME", help="what the column of splits is called")] = "split",
    lesion: Annotated[str, typer.Option(metavar="NAME", help="of lesions, where there is one")] = "lesion_id",
    slide: Annotated[str, typer.Option(metavar="NAME", help="of slides, where there is one")] = "slide_id",
    uri: Annotated[str, typer.Option(metavar="NAME", help="of the pictures' files, where there is one")] = "uri",
) -> None:
    """Prove that no subject, lesion, slide, duplicate or group is in two splits of a manifest, or list those that are and exit with 1.

    A duplicate is the same file, sample, content (sha256) or near-duplicate group. Each is listed with a row of every split that it is in.
    """
    with errors():
        from tasks.check_splits import describe_leaks

        told = {"subject_id": subject, "split": split, "lesion_id": lesion, "slide_id": slide, "uri": uri}
        called = {ours: theirs for ours, theirs in told.items() if theirs != ours}
        summary, leaks = describe_leaks(manifest, across_datasets=across_datasets, called=called)
        for leak in leaks[:_LEAKS_SHOWN]:
            typer.echo(leak)
        if len(leaks) > _LEAKS_SHOWN:
            typer.echo(f"… and {len(leaks) - _LEAKS_SHOWN} more")
        typer.echo(summary)
    if leaks:
        raise typer.Exit(1)


@app.command(rich_help_panel=PANEL)
def train(config: ConfigPath, port: Port = None) -> None:
    """Curate and train: writes one model bundle a detector."""
    with command(port):
        for model in until_train(config)[2]:
            typer.echo(f"model {model['kind']}: {model['uri']}")


@app.command(rich_help_panel=PANEL)
def evaluate(config: ConfigPath, port: Port = None) -> None:
    """Everything up to the metrics and the report; what earlier commands have done is taken from the cache."""
    with command(port) as ui_url:
        from flows.evaluate import evaluate as flow

        loaded, manifest, models, stores = until_score(config)
        announce(flow(loaded, manifest, models, stores), ui_url, painted=loaded.shown_notice is not None)


@app.command(rich_help_panel=PANEL)
def search(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="space, anomalies and the run's file; see deploy/configs/search")],
    study: Annotated[bool, typer.Option("--study", help="also study the number of anomalies: trains every trial once more")] = False,
    port: Port = None,
) -> None:
    """Choose a detector's hyperparameters by cross-validation and a few anomalies; compare that choice with those that need none.

    Every trial on every fold is a step of its own: what a search that was stopped has done is not done again. Ends with what each
    criterion chose, its figures on the test split, what failed and why, and the winner as a file for `normascope run`.
    """
    with command(port) as ui_url:
        from flows.search import load_search
        from flows.search import search as flow
        from tasks.search_report import describe_search

        run_config, plan = load_search(config, study=study)
        reference = flow(run_config, plan)
        for line in describe_search(reference):
            typer.echo(line)
        announce(reference, ui_url, painted=run_config.shown_notice is not None)


def until_train(path: Path) -> tuple[Any, Any, Any]:
    """The configuration, its manifest and its models."""
    from flows.config import load_config
    from flows.curate import curate as curate_flow
    from flows.train import train as train_flow

    loaded = load_config(path)
    manifest = curate_flow(loaded)
    return loaded, manifest, train_flow(loaded, manifest)


def until_score(path: Path) -> tuple[Any, Any, Any, Any]:
    """The configuration, its manifest, models and score stores."""
    from flows.score import score as score_flow

    loaded, manifest, models = until_train(path)
    return loaded, manifest, models, score_flow(loaded, manifest, models)
