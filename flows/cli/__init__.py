"""The `normascope` command: one file a group of commands, `frame.py` round each of them."""

import typer

from flows.cli import archives, operation, papers, pipeline, scores, settings

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="markdown",
    help="""Learns what healthy tissue looks like and finds what does not.

    `normascope demo` shows the whole pipeline on slides that it builds itself. `normascope run CONFIG.yaml` does the same on your own
    pictures. The other commands stop earlier. Every step is cached: what is there is not done again, and a run that was interrupted
    goes on where it was. Steps, logs and history stand in the Prefect UI (`normascope ui`).""",
)

for group in (pipeline, archives, papers, operation):
    app.add_typer(group.app)
app.add_typer(scores.app, name="scores", rich_help_panel=archives.PANEL)
app.add_typer(settings.app, name="config", rich_help_panel=operation.PANEL)


def main() -> None:
    """Entry point of the command."""
    app()
