"""What a machine is told once: one frozen object, from the environment over a file over defaults. Imports no Prefect.

The file is `config.yaml` in normascope's home, its keys are the names of `Settings`. Secrets stand in the environment alone (or in
Prefect's blocks): a file that holds one is refused, and none is ever printed.
"""

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

FILE = "config.yaml"
SECRETS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "PREFECT_API_AUTH_STRING",
    "PREFECT_API_KEY",
    "PREFECT_SERVER_API_AUTH_STRING",
    "PREFECT_API_DATABASE_CONNECTION_URL",
    "PREFECT_SERVER_DATABASE_CONNECTION_URL",
)
_USER = re.compile(r"(?<=://)[^/@\s]+@")


class SettingsError(ValueError):
    """A setting that cannot be used; the message names it and where it stands."""


class Settings(BaseModel):
    """All settings; each can be given in the file by its name and in the environment by its variable."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    home: Path = Field(description="history, results of tasks, checkpoints and logs; not in the file, which lies there")
    prefect_api_url: str | None = Field(default=None, description="of a Prefect server; a local one is started when not given")
    execution: str = Field(
        default="local", pattern=r"^(local|process|\w+://\S+)$", description="where a run goes whose configuration does not say"
    )
    port: int = Field(default=4200, ge=1, le=65535, description="of the Prefect server that is started, or the next free one")
    view_port: int = Field(default=8321, ge=1, le=65535, description="of the page of `normascope view`, or a free one")
    log_format: Literal["text", "json"] = Field(
        default="text", description="of what is logged to stderr: warnings to read, or JSON lines with the ids of run, task and shard"
    )
    metrics_port: int | None = Field(
        default=None, ge=1, le=65535, description="on loopback, where Prometheus is told of a run on an archive; none when not given"
    )
    aws_endpoint_url: str | None = Field(default=None, description="of an object store that is not Amazon's")
    aws_default_region: str | None = None
    aws_profile: str | None = Field(default=None, description="of AWS's own files")

    @staticmethod
    def variable(name: str) -> str:
        """The environment variable of a setting: Prefect's and Amazon's have their own names."""
        return name.upper() if name.startswith(("prefect_", "aws_")) else f"NORMASCOPE_{name.upper()}"


class Traced(NamedTuple):
    """A setting as it is shown, and whether it is of the environment, the file, or the default."""

    name: str
    variable: str
    shown: str
    source: str


def find_home(environment: Mapping[str, str] | None = None) -> Path:
    """Where history, results of tasks and logs are kept: NORMASCOPE_HOME, or ~/.normascope."""
    given = (os.environ if environment is None else environment).get("NORMASCOPE_HOME")
    return Path(given or "~/.normascope").expanduser().absolute()


def load_settings(environment: Mapping[str, str] | None = None) -> Settings:
    """The settings as they are now; an empty variable is none.

    Args:
        environment: of this process when not given.

    Raises:
        SettingsError: an unknown key, a wrong value, a secret in the file, or a file that is no YAML.
    """
    return _load(os.environ if environment is None else environment)[0]


def trace_settings(environment: Mapping[str, str] | None = None) -> list[Traced]:
    """Each setting with its source, then each secret, of which only is said whether it is set.

    Raises:
        SettingsError: as `load_settings`.
    """
    environment = os.environ if environment is None else environment
    settings, sources = _load(environment)
    values = {name: getattr(settings, name) for name in Settings.model_fields}
    traced = [
        Traced(name, Settings.variable(name), "not set" if value is None else hide_user(str(value)), sources.get(name, "default"))
        for name, value in values.items()
    ]
    of_secret = {True: ("*** (set)", "environment"), False: ("not set", "default")}
    return traced + [Traced(name.lower(), name, *of_secret[bool(environment.get(name))]) for name in SECRETS]


def export_settings() -> dict[str, str]:
    """What the file says of Prefect's and Amazon's settings, by variable: for the libraries, which read the environment alone."""
    settings, sources = _load(os.environ)
    return {
        Settings.variable(name): str(getattr(settings, name))
        for name, source in sources.items()
        if source.startswith("file") and name.startswith(("prefect_", "aws_"))
    }


def hide_user(url: str) -> str:
    """A URL without the user and password that it may hold."""
    return _USER.sub("***@", url)


def _load(environment: Mapping[str, str]) -> tuple[Settings, dict[str, str]]:
    """The settings, and the source of each that is not the default."""
    given = {name: environment[variable] for name in Settings.model_fields if environment.get(variable := Settings.variable(name))}
    home = find_home(environment)
    path = home / FILE
    in_file = _read_file(path)
    sources = dict.fromkeys(in_file, f"file {path}") | dict.fromkeys(given, "environment")
    try:
        settings = Settings.model_validate({**in_file, **given, "home": home})
    except ValidationError as error:
        raise SettingsError("; ".join(_explain(found, sources) for found in error.errors())) from None
    return settings, sources


def _read_file(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, yaml.YAMLError) as error:
        raise SettingsError(f"{path} cannot be read as YAML: {type(error).__name__}") from None  # the text could hold a secret
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise SettingsError(f"{path}: expected keys and values, such as `execution: process`, got {type(values).__name__}")
    known = [name for name in Settings.model_fields if name != "home"]
    for name in map(str, values):
        if name.upper() in SECRETS:
            raise SettingsError(f"{path}: {name} is a secret, and no file of ours holds one: set {name.upper()} in the environment")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            raise SettingsError(f"{path}: unknown setting {name}; {hint}")
    return values


def _explain(found: Any, sources: Mapping[str, str]) -> str:
    name = str(found["loc"][0])
    where = Settings.variable(name) if sources[name] == "environment" else f"{name} in {sources[name]}"
    return f"{where}: {found['msg']} (got {hide_user(str(found['input']))!r})"
