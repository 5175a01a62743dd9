"""Ordinary pictures: what formats become, how pictures are cut, what is measured, and how a sample's box leads back to its pixels."""

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageFile
from scipy.ndimage import gaussian_filter
from skimage import data

from methods.curation.quality import RADIOGRAPH_CHECKS, QualityConfig
from methods.curation.skin import SkinConfig
from storage.datasets.miniatures.one_class import small_pictures
from storage.datasets.miniatures.radiology import radiograph, write_dicom
from storage.datasets.miniatures.skin import body_photograph
from storage.datasets.source import SourceError
from storage.images import UnreadableImageError
from tasks.curation import CurationConfig, DuplicateConfig, StainNormalisation, TilingConfig
from tasks.picture_rows import tabulate_picture
from tasks.references import ItemReference
from tasks.rows import check_marked
from tasks.samples import read_sample
from tasks.transforms import stain_target


def photograph(width_px: int = 96, height_px: int = 64) -> np.ndarray:
    return np.asarray(Image.fromarray(data.chelsea()).resize((width_px, height_px), Image.Resampling.BICUBIC))


def refer(path: Path, **known: Any) -> ItemReference:
    nothing = dict.fromkeys(ItemReference.__annotations__)
    values = {"uri": str(path), "sha256": f"{path}", "dataset": "pictures", "subject_id": "s", "label": 0, "partly_annotated": False}
    return ItemReference(**(nothing | values | known))  # type: ignore[typeddict-item]


def tabulate(
    path: Path, tiling: TilingConfig | None = None, curation: CurationConfig | None = None, *, stain: str | None = None, **known: Any
) -> Any:
    return tabulate_picture(refer(path, **known), tiling or TilingConfig(), curation or CurationConfig(), stain=stain)


def only_row(path: Path, curation: CurationConfig | None = None, **known: Any) -> dict[str, Any]:
    [row] = tabulate(path, None, curation, **known).rows
    return row


def save(folder: Path, picture: np.ndarray | Image.Image, name: str = "picture.png", **options: Any) -> Path:
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image.save(folder / name, **options)
    return folder / name


def box_of(row: dict[str, Any]) -> tuple[int, int, int, int]:
    return row["x_px"], row["y_px"], row["width_px"], row["height_px"]


# ---- formats


def test_of_an_animation_the_first_picture_is_the_sample(tmp_path: Path) -> None:
    first, second = (Image.fromarray(np.full((70, 90, 3), shade, np.uint8)) for shade in (40, 220))
    path = save(tmp_path, first, "a.gif", save_all=True, append_images=[second])
    row = only_row(path)
    assert box_of(row) == (0, 0, 90, 70)
    assert row["brightness"] == pytest.approx(40 / 255, abs=0.01)


def test_16_bit_grey_keeps_its_brightness(tmp_path: Path) -> None:
    grey = np.tile(np.linspace(0, 0xFFFF // 2, 90).astype(np.uint16), (70, 1))  # no more than half the range
    row = only_row(save(tmp_path, Image.fromarray(grey)))
    assert row["brightness"] == pytest.approx(0.25, abs=0.01)
    assert read_sample(row, size_px=70).max() <= 128


def test_cmyk_becomes_rgb_and_hashes_like_its_rgb_twin(tmp_path: Path) -> None:
    picture = Image.fromarray(photograph(192, 128))
    cmyk, rgb = save(tmp_path, picture.convert("CMYK"), "a.jpg"), save(tmp_path, picture, "b.png")
    distance = (int(only_row(cmyk)["phash"], 16) ^ int(only_row(rgb)["phash"], 16)).bit_count()
    assert distance <= 4


def test_an_exif_rotated_photograph_is_tabulated_cut_and_masked_upright(tmp_path: Path) -> None:
    upright = photograph(128, 64)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side
    path = save(tmp_path, np.rot90(upright), "a.png", exif=exif)
    mask = np.zeros((64, 128), bool)
    mask[:, 64:] = True
    mask_path = save(tmp_path, mask, "mask.png")
    found = tabulate(path, TilingConfig(pictures="tiled", size_px=64), label=1, mask_uri=str(mask_path))
    assert [(*box_of(row), row["label"]) for row in found.rows] == [(0, 0, 64, 64, 0), (64, 0, 64, 64, 1)]
    np.testing.assert_array_equal(read_sample(found.rows[1], size_px=64), upright[:, 64:])


def png_bomb(side_px: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side_px, side_px, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def tiff_bomb(side_px: int) -> bytes:
    tags = {256: side_px, 257: side_px, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: side_px, 279: 100}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return struct.pack("<2sHI", b"II", 42, 8 + 100) + bytes(100) + struct.pack("<H", len(tags)) + entries + bytes(4)


def gif_bomb(side_px: int) -> bytes:
    file = io.BytesIO()
    Image.new("P", (4, 4)).save(file, "GIF")
    content = bytearray(file.getvalue())
    content[6:10] = struct.pack("<HH", side_px, side_px)
    return bytes(content)


@pytest.mark.parametrize(("name", "bomb"), [("a.png", png_bomb), ("a.tif", tiff_bomb), ("a.gif", gif_bomb)])
def test_a_picture_that_claims_40000_by_40000_px_is_refused_before_a_pixel_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, bomb: Any
) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail(f"{image.size} was decoded"))
    (tmp_path / name).write_bytes(bomb(40_000))
    with pytest.raises(UnreadableImageError, match=r"refused as a possible decompression bomb .*; cut it or save it as a slide"):
        tabulate(tmp_path / name)


def test_a_radiograph_that_claims_40000_by_40000_px_is_refused(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", np.zeros((8, 8), np.uint16), Rows=40_000, Columns=40_000)
    with pytest.raises(UnreadableImageError, match="decompression bomb"):
        tabulate(path)


def test_a_mask_that_claims_40000_by_40000_px_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mask.png").write_bytes(png_bomb(40_000))
    with pytest.raises(UnreadableImageError, match=r"mask\.png.*decompression bomb"):
        tabulate(save(tmp_path, photograph()), label=1, mask_uri=str(tmp_path / "mask.png"))


def test_a_frame_of_a_container_is_a_picture_of_its_own(tmp_path: Path) -> None:
    pictures = small_pictures([0, 1], size_px=64)
    np.savez(tmp_path / "two.npz", train_images=pictures)
    rows = [only_row(tmp_path / "two.npz", frame=f"train_images:{index}") for index in range(2)]
    assert rows[0]["sample_id"] != rows[1]["sample_id"]
    for row, picture in zip(rows, pictures, strict=True):
        np.testing.assert_array_equal(read_sample(row, size_px=64), picture)


# ---- masks


def test_a_mask_of_another_size_is_refused_with_both_sizes(tmp_path: Path) -> None:
    mask = save(tmp_path, np.ones((10, 20), bool), "mask.png")
    with pytest.raises(SourceError, match="20 × 10 px, its picture 96 × 64: save it at the picture's size"):
        tabulate(save(tmp_path, photograph()), label=1, mask_uri=str(mask))


def test_a_mask_of_the_stored_pixels_of_a_turned_photograph_is_refused_saying_that_exif_turns_it(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    mask = str(save(tmp_path, np.ones((64, 96), bool), "mask.png"))
    for name in ("turned.jpg", "turned.tif"):
        turned = save(tmp_path, photograph(), name, exif=exif)
        with pytest.raises(
            SourceError, match=r"96 × 64 px, its picture 64 × 96: it fits the picture as it is stored, which EXIF has turned"
        ):
            tabulate(turned, label=1, mask_uri=mask)
    upright = save(tmp_path, photograph(64, 96))
    with pytest.raises(SourceError, match=r"96 × 64 px, its picture 64 × 96: save it at the picture's size"):
        tabulate(upright, label=1, mask_uri=mask)


def test_an_empty_mask_is_refused_of_an_abnormal_picture_and_taken_of_a_normal_one(tmp_path: Path) -> None:
    path, mask = save(tmp_path, photograph()), save(tmp_path, np.zeros((64, 96), bool), "mask.png")
    with pytest.raises(SourceError, match="of something abnormal is empty: draw what is abnormal, or remove the mask"):
        tabulate(path, label=1, mask_uri=str(mask))
    assert only_row(path, label=0, mask_uri=str(mask))["abnormal_share"] == 0


# ---- whole


def test_a_whole_picture_is_one_row_with_its_sources_label_and_what_was_measured(tmp_path: Path) -> None:
    path = save(tmp_path, photograph(300, 200))
    for label in (0, 1, None):
        row = only_row(path, label=label, finding="eczema")
        assert (box_of(row), row["label"], row["level"]) == ((0, 0, 300, 200), label, 0)
        assert row["finding"] == (None if label == 0 else "eczema")
    assert 0.04 < row["sharpness"] < 20
    assert 0 < row["brightness"] < 1
    assert len(row["phash"]) == 16


def test_turned_hashes_are_made_only_when_turned_copies_are_looked_for(tmp_path: Path) -> None:
    path = save(tmp_path, photograph(300, 200))
    assert only_row(path)["phash_turns"] is None
    turns = only_row(path, CurationConfig(duplicates=DuplicateConfig(turned=True)))["phash_turns"].split()
    assert len(turns) == 8
    assert turns[0] == only_row(path)["phash"]


def test_the_central_crop_is_a_box_in_the_middle(tmp_path: Path) -> None:
    picture = photograph(200, 100)
    row = only_row(save(tmp_path, picture), CurationConfig(crop_share=0.75))
    assert box_of(row) == (25, 12, 150, 75)
    x, y, width, height = box_of(row)
    wanted = np.asarray(Image.fromarray(picture[y : y + height, x : x + width]).resize((75, 75), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(read_sample(row, size_px=75), wanted)


def test_equalised_radiographs_say_so_and_are_read_with_flat_histograms(tmp_path: Path) -> None:
    grey = radiograph(np.random.default_rng(0), 128) // 3 + 80
    row = only_row(save(tmp_path, grey), CurationConfig(equalise=True, quality=QualityConfig(checks=RADIOGRAPH_CHECKS)))
    assert json.loads(row["transform"]) == {"kind": "equalise"}
    seen = read_sample(row, size_px=128)
    assert (seen.min(), seen.max()) == (0, 255)
    assert np.median(seen) == pytest.approx(127, abs=6)


def test_flags_are_said_and_exclude_only_where_asked(tmp_path: Path) -> None:
    blurred = gaussian_filter(data.chelsea().astype(float), (20, 20, 0)).astype(np.uint8)
    paths = {
        "blurred": save(tmp_path, blurred, "blurred.png"),
        "near-constant": save(tmp_path, np.full((100, 100, 3), 128, np.uint8), "constant.png"),
        "small": save(tmp_path, photograph(40, 30), "small.png"),
        "underexposed": save(tmp_path, data.chelsea() // 20, "dark.png"),
    }
    for flag, path in paths.items():
        row = only_row(path)
        assert flag in row["flags"].split(";"), flag
        assert row["excluded"] is None
        assert only_row(path, CurationConfig(exclude=(flag,)))["excluded"] == f"flagged {flag}"
    assert only_row(save(tmp_path, data.chelsea()), CurationConfig(exclude=tuple(paths)))["flags"] is None


def test_a_constant_picture_has_no_hash_and_no_made_up_numbers(tmp_path: Path) -> None:
    row = only_row(save(tmp_path, np.full((100, 100, 3), 128, np.uint8)))
    assert row["phash"] is None
    assert row["ita_deg"] is None


# ---- tiles


def test_tiles_of_a_picture_cover_it_with_the_asked_stride(tmp_path: Path) -> None:
    picture = photograph(160, 128)
    found = tabulate(save(tmp_path, picture), TilingConfig(pictures="tiled", size_px=64, stride_px=32))
    assert [box_of(row)[:2] for row in found.rows] == [(x, y) for y in (0, 32, 64) for x in (0, 32, 64, 96)]
    for row in found.rows:
        x, y, width, height = box_of(row)
        np.testing.assert_array_equal(read_sample(row, size_px=64), picture[y : y + height, x : x + width])


def test_a_picture_smaller_than_a_tile_is_one_excluded_row(tmp_path: Path) -> None:
    [row] = tabulate(save(tmp_path, photograph(96, 64)), TilingConfig(pictures="tiled", size_px=128)).rows
    assert row["excluded"] == "no tile: 96 × 64 px is smaller than tiling.size_px = 128"


def test_without_a_mask_tiles_of_an_abnormal_picture_are_unknown(tmp_path: Path) -> None:
    found = tabulate(save(tmp_path, photograph(128, 64)), TilingConfig(pictures="tiled", size_px=64), label=1)
    assert [row["label"] for row in found.rows] == [None, None]


def test_one_data_set_is_cut_another_way_than_the_others(tmp_path: Path) -> None:
    path = save(tmp_path, photograph(128, 64))
    tiling = TilingConfig(pictures="whole", size_px=64, by_dataset={"tiled ones": "tiled"})
    assert len(tabulate(path, tiling, dataset="tiled ones").rows) == 2
    assert len(tabulate(path, tiling, dataset="others").rows) == 1


# ---- patches of skin


SKIN = CurationConfig(skin=SkinConfig(side_px=96))


@pytest.fixture(scope="module")
def body(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, np.ndarray, np.ndarray]:
    """A photograph of an abnormal back and its mask, as files; its pixels; what is bare skin."""
    folder = tmp_path_factory.mktemp("body")
    picture, bare, marks = body_photograph(np.random.default_rng(0), height_px=600, width_px=800, abnormal=True)
    return save(folder, picture), save(folder, marks, "mask.png"), picture, bare


def test_kept_patches_lie_on_skin_and_rejected_ones_say_why(body: tuple[Path, Path, np.ndarray, np.ndarray]) -> None:
    path, _, picture, bare = body
    found = tabulate(path, TilingConfig(pictures="patches"), SKIN)
    rows = pd.DataFrame(found.rows)
    kept, rejected = rows[rows["excluded"].isna()], rows[rows["excluded"].notna()]
    assert len(kept) >= 4
    assert found.note == f"{len(kept)} of {len(rows)} patches kept"
    assert set(kept["width_px"]) == set(kept["height_px"]) == {96}
    for row in kept.to_dict("records"):
        x, y, width, height = box_of(row)
        assert bare[y : y + height, x : x + width].mean() > 0.95
        np.testing.assert_array_equal(read_sample(row, size_px=96), picture[y : y + height, x : x + width])
    assert rejected["excluded"].str.match(r"at the edge: |\d+ % skin$").all()
    assert (rejected[rejected["excluded"].str.contains("% skin")]["tissue_share"] < 0.98).all()
    assert set(rows["subject_id"]) == {"s"}
    assert rows["sample_id"].is_unique
    shown = np.asarray(Image.open(io.BytesIO(found.preview)))
    assert shown.shape == picture.shape


def test_a_patch_is_abnormal_where_the_mask_touches_it(body: tuple[Path, Path, np.ndarray, np.ndarray]) -> None:
    path, mask_path, _, _ = body
    marks = np.asarray(Image.open(mask_path))
    rows = tabulate(path, TilingConfig(pictures="patches"), SKIN, label=1, mask_uri=str(mask_path)).rows
    for row in rows:
        x, y, width, height = box_of(row)
        assert row["label"] == int(marks[y : y + height, x : x + width].any())
        assert row["abnormal_share"] == pytest.approx(marks[y : y + height, x : x + width].mean())
    assert {row["label"] for row in rows} == {0, 1}


def test_patches_of_a_normal_photograph_are_normal_and_of_an_abnormal_one_without_mask_unknown(
    body: tuple[Path, Path, np.ndarray, np.ndarray],
) -> None:
    for label, wanted in ((0, 0), (1, None), (None, None)):
        rows = tabulate(body[0], TilingConfig(pictures="patches"), SKIN, label=label).rows
        assert {row["label"] for row in rows} == {wanted}


def test_patches_of_a_photograph_of_known_scale_have_the_asked_length(body: tuple[Path, Path, np.ndarray, np.ndarray]) -> None:
    curation = CurationConfig(skin=SkinConfig(side_px=96, side_mm=40))
    rows = pd.DataFrame(tabulate(body[0], TilingConfig(pictures="patches"), curation, spacing_um=500.0).rows)
    kept = rows[rows["excluded"].isna()]
    assert len(kept) >= 4
    assert set(kept["width_px"]) == set(kept["height_px"]) == {80}


def test_a_photograph_of_a_hand_gives_no_patch_and_a_row_that_says_why(body: tuple[Path, Path, np.ndarray, np.ndarray]) -> None:
    patches = TilingConfig(pictures="patches")
    [row] = tabulate(body[0], patches, SKIN, site="Upper extremity:Hand", label=1).rows
    assert row["excluded"] == "site left out: Upper extremity:Hand (curation.skin.sites_left_out: hand)"
    assert (row["site"], row["label"]) == ("Upper extremity:Hand", 1)
    assert len(tabulate(body[0], patches, SKIN, site="Trunk:Posterior trunk").rows) > 4
    everything = CurationConfig(skin=SkinConfig(side_px=96, sites_left_out=()))
    assert len(tabulate(body[0], patches, everything, site="Hand").rows) > 4
    assert only_row(body[0], SKIN, site="Hand")["excluded"] is None  # whole


def test_a_photograph_without_skin_is_one_excluded_row(tmp_path: Path) -> None:
    wall = np.random.default_rng(0).normal((90, 120, 160), 2, (200, 300, 3)).clip(0, 255).astype(np.uint8)
    [row] = tabulate(save(tmp_path, wall), TilingConfig(pictures="patches"), SKIN).rows
    assert row["excluded"] == "no skin"


# ---- stain


def test_a_picture_of_tissue_gets_its_transform_and_one_of_a_single_colour_is_marked(tmp_path: Path) -> None:
    target = save(tmp_path, data.immunohistochemistry()[:128, :128], "target.png")
    stain = stain_target(StainNormalisation(target=str(target), kind="macenko"))
    row = only_row(save(tmp_path, data.immunohistochemistry()[200:400, 200:400]), stain=stain)
    assert json.loads(row["transform"])["kind"] == "stain"
    shade = np.random.default_rng(1).normal(150, 20, (128, 128, 1)).clip(60, 220).astype(np.uint8).repeat(3, 2)
    failed = only_row(save(tmp_path, shade, "grey.png"), stain=stain)
    assert failed["transform"] is None
    assert "stain-failed" in failed["flags"].split(";")
    refused = only_row(tmp_path / "grey.png", CurationConfig(exclude=("stain-failed",)), stain=stain)
    assert refused["excluded"] == "flagged stain-failed"


def test_a_normal_picture_whose_mask_shows_something_is_refused_naming_both(tmp_path: Path) -> None:
    item = {"uri": "a.png", "mask_uri": "a-mask.png", "label": 0}
    mask = np.zeros((4, 4), bool)
    check_marked(item, mask)  # type: ignore[arg-type]
    mask[1, 2] = True
    with pytest.raises(SourceError, match=r"a\.png is labelled normal, but the mask a-mask\.png shows something"):
        check_marked(item, mask)  # type: ignore[arg-type]


def test_equalised_and_stain_normalised_at_once_is_refused() -> None:
    with pytest.raises(ValueError, match="radiographs have no stain"):
        CurationConfig.model_validate({"equalise": True, "stain": {"kind": "macenko", "target": "a.png"}})
