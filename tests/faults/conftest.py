"""One scene and one undisturbed run for all faults, a real S3 server behind a proxy, and the table at the end."""

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import pandas as pd
import pytest

from storage import filesystems
from storage.manifest import read_manifest, write_named
from storage.scores import ScoreStore
from tests.archives import write_archive_pictures, write_manifest_of, write_small_bundle
from tests.command import NORMASCOPE
from tests.faults.harness import SAMPLES, Cost, Scene, Scoring, clean_environment
from tests.faults.proxy import Proxy, disturbing_proxy
from tests.servers import S3Server, s3_server

COSTS = pytest.StashKey[list[Cost]]()


class ObjectStore(NamedTuple):
    """A bucket that is reached through a proxy, with the scene's pictures in it."""

    server: S3Server
    proxy: Proxy
    manifest: str
    environment: dict[str, str]

    def scoring(self, scene: Scene, name: str, **arguments: Any) -> Scoring:
        """Of the pictures in the bucket into an archive in the bucket, all through the proxy."""
        return Scoring(scene, name, into=self.server.bucket, manifest=self.manifest, environment=self.environment, **arguments)


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Pictures, manifest, bundle, and a home whose Prefect server is stopped at the end."""
    folder = tmp_path_factory.mktemp("faults")
    manifest, _ = write_manifest_of(write_archive_pictures(folder / "pictures", SAMPLES))
    bundle = write_small_bundle(folder / "bundle")["uri"]
    places = {sample: row for row, sample in enumerate(read_manifest(manifest)["sample_id"])}
    environment = clean_environment(folder / "home")
    yield Scene(folder, manifest, bundle, environment, places)
    subprocess.run([*NORMASCOPE, "ui", "--stop"], env=environment, check=True, capture_output=True)


@pytest.fixture(scope="session")
def undisturbed(scene: Scene) -> ScoreStore:
    """What every archive must hold in the end."""
    scoring = Scoring(scene, "undisturbed", options=("--execution", "process"))
    scoring.finish()
    scoring.verify()
    return scoring.scores()


@pytest.fixture(scope="session")
def object_store(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """A server with the same pictures, and the same manifest but for the places."""
    with s3_server(tmp_path_factory.mktemp("s3")) as server, disturbing_proxy(server.endpoint) as proxy:
        rows = read_manifest(scene.manifest)
        names = [filesystems.join(server.bucket, "pictures", filesystems.name_of(uri)) for uri in rows["uri"]]
        for uri, name in zip(rows["uri"], names, strict=True):
            filesystems.write_bytes(name, filesystems.read_bytes(uri))
        manifest, _ = write_named(server.bucket, rows.assign(uri=names), manifest=slice(None))["manifest"]
        environment = replace(server, endpoint=proxy.endpoint).environment(scene.environment)
        yield ObjectStore(server, proxy, manifest, environment)


@pytest.fixture
def scoring(request: pytest.FixtureRequest, scene: Scene) -> Scoring:
    """On the store that the test's parameter names, local or S3; the server is started by the first that needs it."""
    name = request.node.originalname.removeprefix("test_")
    if request.param == "local":
        return Scoring(scene, name)
    store: ObjectStore = request.getfixturevalue("object_store")
    return store.scoring(scene, name)


@pytest.fixture
def costs(request: pytest.FixtureRequest) -> list[Cost]:
    """Where a test writes down what its fault cost."""
    return request.config.stash.setdefault(COSTS, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The table."""
    costs = config.stash.get(COSTS, [])
    if costs:
        table = pd.DataFrame(costs).rename(columns=lambda name: name.replace("_", " "))
        terminalreporter.section("what the faults cost")
        terminalreporter.write_line(table.to_string(index=False, float_format="%.1f"))
