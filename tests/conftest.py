"""What several rooms' tests need: a small set of pictures with a known answer, a run's configuration over it, a Prefect server."""

import os

os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
os.environ["DO_NOT_TRACK"] = "1"
os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "CRITICAL"

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.phantoms import write_pictures


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Twelve normal and six abnormal pictures of 64 × 64 with masks."""
    return write_pictures(tmp_path / "pictures", normal=12, abnormal=6)


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is written to the home of who runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NORMASCOPE_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Prefect server of its own with an empty history and no result kept from an earlier session."""
    from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    kept = {PREFECT_LOCAL_STORAGE_PATH: tmp_path_factory.mktemp("results")}
    with temporary_settings(kept), prefect_test_harness(server_startup_timeout=120):
        yield
