"""What goes in and what becomes of it, from sources to the manifest: every bad input by itself among good ones, and privacy."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as arrow
import pydicom
import pytest
import tifffile
from PIL import Image
from pyarrow import parquet
from pydantic import ValidationError
from skimage import data

from methods.curation.quality import QualityConfig
from methods.curation.skin import SkinConfig
from methods.curation.split_config import SplitConfig
from methods.painting import FINDINGS
from storage import filesystems
from storage.datasets.chestxray14 import ChestXray14Source
from storage.datasets.dicom_folder import DicomFolderSource
from storage.datasets.folder import FolderSource
from storage.datasets.miniatures.radiology import write_chestxray14, write_dicom_folder
from storage.datasets.miniatures.skin import body_photograph
from storage.datasets.registry import AnySource
from storage.datasets.source import SourceError
from storage.manifest import read_manifest, read_rows, write_rows
from storage.slides import is_slide, write_pyramid
from tasks import survey as survey_module
from tasks.check_splits import describe_leaks
from tasks.curate import assemble_manifest, count_rows, describe_tables, is_there, tell_troubles
from tasks.curation import CurationConfig, DuplicateConfig, TilingConfig
from tasks.failures import TooManyFailuresError, check_failures
from tasks.paint import paint_item
from tasks.references import ManifestReference, TableReference
from tasks.survey import deal_batches, survey
from tasks.tabulate_batch import tabulate_batch


def tabulate(folder: Path, name: str, *, curation: CurationConfig = CurationConfig(), **tiling: object) -> tuple[pd.DataFrame, str]:
    store = str(folder.parent / "store")
    items = [item for item in survey([FolderSource(path=str(folder))], store=store) if Path(item["uri"]).name == name]
    [batch] = deal_batches(items, store=store)
    reference = tabulate_batch(batch, TilingConfig.model_validate(tiling), curation, None, store)
    return read_rows(reference["uri"]).to_pandas(), reference["note"]


def test_a_mask_of_another_size_excludes_its_picture_and_names_both_sizes(pictures: Path) -> None:
    Image.fromarray(np.ones((10, 20), bool)).save(pictures / "masks" / "picture-012.png")
    rows, note = tabulate(pictures, "picture-012.png")
    assert "20 × 10 px" in note
    assert "64 × 64" in note
    assert rows["excluded"].notna().all()


def test_an_unreadable_picture_becomes_one_excluded_row_with_the_reason(pictures: Path) -> None:
    (pictures / "normal" / "picture-000.png").write_bytes(b"no picture")
    rows, _ = tabulate(pictures, "picture-000.png")
    assert len(rows) == 1
    assert "unusable" in rows["excluded"][0]


def test_a_truncated_slide_becomes_one_excluded_row(tmp_path: Path) -> None:
    slide = tmp_path / "slides" / "normal" / "slide.tif"
    write_pyramid(slide, np.random.default_rng(0).integers(0, 255, (2048, 2048, 3), np.uint8), spacing_um=0.5)
    slide.write_bytes(slide.read_bytes()[: slide.stat().st_size // 3])
    rows, _ = tabulate(tmp_path / "slides", "slide.tif")
    assert len(rows) == 1
    assert rows["excluded"].notna().all()


def test_tiles_are_labelled_by_their_share_of_the_mask(tmp_path: Path) -> None:
    for name in ("abnormal", "masks"):
        (tmp_path / "p" / name).mkdir(parents=True)
    Image.fromarray(np.full((64, 128, 3), 99, np.uint8)).save(tmp_path / "p" / "abnormal" / "a.png")
    mask = np.zeros((64, 128), bool)
    mask[:32, 64:] = True
    mask[0, 31] = True  # one pixel of 1,024: neither normal nor enough to be abnormal
    Image.fromarray(mask).save(tmp_path / "p" / "masks" / "a.png")
    rows, _ = tabulate(tmp_path / "p", "a.png", pictures="tiled", size_px=32)
    labels = {(row.x_px, row.y_px): row.label for row in rows.itertuples()}
    assert labels[(64, 0)] == labels[(96, 0)] == 1
    assert labels[(32, 0)] == labels[(64, 32)] == 0
    assert pd.isna(labels[(0, 0)])


def test_a_changed_file_has_another_digest_and_a_touched_one_has_not(pictures: Path) -> None:
    def digests() -> dict[str, str | None]:
        return {item["uri"]: item["sha256"] for item in survey([FolderSource(path=str(pictures))], store=str(pictures.parent / "store"))}

    first = digests()
    (pictures / "normal" / "picture-000.png").touch()
    assert digests() == first
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(pictures / "normal" / "picture-001.png")
    changed = {Path(uri).name for uri, digest in digests().items() if first[uri] != digest}
    assert changed == {"picture-001.png"}


def test_failures_stop_the_run_only_above_the_allowed_share() -> None:
    check_failures(failed=["bad"], total=20, failed_share_max=0.05, what="pictures")
    with pytest.raises(TooManyFailuresError, match=r"2 of 20 pictures failed.*bad"):
        check_failures(failed=["bad", "bad"], total=20, failed_share_max=0.05, what="pictures")


# ---- from sources to the manifest


def curate(*sources: AnySource, store: Path, curation: CurationConfig = CurationConfig(), **options: Any) -> ManifestReference:
    """As the flow does it, without its tasks' cache."""
    tables = tabulate_all(*sources, store=store, curation=curation, tiling=options.pop("tiling", TilingConfig(size_px=128)))
    chosen = {"split": SplitConfig(), "previous_manifest": None, "previous_digest": None, "failed_share_max": 0.5} | options
    return assemble_manifest.fn(tables, curation=curation, store=str(store), **chosen)


def tabulate_all(
    *sources: AnySource, store: Path, curation: CurationConfig = CurationConfig(), tiling: TilingConfig = TilingConfig(size_px=128)
) -> list[TableReference]:
    batches = deal_batches(survey(sources, store=str(store)), store=str(store))
    return [tabulate_batch(batch, tiling, curation, None, str(store)) for batch in batches]


def rows_by_name(manifest: ManifestReference) -> pd.DataFrame:
    rows = read_manifest(manifest["uri"], digest=manifest["digest"])
    return rows.set_index(rows["uri"].map(filesystems.name_of))


def photograph(number: int, *, size_px: int = 96) -> Image.Image:
    """Pictures that look like no other one."""
    noise = np.random.default_rng(number).normal(128, 60, (8, 8, 3)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(noise).resize((size_px, size_px), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight normal and four abnormal photographs."""
    for number in range(12):
        path = tmp_path / "data" / ("normal" if number < 8 else "abnormal") / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph(number).save(path)
    return tmp_path / "data"


def sound(rows: pd.DataFrame) -> set[str]:
    return set(rows.index[rows["excluded"].isna()])


NAMES = {f"{number:02d}.png" for number in range(12)}


def test_the_same_sources_give_the_same_manifest_byte_by_byte(folder: Path, tmp_path: Path) -> None:
    first = curate(FolderSource(path=str(folder)), store=tmp_path / "one")
    second = curate(FolderSource(path=str(folder)), store=tmp_path / "two")
    assert first["digest"] == second["digest"]
    assert sound(rows_by_name(first)) == NAMES


def test_recompressed_and_rescaled_copies_are_never_in_two_splits(folder: Path, tmp_path: Path) -> None:
    for number in range(5):
        photograph(number).save(folder / "normal" / f"copy-{number}.jpg", quality=60)
        photograph(number, size_px=160).save(folder / "normal" / f"large-{number}.png")
    for seed in range(2):
        manifest = curate(FolderSource(path=str(folder)), store=tmp_path / "store", split=SplitConfig(seed=seed))
        rows = rows_by_name(manifest)
        for number in range(5):
            copies = rows.loc[[f"{number:02d}.png", f"copy-{number}.jpg", f"large-{number}.png"]]
            assert copies["group_id"].nunique() == copies["split"].nunique() == 1
        assert rows["group_id"].nunique() == 12
        assert describe_leaks(manifest["uri"])[1] == []


def test_the_development_part_holds_no_row_of_the_test_split(folder: Path, tmp_path: Path) -> None:
    manifest = curate(FolderSource(path=str(folder)), store=tmp_path / "store")
    rows = read_manifest(manifest["uri"])
    development = read_manifest(manifest["development_uri"], digest=manifest["development_digest"])
    assert set(development["split"]) == {"train", "validation"}
    assert len(development) == (rows["split"] != "test").sum()


def test_a_grown_archive_keeps_what_was_dealt(folder: Path, tmp_path: Path) -> None:
    first = curate(FolderSource(path=str(folder)), store=tmp_path / "store")
    for number in range(20, 30):
        photograph(number).save(folder / "normal" / f"{number}.png")
    before = {"previous_manifest": first["uri"], "previous_digest": first["digest"]}
    second = curate(FolderSource(path=str(folder)), store=tmp_path / "store", split=SplitConfig(seed=5), **before)
    old, new = rows_by_name(first), rows_by_name(second)
    assert len(new) == 22
    assert new.loc[old.index, "split"].to_dict() == old["split"].to_dict()


def test_counts_are_by_data_set_split_label_and_reason_without_paths_and_numbers(folder: Path, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (folder / "normal" / name).write_bytes(name.encode())
    spoil_with_a_bomb(folder)
    rows, _ = count_rows(curate(FolderSource(path=str(folder)), store=tmp_path / "store"))
    counts = pd.DataFrame(rows)
    assert counts["samples"].sum() == 15
    reasons = counts[counts["excluded"] != ""].set_index("excluded")["samples"]
    assert sorted(reasons) == [1, 2]
    assert all(reason.startswith("unusable: ") for reason in reasons.index)
    assert "decompression bomb" in reasons.idxmin()
    assert not any(word in " ".join(reasons.index) for word in (str(folder), "a.png", "b.png", "bad.gif"))
    assert counts[counts["label"] == "abnormal"]["samples"].sum() == 4
    assert set(counts[counts["label"] == "abnormal"]["split"]) == {"validation", "test"}


def test_flags_are_counted_in_one_line(folder: Path, tmp_path: Path) -> None:
    unchecked = CurationConfig(quality=QualityConfig(checks=()))
    assert count_rows(curate(FolderSource(path=str(folder)), store=tmp_path / "none", curation=unchecked))[1] == "flags: none"
    for shade in (100, 110):
        Image.new("RGB", (96, 96), (shade, shade, shade)).save(folder / "normal" / f"empty-{shade}.png")
    Image.new("RGB", (96, 40), (120, 120, 120)).save(folder / "normal" / "small.png")
    assert count_rows(curate(FolderSource(path=str(folder)), store=tmp_path / "some"))[1] == "flags: 12 blurred, 3 near-constant, 1 small"


def test_a_file_of_which_nothing_is_left_is_named_once_with_the_reason(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spoil_with_a_truncated_picture(folder)
    glass = np.random.default_rng(0).normal(243, 1.5, (512, 512, 3)).clip(0, 255).astype(np.uint8)
    write_pyramid(folder / "normal" / "glass.svs", glass, spacing_um=0.5)
    tell_troubles(tabulate_all(FolderSource(path=str(folder)), store=tmp_path / "store"))
    told = [record.getMessage() for record in caplog.records if record.name == "tasks.curate" and record.levelname == "WARNING"]
    glass_line, torn_line = sorted(told, key=lambda line: "bad.jpg" in line)
    assert glass_line == f"{folder}/normal/glass.svs: no tile: 0 of 16 tiles kept; 16 with less than 50% tissue"
    assert torn_line.startswith(f"{folder}/normal/bad.jpg is unusable: ")
    assert torn_line.count(str(folder)) == 1


def test_of_many_files_of_which_nothing_is_left_the_first_are_named(caplog: pytest.LogCaptureFixture) -> None:
    table = TableReference(uri="t", name="n", items=30, unusable=30, rows=30, excluded=30, note="", preview_uris=[], troubles=["torn"] * 30)
    tell_troubles([table])
    assert len(caplog.records) == 21
    assert "and 10 more" in caplog.records[-1].getMessage()


def test_previews_are_named_like_their_files_all_kept_and_linked(tmp_path: Path) -> None:
    folder, store = tmp_path / "bodies" / "normal", tmp_path / "store"
    folder.mkdir(parents=True)
    body, _, _ = body_photograph(np.random.default_rng(0), height_px=300, width_px=400)
    for name in ("back of No 1.jpg", "Rücken_2.jpg"):
        Image.fromarray(body if name.startswith("back") else body[:, ::-1]).save(folder / name)
    tiling = TilingConfig(pictures="patches")
    source, curation = FolderSource(path=str(folder.parent)), CurationConfig(skin=SkinConfig(side_px=64))
    [table] = tabulate_all(source, store=store, tiling=tiling, curation=curation)
    names = [re.sub(r"-[0-9a-f]{12}\.jpg$", "", filesystems.name_of(uri)) for uri in table["preview_uris"]]
    assert names == ["R-cken_2", "back-of-No-1"] or names == ["back-of-No-1", "R-cken_2"]
    assert {str(path) for path in (store / "previews").iterdir()} == set(table["preview_uris"])
    [shown] = describe_tables([table])
    for uri in table["preview_uris"]:
        assert f"[{filesystems.name_of(uri)}]({Path(uri).as_uri()})" in shown["previews"]


def test_a_table_is_made_again_when_any_of_its_previews_is_gone(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("table.arrow", "first.jpg", "second.jpg")]
    for path in files:
        path.touch()
    uri, *preview_uris = map(str, files)
    table = TableReference(uri=uri, name="n", items=2, unusable=0, rows=2, excluded=0, note="", preview_uris=preview_uris, troubles=[])
    assert is_there(table)
    files[2].unlink()
    assert not is_there(table)


@pytest.mark.parametrize("flag", ["blured", "near-duplicate labelled otherwise"])
def test_an_unknown_flag_is_refused_naming_those_there_are(flag: str) -> None:
    with pytest.raises(ValidationError, match=r"'blurred'.*'pen'.*'stain-failed'"):
        CurationConfig.model_validate({"exclude": [flag]})
    assert CurationConfig.model_validate({"exclude": ["blurred", "pen", "stain-failed"]}).refuse(("pen",)) == "flagged pen"


def test_a_curation_that_leaves_nothing_says_why(folder: Path, tmp_path: Path) -> None:
    curation = CurationConfig(exclude=("blurred", "small"), quality={"least_side_px": 1000})
    with pytest.raises(SourceError, match="no sample is left after curation; pictures 0: 12 × 1 picture"):
        curate(FolderSource(path=str(folder)), store=tmp_path / "store", curation=curation)


# ---- bad input: one bad file among twelve good ones, of which none is lost


def spoil_with_a_bomb(folder: Path) -> None:
    header = io.BytesIO()
    Image.new("P", (4, 4)).save(header, "GIF")
    content = bytearray(header.getvalue())
    content[6:10] = (40_000).to_bytes(2, "little") * 2
    (folder / "normal" / "bad.gif").write_bytes(content)


def spoil_with_a_mask_of_another_size(folder: Path) -> None:
    photograph(50).save(folder / "abnormal" / "bad.png")
    (folder / "masks").mkdir()
    Image.fromarray(np.ones((10, 20), bool)).save(folder / "masks" / "bad.png")


def spoil_with_an_empty_mask(folder: Path) -> None:
    photograph(50).save(folder / "abnormal" / "bad.png")
    (folder / "masks").mkdir()
    Image.fromarray(np.zeros((96, 96), bool)).save(folder / "masks" / "bad.png")


def spoil_with_a_lossy_mask(folder: Path) -> None:
    photograph(50).save(folder / "abnormal" / "bad.png")
    (folder / "masks").mkdir()
    photograph(51).convert("L").save(folder / "masks" / "bad.jpg")


def spoil_with_a_truncated_picture(folder: Path) -> None:
    photograph(50).save(folder / "normal" / "bad.jpg")
    path = folder / "normal" / "bad.jpg"
    path.write_bytes(path.read_bytes()[:-200])


def spoil_with_a_slide_without_spacing(folder: Path) -> None:
    tifffile.imwrite(folder / "normal" / "bad.svs", data.immunohistochemistry(), tile=(256, 256), photometric="rgb", metadata=None)


def spoil_with_a_slide_that_is_none(folder: Path) -> None:
    (folder / "normal" / "bad.svs").write_bytes(b"no slide")


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (spoil_with_a_bomb, "decompression bomb.*cut it or save it as a slide"),
        (spoil_with_a_mask_of_another_size, "20 × 10 px, its picture 96 × 96: save it at the picture's size"),
        (spoil_with_an_empty_mask, "of something abnormal is empty: draw what is abnormal, or remove the mask"),
        (spoil_with_a_lossy_mask, "a mask has two values.*Save it without lossy compression"),
        (spoil_with_a_truncated_picture, r"bad\.jpg.*truncated"),
        (spoil_with_a_slide_without_spacing, "does not say its µm per pixel; list it in a CSV with the column spacing_um"),
        (spoil_with_a_slide_that_is_none, r"bad\.svs.*not a slide"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_bad_file_is_one_excluded_row_that_says_why_and_no_other_is_lost(
    folder: Path, tmp_path: Path, spoil: Callable[[Path], None], told: str
) -> None:
    spoil(folder)
    manifest = curate(FolderSource(path=str(folder)), store=tmp_path / "store")
    rows = rows_by_name(manifest)
    assert sound(rows) == NAMES
    [reason] = rows["excluded"].dropna()
    assert reason.startswith("unusable: ")
    assert pd.Series([reason]).str.contains(told, regex=True).all(), reason


def test_too_many_bad_files_stop_the_curation_with_their_reason(folder: Path, tmp_path: Path) -> None:
    spoil_with_a_truncated_picture(folder)
    with pytest.raises(TooManyFailuresError, match=r"1 of 13 pictures failed .*Mend the source or raise it"):
        curate(FolderSource(path=str(folder)), store=tmp_path / "store", failed_share_max=0.05)


def test_unusual_pictures_are_no_bad_ones(folder: Path, tmp_path: Path) -> None:
    normal, exif = folder / "normal", Image.Exif()
    exif[0x0112] = 6
    photograph(50).save(normal / "animated.gif", save_all=True, append_images=[photograph(51)])
    Image.fromarray(np.asarray(photograph(52).convert("L")).astype(np.uint16) * 257).save(normal / "16-bit.png")
    photograph(53).convert("CMYK").save(normal / "cmyk.jpg")
    photograph(54).resize((120, 90)).save(normal / "rotated.jpg", exif=exif)
    rows = rows_by_name(curate(FolderSource(path=str(folder)), store=tmp_path / "store"))
    assert sound(rows) == NAMES | {"animated.gif", "16-bit.png", "cmyk.jpg", "rotated.jpg"}
    assert rows.loc["rotated.jpg", ["width_px", "height_px"]].tolist() == [90, 120]


def test_one_corrupt_tile_costs_its_own_tiles_and_neither_the_slide_nor_the_pictures(folder: Path, tmp_path: Path) -> None:
    path = folder / "normal" / "slide.svs"
    write_pyramid(path, data.immunohistochemistry(), spacing_um=0.5)
    with tifffile.TiffFile(path) as tif:
        offset, count = tif.pages[0].dataoffsets[1], tif.pages[0].databytecounts[1]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(count))
    rows = rows_by_name(curate(FolderSource(path=str(folder)), store=tmp_path / "store", failed_share_max=0))
    tiles = rows.loc["slide.svs"]
    damaged = (tiles["x_px"] >= 256) & (tiles["y_px"] < 256)
    assert len(tiles) == 16
    assert tiles[damaged]["excluded"].str.startswith("unreadable: ").all()
    assert tiles[damaged]["split"].isna().all()
    assert tiles[~damaged]["excluded"].isna().all()
    assert sound(rows) == NAMES | {"slide.svs"}


@pytest.mark.parametrize("copy", ["00.png", "copy.png"])
def test_one_picture_in_both_folders_is_excluded_twice_or_stops_the_curation(folder: Path, tmp_path: Path, copy: str) -> None:
    (folder / "abnormal" / copy).write_bytes((folder / "normal" / "00.png").read_bytes())
    rows = rows_by_name(curate(FolderSource(path=str(folder)), store=tmp_path / "store"))
    assert sound(rows) == NAMES - {"00.png"}
    assert rows["excluded"].dropna().str.startswith("contradictory labels").tolist() == [True, True]
    strict = CurationConfig(duplicates=DuplicateConfig(on_contradiction="error"))
    with pytest.raises(SourceError, match=rf"normal/00\.png.*correct the labels|abnormal/{copy}.*correct the labels"):
        curate(FolderSource(path=str(folder)), store=tmp_path / "store", curation=strict)


def test_one_row_of_a_table_repeated_with_the_other_label_is_a_contradiction(folder: Path, tmp_path: Path) -> None:
    lines = [f"normal/{number:02d}.png,0" for number in range(8)] + [f"abnormal/{number:02d}.png,1" for number in range(8, 12)]
    (folder / "t.csv").write_text("\n".join(["uri,label", *lines, "normal/03.png,1"]))
    rows = rows_by_name(curate(FolderSource(path=str(folder / "t.csv")), store=tmp_path / "store"))
    assert sound(rows) == NAMES - {"03.png"}


def test_a_subject_without_id_stops_the_curation_and_names_the_picture(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = survey_module.list_items

    def with_a_nobody(source: AnySource) -> Any:
        items = listed(source)
        object.__setattr__(items[3], "subject_id", "")
        return items

    monkeypatch.setattr(survey_module, "list_items", with_a_nobody)
    with pytest.raises(SourceError, match=r"03\.png|abnormal/.*\.png .*has no subject_id: without it a person may be in two splits"):
        curate(FolderSource(path=str(folder)), store=tmp_path / "store")


def test_two_masks_of_one_name_are_refused_and_two_pictures_of_one_name_are_two_persons(folder: Path, tmp_path: Path) -> None:
    (folder / "normal" / "more").mkdir()
    photograph(60).save(folder / "normal" / "more" / "00.jpg")
    rows = rows_by_name(curate(FolderSource(path=str(folder)), store=tmp_path / "store"))
    assert (rows.loc["00.png", "subject_id"], rows.loc["00.jpg", "subject_id"]) == ("normal/00", "normal/more/00")
    assert rows.loc["00.png", "group_id"] != rows.loc["00.jpg", "group_id"]
    (folder / "masks").mkdir()
    for name in ("08.png", "08.bmp"):
        Image.fromarray(np.ones((96, 96), bool)).save(folder / "masks" / name)
    with pytest.raises(SourceError, match=r"two masks are named '08': .*; keep one"):
        curate(FolderSource(path=str(folder)), store=tmp_path / "store")


def test_rows_without_a_file_and_files_without_a_row_are_counted_and_cost_nothing_else(tmp_path: Path) -> None:
    root = write_chestxray14(tmp_path / "nih")
    source = ChestXray14Source(path=str(root), lists="ignored")
    [gone] = root.rglob("00000005_000.png")
    gone.rename(gone.with_name("99999999_000.png"))
    rows = rows_by_name(curate(source, store=tmp_path / "store"))
    assert len(rows) == 8
    assert rows.loc["00000005_000.png", "excluded"].startswith("unusable: FileNotFoundError: ")
    assert rows.loc["99999999_000.png", "excluded"] == "no row in Data_Entry_2017.csv"
    assert len(sound(rows)) == 6


def test_two_files_of_one_name_in_a_published_data_set_are_refused(tmp_path: Path) -> None:
    root = write_chestxray14(tmp_path / "nih")
    [picture, *_] = root.rglob("00000001_000.png")
    (root / "images_003" / "images").mkdir(parents=True)
    (root / "images_003" / "images" / picture.name).write_bytes(picture.read_bytes())
    with pytest.raises(SourceError, match=r"two files are named '00000001_000': .*; keep one"):
        curate(ChestXray14Source(path=str(root)), store=tmp_path / "store")


# ---- privacy


PLANTED = (
    b"Jane-Doe-Planted",
    b"GPS-Planted-Village",
    b"19500101",
    b"Planted^Patient",
    b"PID-PLANTED-7",
    b"Planted-Macro",
    b"Planted-Label",
)


def texts_in(path: Path) -> bytes:
    """All that a file of the store says: its bytes, and the cells and metadata that its compression hides."""
    content = path.read_bytes()
    if path.suffix == ".arrow":
        rows = read_rows(str(path))
        content += rows.to_pandas().to_csv().encode() + repr(rows.schema.metadata).encode()
    if path.suffix == ".parquet":
        content += pd.read_parquet(path).to_csv().encode() + repr(parquet.read_schema(path).metadata).encode()
    if path.suffix in (".jpg", ".png"):
        with Image.open(path) as image:
            assert not dict(image.getexif())
            content += repr(image.info).encode()
    return content


def search(store: Path) -> list[tuple[str, bytes]]:
    files = [path for path in store.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".parquet", ".arrow", ".json"}
    return [(path.name, word) for path in files for word in PLANTED if word in texts_in(path)]


def with_exif(path: Path, picture: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x013B], exif[0x010E] = "Jane-Doe-Planted", "GPS-Planted-Village"  # artist, description
    exif.get_ifd(0x8825).update({1: "N", 2: (48.0, 8.0, 0.0), 27: b"GPS-Planted-Village"})
    picture.save(path, exif=exif, comment=b"Jane-Doe-Planted", quality=95)
    assert b"Jane-Doe-Planted" in path.read_bytes()
    assert b"GPS-Planted-Village" in path.read_bytes()


def test_the_search_finds_what_compression_hides(tmp_path: Path) -> None:
    pd.DataFrame({"name": ["PID-PLANTED-7"] * 1000}).to_parquet(tmp_path / "a.parquet", compression="zstd")
    (tmp_path / "b.json").write_text("{}")
    rows = Path(write_rows(str(tmp_path), arrow.table({"name": ["Planted-", "-", "Planted-Label"]})))
    assert b"Planted-Label" not in rows.read_bytes()
    assert sorted(search(tmp_path)) == sorted([("a.parquet", b"PID-PLANTED-7"), (rows.name, b"Planted-Label")])


def test_exif_and_gps_of_a_photograph_reach_no_file_of_the_store(folder: Path, tmp_path: Path) -> None:
    store, path = tmp_path / "store", tmp_path / "bodies" / "normal" / "photograph.jpg"
    path.parent.mkdir(parents=True)
    body, _, _ = body_photograph(np.random.default_rng(0), height_px=600, width_px=800)
    with_exif(path, Image.fromarray(body))
    path.with_name("broken.jpg").write_bytes(path.read_bytes()[:-5000])
    sources = FolderSource(path=str(folder)), FolderSource(path=str(tmp_path / "bodies"), dataset="bodies")
    curation, tiling = CurationConfig(skin=SkinConfig(side_px=96)), TilingConfig(by_dataset={"bodies": "patches"})
    rows = rows_by_name(curate(*sources, store=store, curation=curation, tiling=tiling))
    assert rows.loc[["photograph.jpg"], "split"].notna().any()
    assert rows.loc["broken.jpg", "excluded"].startswith("unusable: ")
    assert len(list((store / "previews").iterdir())) == 1
    [item] = [item for item in survey(sources, store=str(store)) if item["uri"] == str(path)]
    painted = paint_item.fn(item, finding=FINDINGS[0], regions=1, seed=0, store=str(store))
    assert painted["uri"].startswith(str(store))
    assert search(store) == []


def test_patient_fields_of_dicom_files_reach_no_file_of_the_store_and_burned_in_text_is_held_back(tmp_path: Path) -> None:
    folder, store = write_dicom_folder(tmp_path / "dicom", normal=8, abnormal=6), tmp_path / "store"
    paths = sorted(folder.rglob("*.dcm"))
    for number, path in enumerate(paths):
        dataset = pydicom.dcmread(path)
        dataset.PatientName, dataset.PatientID = "Planted^Patient", f"PID-PLANTED-7{number // 2}"
        dataset.PatientBirthDate, dataset.ReferringPhysicianName = "19500101", "Jane-Doe-Planted"
        dataset.BurnedInAnnotation = "YES" if number == 0 else "NO"
        dataset.save_as(path)
    paths[1].write_bytes(paths[1].read_bytes()[:-900])  # damaged: the error must not quote the header
    rows = rows_by_name(curate(DicomFolderSource(path=str(folder)), store=store, split=SplitConfig(train=0.4, validation=0.3, test=0.3)))
    assert rows.loc[paths[0].name, "excluded"] == "burned-in annotation"
    assert rows.loc[paths[1].name, "excluded"].startswith("unusable: ")
    assert len(sound(rows)) == 12
    assert rows["subject_id"].nunique() == 7
    assert search(store) == []


def test_label_and_macro_images_of_a_slide_reach_no_file_of_the_store(tmp_path: Path) -> None:
    folder, store = tmp_path / "slides", tmp_path / "store"
    (folder / "normal").mkdir(parents=True)
    magenta = np.full((200, 300, 3), (255, 0, 255), np.uint8)
    for number in range(4):
        tissue = np.roll(data.immunohistochemistry(), 130 * number, axis=(0, 1))
        with tifffile.TiffWriter(folder / "normal" / f"{number}.svs") as tif:
            planted = "User = Jane-Doe-Planted|Filename = PID-PLANTED-7"
            aperio = f"Aperio Image Library v11\r\n512x512 (256x256) JPEG|AppMag = 20|MPP = 0.5|{planted}"
            layout = {"photometric": "rgb", "metadata": None, "software": False}
            tif.write(tissue, tile=(256, 256), compression="jpeg", description=aperio, **layout)
            tif.write(magenta, description="Aperio Image Library v11\r\nlabel 300x200 Planted-Label", **layout)
            tif.write(magenta, description="Aperio Image Library v11\r\nmacro 300x200 Planted-Macro", subfiletype=9, **layout)
    assert all(is_slide(path) for path in (folder / "normal").iterdir())
    curate(FolderSource(path=str(folder)), store=store)
    assert search(store) == []
    previews = sorted((store / "previews").iterdir())
    assert len(previews) == 4
    for preview in previews:
        red, green, blue = np.moveaxis(np.asarray(Image.open(preview)).astype(int), -1, 0)
        assert not ((red > 200) & (blue > 200) & (green < 100)).any()
