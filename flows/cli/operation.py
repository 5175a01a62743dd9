"""Commands of operation: retraining and what is in use, the server, schedules, housekeeping, health."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.frame import EXECUTION, Port, command, errors
from tasks import server

PANEL = "Operation"

Store = Annotated[str, typer.Argument(metavar="STORE", help="the store of `normascope retrain`; s3:// too")]
app = typer.Typer()


@app.command(rich_help_panel=PANEL)
def retrain(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="a run's file with a section `retrain`; see deploy/configs")],
    port: Port = None,
) -> None:
    """Train a challenger where there are new data, promote it where the evidence says so, score the archive with what is in use.

    Champion and challenger are compared on a frozen test set by a paired bootstrap over subjects. Where nothing is new it ends in seconds;
    where a step fails the champion stays, and the same command goes on from there.
    """
    with command(port) as ui_url:
        from flows.retrain import load_retrain
        from flows.retrain import retrain as flow
        from tasks.retrain_story import describe_retraining

        for line in describe_retraining(flow(*load_retrain(config))):
            typer.echo(line)
        typer.echo(f"Prefect UI: {ui_url}")


@app.command(rich_help_panel=PANEL)
def champion(store: Store, history: Annotated[bool, typer.Option("--history", help="and all that are remembered")] = False) -> None:
    """Say which model of a store is in use, since when and why, and which was before it."""
    with errors():
        from storage import filesystems
        from storage.champions import describe, read_champion

        for line in describe(read_champion(filesystems.absolute(store)), history=history):
            typer.echo(line)


@app.command(rich_help_panel=PANEL)
def rollback(store: Store) -> None:
    """Put the model that was in use before the champion into use again; a second time undoes the first."""
    with errors():
        from storage import filesystems
        from storage.champions import describe, roll_back

        for line in describe(roll_back(filesystems.absolute(store))):
            typer.echo(line)


@app.command(rich_help_panel=PANEL)
def serve(
    deployments: Annotated[Path, typer.Argument(metavar="PREFECT.yaml", help="what runs when")] = Path("deploy/prefect.yaml"),
    port: Port = None,
) -> None:
    """Run what is scheduled on this machine, until Ctrl-C: Prefect server, work pool, a worker, deployments and automations.

    Uses the server at PREFECT_API_URL where that is set. History and schedules outlive a restart; runs that are under way at the end are
    cancelled, and their next run goes on from the finished steps. Runs work in the folder where this command is given.
    """
    with errors():
        server.configure_prefect()
        from flows.serve import serve_file

        serve_file(deployments, port=port, say=typer.echo)


@app.command(rich_help_panel=PANEL)
def ui(
    port: Port = None,
    stop: Annotated[bool, typer.Option("--stop", help="stop the server; its history is kept")] = False,
    browse: Annotated[bool, typer.Option("--open/--no-open", help="open the page in a browser")] = True,
) -> None:
    """Start the Prefect server on the history of all runs, if it does not run already, and open its page."""
    with errors():
        server.configure_prefect()
        if stop:
            stopped = server.stop_server()
            typer.echo(f"stopped the server at {stopped.ui_url}" if stopped else "no server of ours is running")
            return
        address = server.ensure_server(port=port)
        typer.echo(f"Prefect UI: {address} (history in {server.home() / 'prefect'}; `normascope ui --stop` stops it)")
        if browse and sys.stdout.isatty():
            typer.launch(address)


@app.command(rich_help_panel=PANEL)
def clean(
    place: Annotated[str, typer.Argument(metavar="STORE|ARCHIVE", help="of `run`, or of `score --into`; s3:// too")],
    dry_run: Annotated[bool, typer.Option("--dry-run/--yes", help="only show what would go, or remove it")] = True,
    older_than: Annotated[float | None, typer.Option(metavar="DAYS", help="cached results of that age go too; checkpoints: 30")] = None,
    keep: Annotated[int, typer.Option(min=1, help="finished versions of each slot that stay, the newest ones")] = 2,
    orphans: Annotated[bool, typer.Option("--orphans", help="evaluations, scores and reports of models that are gone go too")] = False,
    champion: Annotated[str | None, typer.Option(metavar="FILE", help="a champion.json elsewhere, whose model's scores stay")] = None,
) -> None:
    """List what nothing refers to any more, with sizes, or remove it with --yes.

    Cached results whose outputs are gone, checkpoints of trainings that were given up, replaced versions of an archive's slots, and what
    killed writes have left. An archive that a run works on is refused.
    """
    with errors():
        from storage import filesystems
        from tasks.clean import Rules, describe_items, plan_cleaning, remove_items

        server.configure_prefect()
        uri, rules = filesystems.absolute(place), Rules(older_than_days=older_than, keep=keep, orphans=orphans)
        items = (plan_cleaning if dry_run else remove_items)(uri, rules, champion=champion)
        for line in describe_items(items, removed=not dry_run):
            typer.echo(line)


@app.command(rich_help_panel=PANEL)
def doctor(
    store: Annotated[str, typer.Option(help="the store to look at; a small file is written there, read and removed")] = "normascope-demo",
    execution: Annotated[str | None, typer.Option(help=EXECUTION + ", to look at")] = None,
    backbone: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|CONFIG",
            help="also let this network say what three photographs show, or all that a run's file names; may be given several times",
        ),
    ] = None,
    weights: Annotated[str | None, typer.Option(metavar="FILE", help="its weights; without, those that belong to its name")] = None,
    sha256: Annotated[str | None, typer.Option(metavar="DIGEST", help="of the weight file")] = None,
) -> None:
    """Look at everything a run needs: versions, GPU, store, disk, server and its workers, Dask. Exits with 1 when something is missing.

    With --backbone also whether pretrained weights are what they are called: efficientnet-lite0 (bundled), torchvision/resnet18,
    timm/resnet18.a1_in1k and so on must recognise a cup of coffee, a cat and a rocket.
    """
    from flows.config import load_config
    from tasks.doctor import examine, examine_backbone, examine_backbones
    from tasks.execution import parse_execution
    from tasks.settings import load_settings

    files = [name for name in backbone or [] if name.endswith((".yaml", ".yml"))]
    if (weights or sha256) and (len(backbone or []) != 1 or files):
        raise typer.BadParameter("--weights and --sha256 are of one --backbone; name it")
    with errors():
        where = parse_execution(execution or load_settings().execution)
        configured = [detector for file in files for detector in load_config(Path(file)).detectors]
        findings = examine(store, scheduler=where.address)
    for name in backbone or []:
        if name not in files:
            findings.append(examine_backbone(name, weights=weights, weights_sha256=sha256))
    if files:
        findings += examine_backbones(configured)
    for finding in findings:
        typer.echo(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.name:<12} {finding.text}")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)
