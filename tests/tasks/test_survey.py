import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from storage import filesystems
from storage.datasets.folder import FolderSource
from storage.datasets.medmnist import MedMnistSource
from storage.datasets.miniatures.one_class import write_medmnist
from storage.datasets.source import SourceError
from storage.slides import write_pyramid
from tasks import survey as module
from tasks.survey import deal_batches, read_batch, survey


def write_many(folder: Path, numbers: range) -> FolderSource:
    (folder / "normal").mkdir(parents=True, exist_ok=True)
    for number in numbers:
        Image.fromarray(np.full((4, 4), number % 256, np.uint8)).save(folder / "normal" / f"{number:04d}.png")
    return FolderSource(path=str(folder))


def members(source: FolderSource, store: Path) -> dict[str, list[str]]:
    """The batches' files by their URI, which is the digest of their content."""
    batches = deal_batches(survey([source], store=str(store)), store=str(store))
    return {batch["uri"]: [filesystems.name_of(item["uri"]) for item in read_batch(batch)] for batch in batches}


# ---- survey


def test_a_data_set_that_is_named_and_not_listed_is_refused_before_a_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bodies = write_many(tmp_path / "bodies", range(2))
    survey([bodies], store=str(tmp_path / "store"), named=["bodies"])
    monkeypatch.setattr(filesystems.FingerprintBook, "fingerprint_all", lambda *_, **__: pytest.fail("files were read"))
    with pytest.raises(SourceError, match=r"by_dataset names \['body'\], which no source lists; the data sets listed are \['bodies'\]"):
        survey([bodies], store=str(tmp_path / "store"), named=["bodies", "body"])


def test_items_carry_the_digests_of_picture_and_mask(pictures: Path) -> None:
    items = survey([FolderSource(path=str(pictures))], store=str(pictures.parent / "store"))
    for item in items:
        assert item["sha256"] == filesystems.sha256_of(item["uri"])
        assert item["mask_sha256"] == (filesystems.sha256_of(item["mask_uri"]) if item["mask_uri"] else None)
        assert item["unreadable"] is None


def test_outlines_stand_in_for_a_mask(tmp_path: Path) -> None:
    write_many(tmp_path, range(1))
    (tmp_path / "outlines.xml").write_text("<ASAP_Annotations/>")
    (tmp_path / "table.csv").write_text("uri,label,annotation_uri\nnormal/0000.png,1,outlines.xml\n")
    [item] = survey([FolderSource(path=str(tmp_path / "table.csv"))], store=str(tmp_path / "store"))
    assert item["mask_uri"] == str(tmp_path / "outlines.xml")
    assert item["mask_sha256"] == filesystems.sha256_of(str(tmp_path / "outlines.xml"))


def test_rows_without_a_file_are_listed_with_the_reason_and_the_others_with_their_digest(tmp_path: Path) -> None:
    write_many(tmp_path, range(2))
    (tmp_path / "table.csv").write_text("uri,label\nnormal/0000.png,0\nnormal/gone.png,0\nnormal/0001.png,0\n")
    items = survey([FolderSource(path=str(tmp_path / "table.csv"))], store=str(tmp_path / "store"))
    assert [item["sha256"] is None for item in items] == [False, True, False]
    assert "gone.png" in (items[1]["unreadable"] or "")
    assert (items[1]["unreadable"] or "").startswith("FileNotFoundError")


def test_a_missing_mask_makes_its_picture_unusable_and_names_the_mask(pictures: Path) -> None:
    table = pictures / "table.csv"
    table.write_text("uri,label,mask_uri\nabnormal/picture-012.png,1,masks/gone.png\n")
    [item] = survey([FolderSource(path=str(table))], store=str(pictures.parent / "store"))
    assert "gone.png" in (item["unreadable"] or "")


def test_a_picture_that_two_sources_list_is_refused_naming_both(pictures: Path, tmp_path: Path) -> None:
    sources = [FolderSource(path=str(pictures)), FolderSource(path=str(pictures), dataset="again")]
    with pytest.raises(SourceError, match=r"picture-000\.png is listed by two sources, pictures and again: leave it out of one"):
        survey(sources, store=str(tmp_path / "store"))
    with pytest.raises(SourceError, match="listed by two sources, pictures and pictures"):
        survey([sources[0], sources[0]], store=str(tmp_path / "store"))


def test_a_frame_that_two_sources_list_is_refused_though_the_frames_of_one_file_are_not(tmp_path: Path) -> None:
    source = MedMnistSource(path=str(write_medmnist(tmp_path / "pneumoniamnist.npz")), normal_labels=(0,))
    once = survey([source], store=str(tmp_path / "store"))
    assert len({item["frame"] for item in once}) == len(once)
    with pytest.raises(SourceError, match="listed by two sources"):
        survey([source, source.model_copy(update={"normal_labels": (1,)})], store=str(tmp_path / "store"))


def test_a_file_of_many_frames_is_read_once_and_never_again_while_it_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_medmnist(tmp_path / "pneumoniamnist.npz")
    read: list[str] = []
    looked_up: list[str] = []
    digest, look_up = filesystems.sha256_of, filesystems.FingerprintBook.fingerprint_all
    monkeypatch.setattr(filesystems, "sha256_of", lambda uri: read.append(uri) or digest(uri))
    monkeypatch.setattr(
        filesystems.FingerprintBook, "fingerprint_all", lambda book, uris, **rest: looked_up.extend(uris) or look_up(book, uris, **rest)
    )
    source = MedMnistSource(path=str(path), normal_labels=(0,))
    items = survey([source], store=str(tmp_path / "store"))
    assert len(items) == 26
    assert len({item["sha256"] for item in items}) == 1
    assert read == looked_up == [str(path)]
    assert survey([source], store=str(tmp_path / "store")) == items
    assert read == [str(path)]
    os.utime(path, ns=(1, 1))  # touched: read again, with the same outcome
    assert survey([source], store=str(tmp_path / "store")) == items
    assert len(read) == 2


# ---- batches


def test_a_slide_has_a_batch_of_its_own_and_pictures_share_one(tmp_path: Path) -> None:
    source = write_many(tmp_path / "data", range(3))
    write_pyramid(tmp_path / "data" / "normal" / "slide.svs", np.full((64, 64, 3), 200, np.uint8), spacing_um=0.5)
    store = str(tmp_path / "store")
    batches = deal_batches(survey([source], store=store), store=store)
    assert [(batch["name"], batch["items"]) for batch in batches] == [("slide.svs", 1), ("pictures 0", 3)]


def test_pictures_are_dealt_by_the_hundred(tmp_path: Path) -> None:
    source = write_many(tmp_path / "data", range(230))
    assert [len(names) for names in members(source, tmp_path / "store").values()] == [100, 100, 30]


def test_what_is_added_makes_batches_of_its_own_wherever_its_name_sorts(tmp_path: Path) -> None:
    write_many(tmp_path / "data", range(100, 250))
    before = members(FolderSource(path=str(tmp_path / "data")), tmp_path / "store")
    source = write_many(tmp_path / "data", range(3))  # they sort before all others
    after = members(source, tmp_path / "store")
    assert set(before) < set(after)
    [new] = [names for uri, names in after.items() if uri not in before]
    assert new == ["0000.png", "0001.png", "0002.png"]
    assert members(source, tmp_path / "store") == after


def test_a_changed_picture_changes_its_own_batch_alone(tmp_path: Path) -> None:
    source = write_many(tmp_path / "data", range(210))
    before = members(source, tmp_path / "store")
    Image.fromarray(np.full((5, 5), 9, np.uint8)).save(tmp_path / "data" / "normal" / "0150.png")
    after = members(source, tmp_path / "store")
    changed = [names for uri, names in after.items() if uri not in before]
    assert len(changed) == 1
    assert "0150.png" in changed[0]
    assert sorted(after.values()) == sorted(before.values())


def test_a_removed_picture_leaves_a_gap_and_the_other_batches_alone(tmp_path: Path) -> None:
    source = write_many(tmp_path / "data", range(210))
    before = members(source, tmp_path / "store")
    (tmp_path / "data" / "normal" / "0020.png").unlink()
    after = members(source, tmp_path / "store")
    assert len(set(before) & set(after)) == 2
    assert sorted(len(names) for names in after.values()) == [10, 99, 100]


def test_two_stores_do_not_know_of_each_other(tmp_path: Path) -> None:
    write_many(tmp_path / "data", range(5))
    members(FolderSource(path=str(tmp_path / "data")), tmp_path / "one")
    source = write_many(tmp_path / "data", range(7))
    assert [len(names) for names in members(source, tmp_path / "two").values()] == [7]


def test_a_batch_is_kept_as_it_was_dealt(tmp_path: Path) -> None:
    source = write_many(tmp_path / "data", range(3))
    items = survey([source], store=str(tmp_path / "store"))
    [batch] = deal_batches(items, store=str(tmp_path / "store"))
    assert read_batch(batch) == items


def test_the_items_of_a_survey_are_a_sequence_like_a_list_of_them(tmp_path: Path) -> None:
    source = write_many(tmp_path / "data", range(5))
    items = survey([source], store=str(tmp_path / "store"))
    names = [Path(item["uri"]).stem for item in items]
    assert names == ["0000", "0001", "0002", "0003", "0004"]
    assert [Path(item["uri"]).stem for item in items[1:3]] == names[1:3]
    assert items[-1] == list(items)[4]
    assert items == list(items)
    assert items != list(items)[:4]
    assert items != [*items[:4], items[0]]


def test_a_picture_that_is_listed_twice_stays_in_one_batch(tmp_path: Path) -> None:
    write_many(tmp_path, range(150))
    names = [f"normal/{number:04d}.png" for number in [*range(150), 0]]
    (tmp_path / "table.csv").write_text("uri,label\n" + "".join(f"{name},0\n" for name in names))
    source = FolderSource(path=str(tmp_path / "table.csv"))
    first = members(source, tmp_path / "store")
    assert [len(batch) for batch in first.values()] == [101, 50]
    assert members(source, tmp_path / "store") == first


def test_frames_of_a_container_are_dealt_as_pictures_even_if_its_name_were_a_slides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_medmnist(tmp_path / "pneumoniamnist.npz")
    monkeypatch.setattr(module, "is_slide", lambda uri: True)
    store = str(tmp_path / "store")
    batches = deal_batches(survey([MedMnistSource(path=str(path), normal_labels=(0,))], store=store), store=store)
    assert [batch["items"] for batch in batches] == [26]
