"""`normascope config`: what this machine is told, and where it was told."""

import typer

app = typer.Typer(no_args_is_help=True, help="Settings of this machine, from the environment over NORMASCOPE_HOME/config.yaml.")


@app.callback()
def config() -> None:
    """Keep `show` a command of its own: Typer makes the only command of an app the app."""


@app.command()
def show() -> None:
    """Print each setting, its environment variable, its value and where that comes from; of secrets only whether they are set."""
    from tasks.settings import SettingsError, trace_settings

    try:
        traced = trace_settings()
    except SettingsError as error:
        typer.secho(f"SettingsError: {error}", fg="red", err=True)
        raise typer.Exit(1) from None
    wide = [max(len(row[column]) for row in traced) for column in range(3)]
    for name, variable, shown, source in traced:
        typer.echo(f"{name:<{wide[0]}}  {variable:<{wide[1]}}  {shown:<{wide[2]}}  {source}")
