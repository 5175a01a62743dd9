"""The environment over the file over defaults; and no secret is read from a file or shown."""

from pathlib import Path

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from flows.cli import app
from flows.config import RunConfig
from storage.datasets.folder import FolderSource
from tasks import server
from tasks.settings import SECRETS, SettingsError, load_settings, trace_settings


def environment(folder: Path, text: str = "", **more: str) -> dict[str, str]:
    (folder / "config.yaml").write_text(text)
    return {"NORMASCOPE_HOME": str(folder), **more}


def test_the_environment_is_over_the_file_and_the_file_over_the_default(tmp_path: Path) -> None:
    given = environment(tmp_path, "execution: process\nport: 4300\n", NORMASCOPE_PORT="4400", NORMASCOPE_VIEW_PORT="")
    settings = load_settings(given)
    assert (settings.execution, settings.port, settings.view_port, settings.home) == ("process", 4400, 8321, tmp_path)
    sources = {traced.name: traced.source for traced in trace_settings(given)}
    assert [sources[name] for name in ("execution", "port", "view_port", "home")] == [
        f"file {tmp_path / 'config.yaml'}",
        "environment",
        "default",
        "environment",
    ]
    with pytest.raises(ValidationError, match="frozen"):
        settings.port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "variables", "said"),
    [
        ("exekution: local\n", {}, "unknown setting exekution; did you mean execution?"),
        ("home: /elsewhere\n", {}, "unknown setting home"),
        ("port: many\n", {}, "port in file"),
        ("", {"NORMASCOPE_PORT": "70000"}, "NORMASCOPE_PORT: "),
        ("", {"NORMASCOPE_EXECUTION": "cluster"}, "NORMASCOPE_EXECUTION: "),
        ("- port\n", {}, "expected keys and values"),
        ("port: [\n", {}, "cannot be read as YAML"),
    ],
)
def test_a_wrong_setting_is_named_with_its_place(tmp_path: Path, text: str, variables: dict[str, str], said: str) -> None:
    with pytest.raises(SettingsError) as error:
        load_settings(environment(tmp_path, text, **variables))
    assert said in str(error.value)


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_in_the_file_is_refused_and_not_repeated(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match=name) as error:
        load_settings(environment(tmp_path, f"{name.lower()}: hunter2\n"))
    assert "hunter2" not in str(error.value)


def test_the_command_says_where_each_value_comes_from_and_hides_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = environment(tmp_path, "execution: tcp://scheduler:8786\n", PREFECT_API_URL="http://someone:hunter2@127.0.0.1:4200/api")
    for name, value in {**given, **dict.fromkeys(SECRETS, "hunter2")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_SESSION_TOKEN")
    shown = CliRunner(env={"COLUMNS": "300"}).invoke(app, ["config", "show"])
    assert shown.exit_code == 0, shown.output
    assert "hunter2" not in shown.output
    lines = {line.split()[0]: line for line in shown.output.splitlines()}
    assert "tcp://scheduler:8786" in lines["execution"]
    assert "config.yaml" in lines["execution"]
    assert "http://***@127.0.0.1:4200/api" in lines["prefect_api_url"]
    assert "*** (set)" in lines["aws_secret_access_key"]
    assert "not set" in lines["aws_session_token"]


def test_a_run_that_does_not_say_where_goes_where_the_setting_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment(tmp_path, "execution: tcp://scheduler:8786\n").items():
        monkeypatch.setenv(name, value)
    source = (FolderSource(path=str(tmp_path)),)
    assert RunConfig(name="a", store=str(tmp_path), source=source).execution.address == "tcp://scheduler:8786"
    said = RunConfig.model_validate({"name": "a", "store": str(tmp_path), "source": source, "execution": {"kind": "process"}})
    assert said.execution.kind == "process"


def test_what_the_file_says_of_prefect_and_the_object_store_reaches_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.environ", environment(tmp_path, "prefect_api_url: http://127.0.0.1:1/api\naws_endpoint_url: http://s3:9000\n"))
    import os

    os.environ["AWS_ENDPOINT_URL"] = "http://mine:1"
    server.configure_prefect()
    assert os.environ["PREFECT_API_URL"] == "http://127.0.0.1:1/api"
    assert os.environ["AWS_ENDPOINT_URL"] == "http://mine:1"
