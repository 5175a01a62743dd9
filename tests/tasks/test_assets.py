"""What Prefect takes as an asset."""

from pathlib import Path

import pytest
from prefect.assets import Asset

from tasks.assets import asset_key, tell_made


@pytest.mark.parametrize("uri", ["s3://bucket/models/ae-1", "/my pictures/100 % [new]/manifest.parquet", f"/{'long/' * 200}scores.zarr"])
def test_every_uri_has_a_key_that_prefect_takes(uri: str) -> None:
    assert Asset(key=asset_key(uri)).key == asset_key(uri)


def test_keys_name_one_place_by_one_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert asset_key("store") == asset_key(str(tmp_path / "store")) == f"file://{tmp_path}/store"
    assert asset_key("s3://bucket/store") == "s3://bucket/store"
    assert asset_key(f"{'/long' * 200}/a") != asset_key(f"{'/long' * 200}/b")


def test_outside_a_run_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefect.events.emit_event", lambda *_, **__: pytest.fail("told"))
    tell_made("store/manifest.parquet", name="manifest", of=[])
