"""The guides' commands, as they stand there, in an empty folder with small generated pictures."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.guides import Reader, guides, marks_of, write_archive, write_pictures

ROOT = Path(__file__).parents[2]
NOT_RUN = {
    "train.md": [
        "the test has the environment already",
        "needs four GPUs",
        "takes minutes; tests/flows/test_search.py runs searches",
    ],
    "score.md": ["needs a bucket and a cluster; tests/faults runs both"],
    "add-a-detector.md": ["the test has the environment already", "takes minutes"],
}
ELSEWHERE = {
    "retrain.md": "tests/flows/test_retrain.py",
    "serve.md": "tests/flows/test_serve.py",
    "operate.md": "tests/tasks/test_clean.py",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One history and one server for all guides."""
    yield (folder := tmp_path_factory.mktemp("home"))
    Reader(folder, folder).run("normascope ui --stop")


def test_every_guide_is_followed_here_or_elsewhere_and_what_is_not_run_says_why() -> None:
    assert set(guides()) == {*NOT_RUN, *ELSEWHERE}
    assert {guide: marks_of(guide) for guide in NOT_RUN} == NOT_RUN
    assert all((ROOT / test).exists() for test in ELSEWHERE.values())


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_somebody_trains_on_pictures_and_then_scores_an_archive(tmp_path: Path, home: Path) -> None:
    write_pictures(tmp_path / "my-pictures", persons=48)
    write_archive(tmp_path / "my-archive", 60)
    reader = Reader(tmp_path, home)
    reader.follow("train.md")
    (report,) = (tmp_path / "store" / "reports").glob("skin-*")
    assert {path.name for path in report.iterdir()} >= {"report.html", "metrics.json", "metrics.csv", "run.yaml"}
    reader.follow("score.md")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_somebody_adds_a_detector_to_a_copy_of_the_repository(tmp_path: Path, home: Path) -> None:
    for room in ("methods", "storage", "tasks", "flows", "tests", "deploy"):
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    write_pictures(tmp_path / "my-pictures", persons=48)
    Reader(tmp_path, home, PYTHONPATH=str(tmp_path)).follow("add-a-detector.md")
    (table,) = (tmp_path / "store" / "reports").glob("*/metrics.csv")
    lines = table.read_text().splitlines()
    assert any(line.startswith("metric,Mahalanobis,image,AUROC,") for line in lines)
    assert any(line.startswith("difference,PaDiM - Mahalanobis,image,AUROC,") for line in lines)
