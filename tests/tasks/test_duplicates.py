"""Copies are found once, remembered, and joined; what only hashes alike is not."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from skimage import data

from methods.curation.hashing import dihedral_hashes, hash_to_text
from storage import filesystems
from storage.slides import write_pyramid
from tasks import duplicates as module
from tasks.curation import DuplicateConfig
from tasks.duplicates import find_duplicates, read_overview

CONFIG, TURNED = DuplicateConfig(), DuplicateConfig(turned=True)
SCENES = ("astronaut", "chelsea", "coffee", "rocket")


def scene(name: str) -> Image.Image:
    return Image.fromarray(getattr(data, name)()).convert("RGB").resize((320, 240))


def listed(folder: Path) -> pd.DataFrame:
    """The folder's pictures as `tasks.grouping.list_pictures` gives them."""
    rows = []
    for path in sorted(folder.iterdir()):
        turns = dihedral_hashes(read_overview(str(path), None, "any"))
        assert turns is not None
        texts = [hash_to_text(turn) for turn in turns]
        rows.append(
            {"key": filesystems.sha256_of(str(path)), "phash": texts[0], "phash_turns": " ".join(texts), "uri": str(path), "frame": None}
        )
    return pd.DataFrame(rows).assign(sha256=lambda rows: rows["key"]).astype("string").assign(features=None)


def named(pictures: pd.DataFrame, *names: str) -> pd.Series:
    return pictures["uri"].map(lambda uri: Path(uri).stem in names).astype(bool)


def groups(folder: Path, config: DuplicateConfig | None = CONFIG, pictures: pd.DataFrame | None = None) -> set[frozenset[str]]:
    """The groups of more than one picture, by the files' names without suffix."""
    pictures = listed(folder) if pictures is None else pictures
    pairs = find_duplicates(pictures, config=config, store=str(folder.parent / "store"))
    names = {key: Path(uri).stem for key, uri in zip(pictures["key"], pictures["uri"], strict=True)}
    joined = {name: {name} for name in names.values()}
    for first, second in pairs.itertuples(index=False):
        union = joined[names[first]] | joined[names[second]]
        for member in union:
            joined[member] = union
    return {frozenset(group) for group in joined.values() if len(group) > 1}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Four scenes, and of the first a recompressed and a rescaled copy."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in SCENES:
        scene(name).save(folder / f"{name}.png")
    scene("astronaut").save(folder / "recompressed.jpg", quality=40)
    scene("astronaut").resize((200, 150)).save(folder / "rescaled.png")
    return folder


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each picture was read for comparison."""
    counted: Counter[str] = Counter()
    read = module.read_overview

    def counting(uri: str, frame: str | None, sha256: str) -> np.ndarray:
        counted[Path(uri).stem] += 1
        return read(uri, frame, sha256)

    monkeypatch.setattr(module, "read_overview", counting)
    return counted


COPIES = frozenset({"astronaut", "recompressed", "rescaled"})


def test_recompressed_and_rescaled_copies_are_found_and_other_pictures_are_not(archive: Path) -> None:
    assert groups(archive) == {COPIES}


def test_turned_and_mirrored_copies_are_found_only_when_asked(archive: Path) -> None:
    scene("coffee").transpose(Image.Transpose.ROTATE_90).save(archive / "turned.png")
    scene("chelsea").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(archive / "mirrored.jpg", quality=85)
    assert groups(archive) == {COPIES}
    assert groups(archive, TURNED) == {COPIES, frozenset({"coffee", "turned"}), frozenset({"chelsea", "mirrored"})}


def test_without_a_configuration_or_pictures_nothing_is_looked_for(archive: Path, reads: Counter[str]) -> None:
    assert groups(archive, None) == set()
    nothing = listed(archive).iloc[:0]
    assert find_duplicates(nothing, config=CONFIG, store=str(archive.parent / "store")).empty
    assert not reads


def test_unrelated_pictures_of_close_hashes_are_compared_and_rejected(archive: Path, reads: Counter[str]) -> None:
    pictures = listed(archive)
    other = named(pictures, "rocket", "coffee")
    pictures.loc[other, "phash"] = pictures["phash"].iloc[0]  # as if their hashes met by accident
    assert groups(archive, pictures=pictures) == {COPIES}
    assert reads["rocket"] == reads["coffee"] == 1


def test_the_radius_decides_what_is_compared_and_the_similarity_what_is_the_same(archive: Path, reads: Counter[str]) -> None:
    pictures = listed(archive)
    far = hash_to_text(int(pictures["phash"].iloc[0], 16) ^ 0b111111)  # six bits off
    pictures.loc[named(pictures, "recompressed", "rescaled"), "phash"] = far
    assert groups(archive, DuplicateConfig(radius_bits=5), pictures) == {frozenset({"recompressed", "rescaled"})}
    assert groups(archive, DuplicateConfig(radius_bits=6), pictures) == {COPIES}
    assert groups(archive, DuplicateConfig(least_similarity=1.0), pictures) == set()


def test_slides_are_compared_by_their_thumbnails(tmp_path: Path) -> None:
    folder = tmp_path / "slides"
    tissue = np.tile(data.immunohistochemistry(), (2, 2, 1))
    write_pyramid(folder / "one.svs", tissue, spacing_um=0.5)
    write_pyramid(folder / "rescanned.svs", tissue, spacing_um=0.25, quality=60)
    write_pyramid(folder / "other.svs", np.ascontiguousarray(np.roll(tissue, 200, axis=0)[:900, :700]), spacing_um=0.5)
    assert groups(folder) == {frozenset({"one", "rescanned"})}


def test_a_zoomed_copy_is_found_by_its_features_and_pictures_that_only_have_near_features_are_not(archive: Path) -> None:
    scene("astronaut").crop((40, 20, 260, 185)).resize((320, 240)).save(archive / "zoomed.png")
    alike = np.ones(304, np.float16).tobytes()  # as if the network saw no difference at all
    pictures = listed(archive)
    pictures = pictures[named(pictures, "astronaut", "zoomed", "rocket")].assign(features=[alike] * 3)
    assert groups(archive, pictures=pictures) == set()
    semantic = DuplicateConfig(semantic_cosine=0.9, semantic_neighbours=2)
    assert groups(archive, semantic, pictures) == {frozenset({"astronaut", "zoomed"})}


# ---- pictures come and go


def test_a_second_call_compares_nothing_and_gives_the_same(archive: Path, reads: Counter[str]) -> None:
    assert groups(archive) == {COPIES}
    reads.clear()
    assert groups(archive) == {COPIES}
    assert not reads


def test_an_added_picture_is_compared_with_its_candidates_alone(archive: Path, reads: Counter[str]) -> None:
    groups(archive)
    reads.clear()
    scene("chelsea").save(archive / "again.jpg", quality=80)
    assert groups(archive) == {COPIES, frozenset({"chelsea", "again"})}
    assert set(reads) == {"chelsea", "again"}


def test_adding_one_by_one_gives_what_all_at_once_gives(archive: Path) -> None:
    scene("chelsea").save(archive / "again.jpg", quality=80)
    pictures = listed(archive)
    for count in range(1, len(pictures) + 1):
        last = groups(archive, pictures=pictures.iloc[:count])
    assert last == groups(archive.parent / "elsewhere" / "x", pictures=pictures) == {COPIES, frozenset({"chelsea", "again"})}


def test_another_configuration_starts_anew(archive: Path) -> None:
    assert groups(archive, DuplicateConfig(least_similarity=0.999)) == set()
    assert groups(archive) == {COPIES}


def test_a_removed_pictures_pairs_drop_out(archive: Path) -> None:
    groups(archive)
    scene("chelsea").save(archive / "again.jpg", quality=80)
    groups(archive)
    (archive / "again.jpg").unlink()
    assert groups(archive) == {COPIES}


@pytest.mark.parametrize("gone", sorted(COPIES))
def test_copies_stay_joined_when_the_one_that_joined_them_is_removed(archive: Path, gone: str) -> None:
    groups(archive)
    next(archive.glob(f"{gone}.*")).unlink()
    assert groups(archive) == {COPIES - {gone}}
    assert groups(archive) == {COPIES - {gone}}  # and once more out of the book


def test_a_picture_that_returns_is_compared_with_what_came_meanwhile(archive: Path) -> None:
    pictures = listed(archive)
    here = pictures[~named(pictures, "rescaled", "recompressed")]
    assert groups(archive, pictures=here) == set()
    without = pictures[~named(pictures, "astronaut")]
    assert groups(archive, pictures=without) == {COPIES - {"astronaut"}}
    assert groups(archive, pictures=pictures) == {COPIES}


class Killed(BaseException):
    """What no `except Exception` stops."""


@pytest.mark.parametrize("write", [1, 2, 3])
def test_a_kill_at_any_write_loses_no_pair(archive: Path, monkeypatch: pytest.MonkeyPatch, write: int) -> None:
    pictures = listed(archive)
    groups(archive, pictures=pictures[~named(pictures, "rescaled")])
    written: list[str] = []
    keep: Any = filesystems.write_table

    def killed_at(uri: str, table: pd.DataFrame) -> None:
        written.append(uri)
        if len(written) == write:
            raise Killed
        keep(uri, table)

    changed = pictures[~named(pictures, "astronaut")]  # one gone, one new: three writes
    with monkeypatch.context() as patch:
        patch.setattr(filesystems, "write_table", killed_at)
        with pytest.raises(Killed):
            groups(archive, pictures=changed)
    assert groups(archive, pictures=pictures) == {COPIES}  # the removed one is back
    assert groups(archive, pictures=changed) == {COPIES - {"astronaut"}}
