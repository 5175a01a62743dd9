"""Slides of 512 px and tiles of 128 with tissue on the left and glass on the right: which tiles become rows, and what is said of them."""

import io
import json
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image
from pydantic import ValidationError
from scipy.ndimage import gaussian_filter
from skimage import data

from methods.curation.stain import StainConfig, estimate_stains
from storage.datasets.miniatures.pathology import write_asap
from storage.datasets.source import SourceError
from storage.slides import UnreadableSlideError, write_pyramid
from tasks.curation import CurationConfig, StainNormalisation, TilingConfig
from tasks.references import ItemReference
from tasks.rows import to_table
from tasks.samples import read_sample
from tasks.slide_rows import choose_level, tabulate_slide
from tasks.transforms import stain_target

SIDE_PX, TISSUE_PX = 512, 320


@cache
def on_glass(*, side_px: int = SIDE_PX, tissue_px: int = TISSUE_PX) -> np.ndarray:
    """Stained tissue up to a column, glass from there."""
    picture = np.random.default_rng(0).normal(243, 1.5, (side_px, side_px, 3)).clip(0, 255).astype(np.uint8)
    texture = np.tile(data.immunohistochemistry(), (side_px // 512 + 1, side_px // 512 + 1, 1))
    picture[:, :tissue_px] = texture[:side_px, :tissue_px]
    return picture


def refer(path: Path, **known: Any) -> ItemReference:
    nothing = dict.fromkeys(ItemReference.__annotations__)
    values = {"uri": str(path), "sha256": "ab" * 32, "dataset": "slides", "subject_id": "s", "label": 0, "partly_annotated": False}
    return ItemReference(**(nothing | values | known))  # type: ignore[typeddict-item]


def tabulate(path: Path, *, curation: CurationConfig = CurationConfig(), stain: str | None = None, tiling: Any = None, **known: Any) -> Any:
    return tabulate_slide(refer(path, **known), TilingConfig.model_validate({"size_px": 128} | (tiling or {})), curation, stain=stain)


def table_of(found: Any) -> pd.DataFrame:
    return to_table([found]).to_pandas().set_index(["x_px", "y_px"])


def spoil_tiles(path: Path, *, page: int, tiles: list[int]) -> None:
    with tifffile.TiffFile(path) as tif:
        places = [(tif.pages[page].dataoffsets[i], tif.pages[page].databytecounts[i]) for i in tiles]
    with path.open("r+b") as file:
        for offset, count in places:
            file.seek(offset)
            file.write(bytes(count))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_pyramid(tmp_path / "slide.svs", on_glass(), spacing_um=0.5)  # of one level
    return tmp_path / "slide.svs"


# ---- level and grid


def test_dense_tiling_gives_every_tile_with_any_tissue_up_to_the_borders(tmp_path: Path) -> None:
    picture = on_glass(side_px=700, tissue_px=520)
    picture[:, 640:] = picture[:, :60]  # more tissue at the right border
    write_pyramid(tmp_path / "slide.svs", picture, spacing_um=0.5)
    found = tabulate(tmp_path / "slide.svs", tiling={"dense": True, "stride_px": 100, "tissue": {"smallest_object_um2": 0}})
    rows = table_of(found)
    sides = (*range(0, 501, 100), 572)
    assert {(x, y) for x in sides for y in sides if x < 500 or x == 572} <= set(rows.index) <= {(x, y) for x in sides for y in sides}
    assert rows["tissue_share"].min() < 0.6
    assert "without tissue" in found.note
    with pytest.raises(ValidationError, match="dense asks for every tile"):
        TilingConfig(dense=True, tiles_max=3)


@pytest.mark.parametrize(
    ("wanted_um", "level", "tile_px"),
    [
        (None, 0, 256),  # as scanned
        (0.25, 0, 256),
        (0.5, 1, 256),  # a level fits
        (1.0, 2, 256),
        (0.51, 1, 256),  # within 5 %
        (0.49, 1, 256),
        (0.75, 1, 384),  # resampled from the next finer
        (0.4, 0, 410),
        (4.0, 2, 1024),  # coarser than the last level
        (0.24, 0, 256),  # as good as the scan
    ],
)
def test_tiles_are_read_from_the_coarsest_level_that_is_fine_enough(wanted_um: float | None, level: int, tile_px: int) -> None:
    slide: Any = SimpleNamespace(level_downsamples=(1.0, 2.0, 4.0))
    view = choose_level(slide, 0.25, TilingConfig(size_px=256, stride_px=128, spacing_um=wanted_um))
    assert (view.level, view.tile_px) == (level, tile_px)
    assert view.stride_px == pytest.approx(tile_px / 2, abs=1)
    assert view.spacing_um == 0.25 * 2**level


def test_a_slide_that_is_scanned_coarser_than_asked_is_refused_with_both_spacings(path: Path) -> None:
    with pytest.raises(SourceError, match=r"scanned at 0\.5 µm per pixel, tiling\.spacing_um asks for 0\.25"):
        tabulate(path, tiling={"spacing_um": 0.25})
    with pytest.raises(SourceError, match="pixels are not invented"):
        tabulate(path, tiling={"spacing_um": 0.48, "spacing_tolerance": 0})
    assert len(tabulate(path, tiling={"spacing_um": 0.48}).rows) == 12  # within the tolerance


def test_a_slide_without_spacing_is_refused_until_a_table_says_it(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "nothing.svs") as tif:
        tif.write(on_glass(), tile=(256, 256), photometric="rgb", metadata=None, software=False)
    with pytest.raises(SourceError, match="CSV with the column spacing_um"):
        tabulate(tmp_path / "nothing.svs")
    rows = table_of(tabulate(tmp_path / "nothing.svs", spacing_um=0.5))
    assert set(rows["spacing_um"]) == {0.5}


def test_the_tables_spacing_goes_before_the_slides_own(path: Path) -> None:
    assert set(table_of(tabulate(path, spacing_um=0.25))["spacing_um"]) == {0.25}


def test_tiles_lie_on_tissue_and_say_how_much(path: Path) -> None:
    found = tabulate(path, tiling={"tissue_share": 0.4})
    rows = table_of(found)
    assert set(rows.index) == {(x, y) for x in (0, 128, 256) for y in (0, 128, 256, 384)}
    assert rows.loc[[0, 128], "tissue_share"].min() > 0.95
    assert rows.loc[[256], "tissue_share"].between(0.4, 0.6).all()
    assert found.note == "12 of 16 tiles kept; 4 with less than 40% tissue"
    assert len(tabulate(path, tiling={"tissue_share": 0.9}).rows) == 8


def test_less_stride_than_size_gives_tiles_that_overlap(path: Path) -> None:
    rows = table_of(tabulate(path, tiling={"stride_px": 64, "tissue_share": 0.95}))
    assert sorted(set(rows.index.get_level_values("x_px"))) == [0, 64, 128, 192]
    assert sorted(set(rows.index.get_level_values("y_px"))) == list(range(0, 385, 64))
    assert set(rows["width_px"]) == set(rows["height_px"]) == {128}


def test_a_dense_grid_of_all_tiles_is_had_by_asking_for_no_tissue(path: Path) -> None:
    assert len(tabulate(path, tiling={"tissue_share": 0}).rows) == 16


def test_rows_carry_slide_subject_and_site_and_one_hash_of_the_whole(path: Path) -> None:
    rows = table_of(tabulate(path, subject_id="patient 7", site="axilla"))
    assert set(rows["subject_id"]) == {"patient 7"}
    assert set(rows["slide_id"]) == {"slide.svs"}
    assert set(rows["site"]) == {"axilla"}
    assert rows["phash"].nunique() == 1
    assert rows["sample_id"].is_unique


# ---- the cap


def test_the_cap_draws_by_seed_and_by_the_slide_alone(path: Path) -> None:
    def drawn(**options: Any) -> set[tuple[int, int]]:
        sha256 = options.pop("sha256", "ab" * 32)
        return set(table_of(tabulate(path, tiling={"size_px": 32, "tiles_max": 10, **options}, sha256=sha256)).index)

    assert len(drawn()) == 10
    assert drawn() == drawn()
    assert drawn(seed=1) != drawn()
    assert drawn(sha256="cd" * 32) != drawn()


def test_the_cap_counts_normal_abnormal_and_unknown_tiles_apart_and_says_how_many_were_not_drawn(path: Path, tmp_path: Path) -> None:
    mask = np.zeros((SIDE_PX, SIDE_PX), bool)
    mask[:256, :150] = True  # the tiles that its right edge crosses are neither
    Image.fromarray(mask).save(tmp_path / "mask.png")
    tiling = {"size_px": 32, "tiles_max": 5, "abnormal_share": 1.0}
    found = tabulate(path, tiling=tiling, label=1, mask_uri=str(tmp_path / "mask.png"))
    assert table_of(found)["label"].astype("Int8").value_counts(dropna=False).to_dict() == {0: 5, 1: 5, pd.NA: 5}
    assert "145 not drawn (tiling.tiles_max)" in found.note


# ---- what is abnormal


SQUARE = (50, 50, 300, 300)  # x0, y0, x1, y1 of what is abnormal; tiles 1 to 3 of 64 px lie wholly inside, 0 and 4 in part


def write_square_mask(folder: Path, kind: str) -> Path:
    x0, y0, x1, y1 = SQUARE
    corners = [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]
    if kind == "xml":
        return write_asap(folder / "mask.xml", [("Tumor", corners)])
    if kind == "geojson":
        geometry = {"type": "Polygon", "coordinates": [[*corners, corners[0]]]}
        feature = {"type": "Feature", "geometry": geometry, "properties": {"classification": {"name": "Tumor"}}}
        (folder / "mask.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
        return folder / "mask.geojson"
    mask = np.zeros((SIDE_PX, SIDE_PX), bool)
    mask[y0:y1, x0:x1] = True
    Image.fromarray(mask).save(folder / "mask.png")
    return folder / "mask.png"


@pytest.mark.parametrize("kind", ["png", "xml", "geojson"])
def test_abnormal_tiles_lie_wholly_inside_and_those_on_the_rim_are_unknown(path: Path, tmp_path: Path, kind: str) -> None:
    tiling = {"size_px": 64, "abnormal_share": 1.0}
    rows = table_of(tabulate(path, tiling=tiling, label=1, mask_uri=str(write_square_mask(tmp_path, kind)), mask_sha256=kind))
    inside, touched = {64, 128, 192}, {0, 64, 128, 192, 256}
    for (x, y), row in rows.iterrows():
        wanted = 1 if {x, y} <= inside else None if {x, y} <= touched else 0
        assert (None if pd.isna(row["label"]) else row["label"]) == wanted, (x, y)
    assert rows.loc[(0, 64), "abnormal_share"] == pytest.approx(14 / 64, abs=0.02)
    assert rows.loc[(64, 64), "abnormal_share"] == 1


@pytest.mark.parametrize("kind", ["png", "xml", "geojson"])
def test_by_default_a_tile_with_one_hundredth_of_the_finding_is_abnormal(path: Path, tmp_path: Path, kind: str) -> None:
    found = tabulate(path, tiling={"size_px": 64}, label=1, mask_uri=str(write_square_mask(tmp_path, kind)), mask_sha256=kind)
    rows = table_of(found)
    assert set(rows.index[rows["label"] == 1]) == {(x, y) for x in range(0, 257, 64) for y in range(0, 257, 64)}


def test_a_cut_out_of_an_outline_is_normal(path: Path, tmp_path: Path) -> None:
    outer = [[0, 0], [256, 0], [256, 256], [0, 256]]
    inner = [[64, 64], [128, 64], [128, 128], [64, 128]]
    mask = write_asap(tmp_path / "mask.xml", [("_0", outer), ("_2", inner)])
    rows = table_of(tabulate(path, tiling={"size_px": 64, "abnormal_share": 1.0}, label=1, mask_uri=str(mask), mask_sha256="cut"))
    assert rows.loc[(64, 64), "label"] == 0
    assert rows.loc[(0, 0), "label"] == 1


def test_abnormal_tiles_may_need_more_tissue_than_normal_ones(path: Path, tmp_path: Path) -> None:
    mask = np.zeros((SIDE_PX, SIDE_PX), bool)
    mask[:256] = True
    Image.fromarray(mask).save(tmp_path / "mask.png")
    found = tabulate(path, tiling={"tissue_share": 0.4, "abnormal_tissue_share": 0.9}, label=1, mask_uri=str(tmp_path / "mask.png"))
    rows = table_of(found)
    assert set(rows.index[rows["label"] == 1]) == {(x, y) for x in (0, 128) for y in (0, 128)}
    assert (256, 256) in rows.index  # of the normal ones, half tissue is enough


def test_what_lies_outside_of_incomplete_outlines_is_unknown(path: Path, tmp_path: Path) -> None:
    known = {"label": 1, "mask_uri": str(write_square_mask(tmp_path, "xml")), "mask_sha256": "partly"}
    rows = table_of(tabulate(path, tiling={"size_px": 64}, partly_annotated=True, **known))
    assert set(rows["label"].dropna()) == {1}
    assert pd.isna(rows.loc[(0, 448), "label"])


@pytest.mark.parametrize(("label", "wanted"), [(0, {0}), (None, set()), (1, set())])
def test_without_a_mask_tiles_are_normal_or_unknown_but_never_abnormal(path: Path, label: int | None, wanted: set[int]) -> None:
    assert set(table_of(tabulate(path, label=label))["label"].dropna()) == wanted


def test_a_mask_of_another_size_is_refused_with_both_sizes(path: Path, tmp_path: Path) -> None:
    Image.fromarray(np.ones((100, 200), bool)).save(tmp_path / "mask.png")
    with pytest.raises(SourceError, match=r"200 × 100 px, its slide 512 × 512: save it at the slide's size"):
        tabulate(path, label=1, mask_uri=str(tmp_path / "mask.png"))


@pytest.mark.parametrize("name", ["mask.png", "mask.xml"])
def test_an_empty_mask_of_an_abnormal_slide_is_refused_and_not_taken_for_all_normal(path: Path, tmp_path: Path, name: str) -> None:
    if name == "mask.png":
        Image.fromarray(np.zeros((SIDE_PX, SIDE_PX), bool)).save(tmp_path / name)
    else:
        write_asap(tmp_path / name, [])
    with pytest.raises(SourceError, match=r"mask\.\w+ of something abnormal is empty: draw what is abnormal, or remove the mask"):
        tabulate(path, label=1, mask_uri=str(tmp_path / name), mask_sha256="empty")


# ---- nothing found


def test_a_slide_of_glass_becomes_one_excluded_row_that_says_so(tmp_path: Path) -> None:
    write_pyramid(tmp_path / "glass.svs", on_glass(tissue_px=0), spacing_um=0.5)
    [row] = tabulate(tmp_path / "glass.svs").rows
    assert row["excluded"] == "no tile: 0 of 16 tiles kept; 16 with less than 50% tissue"
    assert (row["width_px"], row["height_px"]) == (SIDE_PX, SIDE_PX)


def test_a_slide_smaller_than_a_tile_becomes_one_excluded_row_that_says_so(path: Path) -> None:
    [row] = tabulate(path, tiling={"size_px": 2000}).rows
    assert row["excluded"] == "no tile: the slide is smaller than tiling.size_px = 2000"


# ---- flags and preview


def test_painted_ink_and_blurred_tissue_are_flagged_and_nothing_else(tmp_path: Path) -> None:
    picture = on_glass().copy()
    picture[:160, :160] = gaussian_filter(picture[:160, :160], (20, 20, 0))  # more than tile (0, 0)
    picture[290:320, :128] = (25, 60, 160)  # a stroke through tile (0, 256)
    write_pyramid(tmp_path / "slide.svs", picture, spacing_um=0.5)
    found = tabulate(tmp_path / "slide.svs", curation=CurationConfig(exclude=("pen",)))
    rows = table_of(found)
    assert rows["flags"].dropna().to_dict() == {(0, 0): "blurred", (0, 256): "pen"}
    assert rows["excluded"].dropna().to_dict() == {(0, 256): "flagged pen"}
    assert found.note.endswith("; 1 flagged blurred; 1 flagged pen")


def test_flags_are_those_of_the_same_region_on_every_level(tmp_path: Path) -> None:
    picture = on_glass(side_px=1024, tissue_px=640).copy()
    picture[:600, :600] = gaussian_filter(picture[:600, :600], (20, 20, 0))
    write_pyramid(tmp_path / "slide.svs", picture, spacing_um=0.5)
    rows = table_of(tabulate(tmp_path / "slide.svs", tiling={"size_px": 256, "spacing_um": 1.0}))
    assert rows["level"].eq(1).all()
    assert list(rows.index) == [(0, 0), (0, 256)]
    assert rows["flags"].dropna().to_dict() == {(0, 0): "blurred"}


def test_the_preview_frames_kept_tiles(path: Path) -> None:
    preview = np.asarray(Image.open(io.BytesIO(tabulate(path, tiling={"tissue_share": 0.9}).preview)))
    assert max(preview.shape) >= SIDE_PX
    scale = preview.shape[1] / SIDE_PX
    red, green, blue = np.moveaxis(preview.astype(int), -1, 0)
    framed = (green > red + 60) & (green > blue + 40)
    assert framed[:, : int(257 * scale)].any()
    assert not framed[:, int(270 * scale) :].any()


# ---- stain


def write_target(folder: Path) -> str:
    Image.fromarray(data.immunohistochemistry()[:256, :256]).save(folder / "target.png")
    return stain_target(StainNormalisation(target=str(folder / "target.png"), kind="macenko"))


def test_the_stains_of_a_slide_are_estimated_once_and_kept_with_every_tile(path: Path, tmp_path: Path) -> None:
    rows = table_of(tabulate(path, stain=write_target(tmp_path)))
    assert rows["transform"].nunique() == 1
    transform = json.loads(rows["transform"].iloc[0])
    assert transform["kind"] == "stain"
    assert len(transform["target_sha256"]) == 64
    truth = estimate_stains(on_glass()[:, :256].reshape(-1, 3), StainConfig(kind="macenko"), np.random.default_rng(0))
    np.testing.assert_allclose(transform["source"]["matrix"], truth.matrix, atol=0.05)


def test_a_slide_whose_stains_cannot_be_told_is_marked_and_left_as_it_is(tmp_path: Path) -> None:
    picture = on_glass().copy()
    shade = np.random.default_rng(1).normal(150, 20, (SIDE_PX, TISSUE_PX, 1)).clip(60, 220).astype(np.uint8)
    picture[:, :TISSUE_PX] = shade  # one colour: grey
    write_pyramid(tmp_path / "grey.svs", picture, spacing_um=0.5)
    found = tabulate(tmp_path / "grey.svs", stain=write_target(tmp_path))
    rows = table_of(found)
    assert rows["flags"].str.contains("stain-failed").all()
    assert rows["transform"].isna().all()
    assert "; stain: " in found.note
    curation = CurationConfig(exclude=("stain-failed",))
    refused = table_of(tabulate(tmp_path / "grey.svs", stain=write_target(tmp_path), curation=curation))
    assert refused["excluded"].eq("flagged stain-failed").all()


# ---- damage


def test_a_tile_that_cannot_be_measured_is_excluded_and_the_others_stay(tmp_path: Path) -> None:
    path, tiling = tmp_path / "slide.svs", {"size_px": 256}
    write_pyramid(path, on_glass(side_px=1024, tissue_px=640), spacing_um=0.5)
    before = table_of(tabulate(path, tiling=tiling))
    spoil_tiles(path, page=1, tiles=[0])  # the level that flags are looked for on; its tile holds four tiles of level 0
    found = tabulate(path, tiling=tiling)
    rows = table_of(found)
    damaged = [(0, 0), (0, 256), (256, 0), (256, 256)]
    assert rows.index.equals(before.index)
    assert rows.loc[damaged, "excluded"].str.match(r"unreadable: .*slide\.svs: level 1, tile in row 0, column 0").all()
    assert rows.drop(damaged)["excluded"].isna().all()
    pd.testing.assert_series_equal(rows.drop(damaged)["flags"], before.drop(damaged)["flags"])
    assert "4 unreadable" in found.note


def test_a_tile_damaged_where_only_its_pixels_are_read_is_listed_and_fails_when_it_is_scored(tmp_path: Path) -> None:
    path, tiling = tmp_path / "slide.svs", {"size_px": 256}
    write_pyramid(path, on_glass(side_px=2048, tissue_px=1280), spacing_um=0.5)
    spoil_tiles(path, page=0, tiles=[9])  # thumbnail and flags come from coarser levels
    rows = tabulate(path, tiling=tiling).rows.to_pandas()
    assert rows["excluded"].isna().all()
    damaged = (rows["x_px"] == 256) & (rows["y_px"] == 256)
    read_sample(rows[~damaged].iloc[0], size_px=64)
    with pytest.raises(UnreadableSlideError, match="level 0, tile in row 1, column 1 cannot be decoded"):
        read_sample(rows[damaged].iloc[0], size_px=64)


def test_a_thumbnail_with_a_damaged_tile_is_mended_from_a_finer_level(tmp_path: Path) -> None:
    path, tiling = tmp_path / "slide.svs", {"size_px": 256}
    write_pyramid(path, on_glass(side_px=2048, tissue_px=1280), spacing_um=2.0)  # flags are looked for on level 0
    before = table_of(tabulate(path, tiling=tiling))
    spoil_tiles(path, page=1, tiles=[0, 1])  # the thumbnail's level
    after = table_of(tabulate(path, tiling=tiling))
    assert after.index.equals(before.index)
    assert after["excluded"].isna().all()
    np.testing.assert_allclose(after["tissue_share"], before["tissue_share"], atol=0.02)


def test_where_no_level_can_be_decoded_tiles_are_excluded_as_unreadable_and_not_taken_for_glass(tmp_path: Path) -> None:
    path = tmp_path / "flat.svs"
    with tifffile.TiffWriter(path) as tif:  # one level alone
        resolution = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
        tif.write(on_glass(), tile=(128, 128), photometric="rgb", compression="jpeg", metadata=None, software=False, **resolution)
    spoil_tiles(path, page=0, tiles=[1, 15])  # one of tissue, one of glass
    rows = table_of(tabulate(path))
    unreadable = rows.index[rows["excluded"].fillna("").str.startswith("unreadable: ")]
    assert set(unreadable) == {(128, 0), (384, 384)}
    assert len(rows) == 13  # what else is glass is not listed, damaged glass is: who knows


def test_a_tile_that_is_damaged_where_the_overview_is_read_says_so_and_not_that_coarser_levels_are(tmp_path: Path) -> None:
    path = tmp_path / "slide.svs"
    write_pyramid(path, on_glass(side_px=1500, tissue_px=900), spacing_um=0.5)  # level 1 is too small for an overview
    spoil_tiles(path, page=0, tiles=[0])
    rows = table_of(tabulate(path, tiling={"size_px": 256}))
    assert rows["excluded"].dropna().to_dict() == {(0, 0): "unreadable: damaged here in the overview's level and every finer one"}


def test_the_preview_outlines_what_is_marked_and_frames_unknown_tiles_in_a_colour_of_their_own(tmp_path: Path) -> None:
    path, mask = tmp_path / "slide.svs", np.zeros((SIDE_PX, SIDE_PX), bool)
    mask[:140, :140] = True
    write_pyramid(path, on_glass(), spacing_um=0.5)
    Image.fromarray(mask).save(tmp_path / "mask.png")
    found = tabulate(path, label=1, mask_uri=str(tmp_path / "mask.png"), tiling={"abnormal_share": 0.5})
    assert table_of(found)["label"].isna().sum() == 3
    plain, picture = (
        np.asarray(Image.open(io.BytesIO(preview))).astype(int)[:SIDE_PX] for preview in (tabulate(path).preview, found.preview)
    )
    yellow, before = ((shown[..., :2].min(-1) - shown[..., 2] > 60) for shown in (picture, plain))
    assert yellow.sum() > before.sum() + 300
    assert picture[139, 20:120].mean() < plain[139, 20:120].mean() - 50  # the outline
    assert np.abs(picture - plain)[60:80, 20:100].mean() < 5  # within


def test_stains_are_estimated_past_damaged_tiles(path: Path, tmp_path: Path) -> None:
    spoil_tiles(path, page=0, tiles=[0])
    rows = table_of(tabulate(path, stain=write_target(tmp_path)))
    assert rows["transform"].notna().all()


def test_a_slide_whose_tiles_claim_40000_by_40000_px_is_refused_and_handed_to_no_other_reader(path: Path) -> None:
    with tifffile.TiffFile(path, mode="r+b") as tif:
        for tag in ("ImageWidth", "ImageLength", "TileWidth", "TileLength"):
            tif.pages[0].tags[tag].overwrite(40_000)
    with pytest.raises(UnreadableSlideError, match=r"refused as a possible decompression bomb \(tiles of 40000 × 40000 px\); save it in"):
        tabulate(path)


def test_a_slide_of_which_nothing_can_be_decoded_is_refused_by_name(path: Path) -> None:
    with tifffile.TiffFile(path) as tif:
        tiles = [len(page.dataoffsets) for page in tif.pages]
    for page, count in enumerate(tiles):
        spoil_tiles(path, page=page, tiles=list(range(count)))
    with pytest.raises(UnreadableSlideError, match=r"nothing of the slide can be decoded: .*slide\.svs"):
        tabulate(path)
