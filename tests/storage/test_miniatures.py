"""Miniatures of the papers' data sets: marked, whole or not at all, the same bytes each time, and never in the place of real data."""

import hashlib
from functools import partial
from pathlib import Path

import pytest

from storage.datasets.hands import HandsSource, list_hands
from storage.datasets.miniatures import papers
from storage.datasets.miniatures.dermatology import (
    write_arsenic_skin,
    write_hands,
    write_isic2018,
    write_isic2020,
    write_isic_archive,
    write_sd198,
)
from storage.datasets.miniatures.one_class import write_cifar10, write_svhn
from storage.datasets.miniatures.papers import MARKER, MiniatureError, write_miniature
from storage.datasets.miniatures.pathology import write_camelyon16
from storage.datasets.miniatures.radiology import plan_chestxray14, write_chestxray14

WRITERS = {
    "isic": partial(write_isic_archive, photographs=1, dermoscopic=1, width_px=160),
    "ArsenicSkinImageBD": partial(write_arsenic_skin, not_infected=1, infected=1),
    "sd-198": partial(write_sd198, classes=("Psoriasis",)),
    "11k-hands": partial(write_hands, people=1, pictures=2),
    "isic-2018": partial(write_isic2018, lesions={"NV": 1, "MEL": 1}),
    "isic-2020": partial(write_isic2020, patients=1),
    "CAMELYON16": partial(write_camelyon16, normal=(1,), tumor=(1,), test={1: "Tumor"}, size_px=256),
    "nih-chestxray14": write_chestxray14,
    "cifar-10": partial(write_cifar10, per_batch=10),
    "svhn": partial(write_svhn, train=10, test=10),
}


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(papers, "_WRITERS", {"perceptual": WRITERS})


def test_a_miniature_is_what_its_reader_expects_and_who_wears_jewels_has_a_picture_without(tmp_path: Path) -> None:
    folder = write_miniature("hands", tmp_path / "data")
    items = list_hands(HandsSource(path=str(folder / "11k-hands")))
    wearing = {item.subject_id for item in items if item.label == 1}
    assert [sum(item.label == label for item in items) for label in (0, 1)] == [190, 80]
    assert len(wearing) == 20
    assert wearing < {item.subject_id for item in items if item.label == 0}
    assert len({item.subject_id for item in items}) == 54
    assert not any(item.excluded for item in items)
    assert "GENERATED, not the data set 11k-hands" in (folder / "11k-hands" / MARKER).read_text()


@pytest.mark.usefixtures("tiny")
def test_every_call_gives_the_same_bytes_and_a_second_one_writes_nothing(tmp_path: Path) -> None:
    one, other = write_miniature("perceptual", tmp_path / "one"), write_miniature("perceptual", tmp_path / "other")
    assert digests(one) == digests(other)
    assert {path.name for path in one.iterdir()} == {*WRITERS, "stain-target.png", ".miniature.lock"}
    assert all((one / name / MARKER).exists() for name in WRITERS)
    written = {path: path.stat().st_mtime_ns for path in one.rglob("*") if path.name != ".miniature.lock"}
    write_miniature("perceptual", one)
    assert {path: path.stat().st_mtime_ns for path in written} == written


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("killed_while", ["writing", "replacing"])
def test_what_a_killed_call_left_is_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_while: str) -> None:
    whole = digests(write_miniature("perceptual", tmp_path / "whole"))
    folder = write_miniature("perceptual", tmp_path / "data")
    version = papers._VERSION
    monkeypatch.setattr(papers, "_VERSION", 0)  # else all is left as it is
    broken = Path.rename if killed_while == "replacing" else Path.write_text

    def kill(path: Path, *arguments: object, **options: object) -> object:
        if path.name in (".svhn.new", ".nih-chestxray14.new", "test_list.txt"):
            raise KeyboardInterrupt
        return broken(path, *arguments, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(Path, broken.__name__, kill)
        with pytest.raises(KeyboardInterrupt):
            write_miniature("perceptual", folder)
    monkeypatch.setattr(papers, "_VERSION", version)
    assert digests(write_miniature("perceptual", folder)) == whole


@pytest.mark.usefixtures("tiny")
def test_data_that_were_not_generated_are_refused_and_left(tmp_path: Path) -> None:
    real = tmp_path / "svhn" / "train_32x32.mat"
    real.parent.mkdir()
    real.write_bytes(b"real")
    with pytest.raises(MiniatureError, match="svhn was not generated and is not overwritten"):
        write_miniature("perceptual", tmp_path)
    assert [path.name for path in real.parent.iterdir()] == [real.name]


def test_an_unknown_paper_is_refused_naming_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(MiniatureError, match="no miniature of 'brain'; expected skin, hands, dermoscopy, melanoma, perceptual"):
        write_miniature("brain", tmp_path)


def test_the_radiographs_of_each_projection_are_of_both_kinds_in_both_lists() -> None:
    rows, tested = plan_chestxray14(96)
    parts = {(row.split(",")[6], "No Finding" in row, row.split(",")[0] in tested): row for row in rows}
    assert len(parts) == 8
    assert len({row.split(",")[3] for row in rows}) == len(rows)
