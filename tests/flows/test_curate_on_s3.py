"""The archive and the store in an object store: a real S3 server that checks signatures, the same results as from a local disk."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from skimage import data

from flows.config import RunConfig
from flows.curate import curate
from flows.run import run
from methods.curation.split_config import SplitConfig
from methods.detectors.patchcore import PatchCoreConfig
from methods.evaluation.bootstrap import BootstrapConfig
from storage import filesystems
from storage.datasets.folder import FolderSource
from storage.models import read_bundle
from storage.scores import list_stores, open_store
from storage.slides import is_slide, open_slide, write_pyramid
from tasks.caching import steps
from tasks.curation import TilingConfig
from tasks.evaluate import EvaluationConfig
from tasks.execution import ExecutionConfig
from tasks.references import ManifestReference
from tasks.score import ScoringConfig
from tests.phantoms import write_pictures
from tests.servers import S3Server, as_client, s3_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.usefixtures("prefect_server")]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Eighteen pictures with masks, a slide, and a table of six more pictures of three people."""
    write_pictures(tmp_path / "archive" / "pictures", normal=12, abnormal=6)
    write_slide(tmp_path / "archive" / "slides" / "normal" / "slide.tif")
    listed = write_pictures(tmp_path / "archive" / "listed", normal=6, abnormal=0, size_px=80)
    rows = [
        {"uri": f"listed/normal/{path.name}", "label": "0", "subject_id": f"person-{number % 3}"}
        for number, path in enumerate(sorted((listed / "normal").iterdir()))
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "archive" / "listed.csv", index=False)
    return tmp_path / "archive"


def write_slide(path: Path) -> None:
    """Two by two pieces of real tissue on glass."""
    glass = np.full((2304, 2304, 3), 242, np.uint8)
    glass[600:1624, 500:1524] = np.tile(data.immunohistochemistry(), (2, 2, 1))
    write_pyramid(path, glass, spacing_um=0.5)


def upload(folder: Path, uri: str) -> str:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            filesystems.write_bytes(filesystems.join(uri, *path.relative_to(folder).parts), path.read_bytes())
    return uri


def make_config(archive: str, store: str) -> RunConfig:
    return RunConfig(
        name="on s3",
        store=store,
        source=tuple(FolderSource(path=filesystems.join(archive, name)) for name in ("pictures", "slides", "listed.csv")),
        tiling=TilingConfig(size_px=256, tiles_max=6),
        split=SplitConfig(train=0.5, validation=0.2, test=0.3),
        detectors=(PatchCoreConfig(input_size_px=64, memory_size=64, candidates=500),),
        scoring=ScoringConfig(shard_rows=8, shards_per_task=2),
        evaluation=EvaluationConfig(bootstrap=BootstrapConfig(replicates=50)),
        execution=ExecutionConfig(kind="process"),
    )


def curate_counting(config: RunConfig) -> tuple[ManifestReference, dict[str, int]]:
    """The manifest, and how often each step was done."""
    before = steps.done.copy()
    manifest: ManifestReference = curate(config)
    return manifest, dict(steps.done - before)


def rows_of(manifest: ManifestReference, archive: str) -> pd.DataFrame:
    """A manifest's rows in an order of their own, its URIs relative to the archive."""
    rows = filesystems.read_table(manifest["uri"])
    for column in ("uri", "mask_uri"):
        assert rows[column].dropna().str.startswith(archive + "/").all()
        rows[column] = rows[column].str.removeprefix(archive)
    return rows


def test_a_manifest_from_s3_is_the_local_one_and_grows_by_what_is_added(server: S3Server, archive: Path, tmp_path: Path) -> None:
    uri, store = upload(archive, f"{server.bucket}/archive"), f"{server.bucket}/store"
    config = make_config(uri, store)
    manifest, done = curate_counting(config)
    assert done == {"tabulate": 2, "write manifest": 1}  # the slide; the pictures, which are fewer than a batch holds
    assert manifest["uri"].startswith(f"{store}/manifests/")
    here, _ = curate_counting(make_config(str(archive), str(tmp_path / "store")))
    rows = rows_of(manifest, uri)
    pd.testing.assert_frame_equal(rows, rows_of(here, str(archive)))
    assert rows["slide_id"].notna().sum() == 6
    assert rows["excluded"].isna().sum() >= 24
    assert (rows["subject_id"].str.startswith("person-").sum(), rows["mask_uri"].notna().sum()) == (6, 6)
    (preview,) = filesystems.list_files(f"{store}/previews")
    assert filesystems.read_bytes(preview) == next((tmp_path / "store" / "previews").iterdir()).read_bytes()

    assert curate_counting(config) == (manifest, {})

    added = archive / "pictures" / "normal" / "picture-900.png"
    Image.fromarray(np.random.default_rng(9).integers(0, 255, (64, 64, 3), np.uint8)).save(added)
    filesystems.write_bytes(f"{uri}/pictures/normal/{added.name}", added.read_bytes())
    grown, done = curate_counting(config)
    assert done == {"tabulate": 1, "write manifest": 1}  # a batch of its own
    assert grown["rows"] == manifest["rows"] + 1
    assert set(filesystems.read_table(grown["uri"])["sample_id"]) > set(rows["sample_id"])


def test_a_wrong_secret_is_refused_by_name_and_nothing_is_written(server: S3Server, archive: Path) -> None:
    uri, store = upload(archive / "pictures", f"{server.bucket}/private"), f"{server.bucket}/never"
    config = make_config(uri, store).model_copy(update={"source": (FolderSource(path=uri),)})
    with as_client(server, secret_key="not the secret"), pytest.raises(PermissionError, match=rf"{server.bucket}/.*AWS_SECRET_ACCESS_KEY"):
        curate(config)
    assert not filesystems.exists(store)
    assert len(filesystems.list_files(uri)) == 24


def test_a_server_that_is_gone_is_an_error_that_names_the_endpoint(
    server: S3Server, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"{server.bucket}/archive"
    with as_client(server):
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        with pytest.raises(ConnectionError, match=rf"{server.bucket}/.*127\.0\.0\.1:9.*AWS_ENDPOINT_URL"):
            curate(make_config(uri, f"{server.bucket}/never"))


def test_opening_a_slide_fetches_its_directories_and_not_its_tiles(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pyramid(tmp_path / "noise.tif", np.random.default_rng(0).integers(0, 255, (4096, 4096, 3), np.uint8), spacing_um=0.5)
    uri = f"{server.bucket}/noise.tif"
    filesystems.write_bytes(uri, (tmp_path / "noise.tif").read_bytes())
    caches: list[Any] = []  # which a file forgets when it is closed
    real = filesystems.open_for_reading

    def open_for_reading(uri: str, **options: Any) -> Any:
        file = real(uri, **options)
        caches.append(file.cache)
        return file

    monkeypatch.setattr(filesystems, "open_for_reading", open_for_reading)
    assert is_slide(uri)
    with open_slide(uri) as slide:
        assert slide.level_dimensions == ((4096, 4096), (2048, 2048), (1024, 1024), (512, 512))
    assert len(caches) == 2
    assert 0 < sum(cache.total_requested_bytes for cache in caches) < (tmp_path / "noise.tif").stat().st_size / 5


def test_a_whole_run_on_s3_gives_the_bits_of_a_local_one(server: S3Server, archive: Path, tmp_path: Path) -> None:
    uri, store = upload(archive, f"{server.bucket}/whole/archive"), f"{server.bucket}/whole/store"
    there, here = make_config(uri, store), make_config(str(archive), str(tmp_path / "store"))
    report, local_report = run(there), run(here)
    assert report["html_uri"].startswith(f"{store}/reports/")
    assert b"</html>" in filesystems.read_bytes(report["html_uri"])
    numbers, local_numbers = (json.loads(filesystems.read_bytes(one["json_uri"])) for one in (report, local_report))
    assert numbers["detectors"][0]["metrics"] == local_numbers["detectors"][0]["metrics"]
    assert numbers["counts"] == local_numbers["counts"]

    (model_uri,), (local_model_uri,) = (filesystems.list_folders(f"{one.store}/models") for one in (there, here))
    model, local_model = read_bundle(model_uri), read_bundle(local_model_uri)
    assert set(model.tensors) == set(local_model.tensors)
    for name, tensor in model.tensors.items():
        np.testing.assert_array_equal(tensor, local_model.tensors[name], err_msg=name)

    (scores_uri,), (local_scores_uri,) = (list_stores(f"{one.store}/scores") for one in (there, here))
    scores, local_scores = open_store(scores_uri), open_store(local_scores_uri)
    np.testing.assert_array_equal(scores.status(), local_scores.status())
    np.testing.assert_array_equal(scores.image_scores(), local_scores.image_scores())
    np.testing.assert_array_equal(scores.read_maps(range(scores.rows)), local_scores.read_maps(range(scores.rows)))

    before = steps.done.copy()
    assert run(there) == report
    assert steps.done == before


def test_the_command_with_dask_workers_reads_and_writes_s3_and_refuses_a_wrong_secret_in_one_line(
    server: S3Server, archive: Path, tmp_path: Path
) -> None:
    config = {
        "name": "by command",
        "store": f"{server.bucket}/command/store",
        "source": {"kind": "folder", "path": upload(archive / "pictures", f"{server.bucket}/command/pictures")},
        "execution": {"kind": "local", "workers": 2},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    clean = {name: value for name, value in server.environment().items() if not name.startswith("PREFECT_")}
    clean["NORMASCOPE_HOME"] = str(tmp_path / "home")

    def call(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from flows.cli import main; main()", *arguments]
        return subprocess.run(command, env=clean | environment, cwd=tmp_path, capture_output=True, text=True)

    try:
        done = call("curate", "run.yaml")
        refused = call("curate", "run.yaml", AWS_SECRET_ACCESS_KEY="not the secret")
    finally:
        call("ui", "--stop")
    assert done.returncode == 0, done.stderr
    (uri,) = re.findall(r"^manifest of 18 samples: (s3://\S+)$", done.stdout, re.MULTILINE)
    proved = call("check-splits", uri)
    assert proved.returncode == 0, proved.stdout
    assert "none is in more than one split" in proved.stdout
    assert "conditional writes are kept" in call("doctor", "--store", config["store"]).stdout  # type: ignore[arg-type]
    assert refused.returncode == 1
    assert "AWS_SECRET_ACCESS_KEY" in refused.stderr
    assert "Traceback" not in refused.stderr
