"""The papers' tables: every shipped plan, what its runs read, and one whole paper in miniature through the command."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from flows.config import RunConfig
from flows.reproduce import find_data, list_papers, load_mnist, load_paper, plan_experiments
from methods.detectors.registry import NAMES
from tasks.reproduce import PaperError, read_number
from tests.command import Workplace

PAPERS = ["dermoscopy", "hands", "melanoma", "perceptual", "skin"]


def test_the_five_papers_are_there() -> None:
    assert [plan.paper for plan in list_papers()] == PAPERS


@pytest.mark.parametrize("paper", PAPERS)
def test_every_row_has_its_detector_and_every_published_number_is_one(paper: str) -> None:
    plan, configs = load_paper(paper, data="/data", store="/store")  # refuses a row whose detector a run has not
    printed = [text for table in plan.tables for row in table.rows for cell in row.published for text in cell if text is not None]
    assert printed
    assert all(read_number(text) is not None for text in printed)
    assert all(config.store == "/store" for config in configs.values())
    assert _paths(configs) == {f"/data/{name}" for name in plan.data}


def _paths(configs: dict[str, RunConfig]) -> set[str]:
    sources = {source.path for config in configs.values() for source in config.source}  # type: ignore[union-attr]
    return sources | {config.curation.stain.target for config in configs.values() if config.curation.stain is not None}


def test_classes_and_seeds_are_experiments_and_a_miniature_is_named_so() -> None:
    plan, configs = load_paper("perceptual", data="/data", store="/store")
    planned = plan_experiments(plan, configs, miniature=False)
    assert len(planned) == 3 * 3 + 2 * 10 * 3
    blank, config = next((blank, config) for blank, config in planned if (blank["normal"], blank["seed"]) == ("bird", 2))
    assert (config.source[0].normal_class, config.training.seed, config.split.seed) == ("bird", 2, 0)  # type: ignore[union-attr]
    assert blank["title"] == config.name == "CIFAR-10 one class - bird normal - seed 2"
    small = plan_experiments(plan, configs, miniature=True)
    assert len(small) == 3 * 2 + 2 * 10
    for blank, config in small:
        assert config.name.startswith("GENERATED miniature")
        assert "GENERATED" in (config.shown_notice or "")
        assert len(config.detectors) == len(configs[blank["run"]].detectors)  # a row finds its detector by its place


def test_missing_data_and_unknown_papers_are_errors_that_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(PaperError, match=r"11k-hands: 11k Hands.*https.*\n.*--data.*--miniature"):
        find_data("hands", str(tmp_path), miniature=False)
    with pytest.raises(PaperError, match="expected dermoscopy, hands, melanoma, perceptual, skin or mnist"):
        load_paper("nobody", data="/data", store="/store")


def test_mnist_is_all_detectors_that_learn_from_normal_digits_with_three_seeds() -> None:
    config, plan = load_mnist(store="/store")
    assert (len(plan.seeds), len(plan.classes["normal_digit"]), config.store) == (3, 10, "/store")
    assert {detector.kind for detector in config.detectors} == set(NAMES) - {"simclr"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_paper_in_miniature_fills_its_table_and_a_second_time_nothing_is_done(tmp_path: Path) -> None:
    workplace = Workplace(tmp_path)
    try:
        command = ("reproduce", "melanoma", "--miniature", "--execution", "process")
        first = workplace.call(*command)
        assert first.returncode == 0, first.stderr
        assert "GENERATED" in first.stdout
        again = workplace.call(*command)
        assert again.returncode == 0, again.stderr
        assert "all cached, nothing was done" in again.stderr
        assert again.stdout == first.stdout
    finally:
        workplace.call("ui", "--stop")
    _check_page(tmp_path / "normascope-reproductions-GENERATED", first)


def _check_page(store: Path, command: subprocess.CompletedProcess[str]) -> None:
    (folder,) = (store / "reproductions").iterdir()
    assert folder.name.startswith("melanoma-GENERATED-")
    assert str(folder / "table.html") in command.stdout
    found = json.loads((folder / "table.json").read_text())
    method, constant = found["tables"][0]["rows"]
    assert method["cells"][0]["published"] == ["94.05%"]
    assert all(cell["value"] is not None for cell in method["cells"])
    assert constant["cells"][0]["value"] > 0.5  # most are benign, in miniature too
    html = (folder / "table.html").read_text()
    assert "GENERATED" in html
    (report,) = re.findall(r'href="(\.\./\.\./reports/[^"]+)"', html)
    assert "GENERATED" in (folder / report).read_text()
