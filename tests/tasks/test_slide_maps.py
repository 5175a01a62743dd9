"""From a slide on disk to its heatmap and regions, with scores that know where the slide is magenta."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import zarr
from ome_zarr_models.v05.image import Image

from storage.annotations import rasterise, read_annotations
from storage.archives import append_manifest
from storage.heatmaps import open_heatmap
from storage.manifest import read_manifest, write_manifest
from storage.scores import Failure, ScoreStore, create_store
from storage.slides import write_pyramid
from tasks.curation import CurationConfig, TilingConfig
from tasks.references import ItemReference, RowsReference
from tasks.rows import SEARCH_COLUMNS, to_table
from tasks.samples import read_sample
from tasks.slide_maps import list_slides
from tasks.slide_rows import tabulate_slide
from tasks.write_slide_map import SlideMapError, SlideMapJob, SlideMapReference, SlideReference, write_slide_map

SPOTS = ((500, 300, 60), (1010, 730, 40))  # x, y, radius in level-0 pixels
WIDTH_PX, HEIGHT_PX, SPACING_UM, MAP_PX = 1300, 1050, 0.5, 32


@cache
def spotted() -> np.ndarray:
    """(HEIGHT_PX, WIDTH_PX) bool."""
    y, x = np.mgrid[:HEIGHT_PX, :WIDTH_PX] + 0.5
    return np.any([(x - left) ** 2 + (y - top) ** 2 < radius**2 for left, top, radius in SPOTS], axis=0)


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    picture = np.random.default_rng(0).normal(150, 20, (HEIGHT_PX, WIDTH_PX, 3)).clip(0, 255).astype(np.uint8)
    picture[spotted()] = (250, 0, 250)
    picture[:, :200] = 245  # glass
    write_pyramid(tmp_path / "slide.svs", picture, spacing_um=SPACING_UM, quality=95)
    return tmp_path / "slide.svs"


def write_rows(slide: Path, **tiling: Any) -> RowsReference:
    nothing: Any = dict.fromkeys(ItemReference.__annotations__)
    item = nothing | {"uri": str(slide), "sha256": "ab" * 32, "dataset": "d", "subject_id": "s", "slide_id": "Slide 1/a"}
    config = TilingConfig.model_validate({"size_px": 128, "tissue_share": 0.01} | tiling)
    tiles = to_table([tabulate_slide(item | {"partly_annotated": False}, config, CurationConfig(), stain=None)])
    table = tiles.drop_columns(list(SEARCH_COLUMNS)).to_pandas()
    uri = str(slide.parent / "manifest.parquet")
    return RowsReference(uri=uri, digest=write_manifest(uri, table.assign(group_id="s")))


def score_tile(row: dict[Any, Any]) -> np.ndarray:
    """(MAP_PX, MAP_PX) float: how magenta."""
    pixels = read_sample(row, size_px=MAP_PX).astype(float) / 255
    return np.asarray((pixels[..., 0] + pixels[..., 2]) / 2 - pixels[..., 1])


def score(rows: RowsReference, uri: str, *, maps: bool = True, failed: tuple[int, ...] = (), until: int | None = None) -> ScoreStore:
    table = read_manifest(rows["uri"])
    attributes = {"manifest_digest": rows["digest"], "model_digest": "m" * 64, "detector": "magenta"}
    store = create_store(uri, rows=len(table), map_size_px=MAP_PX if maps else None, shard_rows=16, attributes=attributes)
    for shard in range(store.shard_count if until is None else until):
        part = store.rows_of(shard)
        found = np.stack([score_tile(row) for row in table.iloc[part.start : part.stop].to_dict("records")]).astype(np.float16)
        image = found.max(axis=(1, 2)).astype(np.float32)
        lost = [row for row in failed if row in part]
        found[[row - part.start for row in lost]] = np.nan
        image[[row - part.start for row in lost]] = np.nan
        failures = [Failure(row, table["sample_id"].iloc[row], "damaged") for row in lost]
        store.write_shard(shard, image=image, maps=found if maps else None, failures=failures)
    return store


def make(rows: RowsReference, folder: Path, *, threshold: float | None = 0.45, least_area_um2: float = 0) -> SlideMapReference:
    [slide] = list_slides(rows)
    return write_slide_map(
        SlideMapJob(
            slide=slide,
            rows=rows,
            store_uri=str(folder / "scores"),
            slides_uri=str(folder / "slides"),
            threshold=threshold,
            least_area_um2=least_area_um2,
        )
    )


@pytest.mark.parametrize(
    ("tiling", "downsample"),
    [
        ({}, 4),
        ({"stride_px": 64}, 4),
        ({"stride_px": 50}, 4),  # tiles lie between the map's pixels
        ({"stride_px": 96, "dense": True}, 4),  # the last tiles end at the border
        ({"spacing_um": 1.0, "stride_px": 100}, 8),  # at level 1
        ({"spacing_um": 0.75, "stride_px": 64}, 6),  # resampled from level 0
    ],
)
def test_a_pixel_of_the_heatmap_lies_where_the_slides_lies(slide: Path, tiling: dict[str, Any], downsample: float) -> None:
    rows = write_rows(slide, **tiling)
    score(rows, str(slide.parent / "scores"))
    heatmap = open_heatmap(make(rows, slide.parent)["uri"])
    assert (heatmap.downsample_of(0), heatmap.scale_um) == (downsample, downsample * SPACING_UM)
    assert heatmap.shape_of(0) == (-(-HEIGHT_PX // downsample), -(-WIDTH_PX // downsample))
    for level in range(heatmap.levels):
        side = heatmap.downsample_of(level)
        values = np.nan_to_num(heatmap.read(level, 0, 0, *heatmap.shape_of(level)).astype(float)).clip(0.1) - 0.1
        for x, y, radius in SPOTS:
            top, left, reach = int(y / side), int(x / side), int(radius * 1.5 / side) + 1
            here = values[max(0, top - reach) : top + reach + 1, max(0, left - reach) : left + reach + 1]
            rows_at, columns_at = np.mgrid[max(0, top - reach) : top + reach + 1, max(0, left - reach) : left + reach + 1] + 0.5
            centre = np.array([(columns_at * here).sum(), (rows_at * here).sum()]) / here.sum() * side
            assert np.abs(centre - (x, y)).max() < 0.06 * side + 0.5  # in level-0 pixels


def test_regions_are_where_the_slide_is_painted_and_as_large(slide: Path) -> None:
    rows = write_rows(slide, stride_px=64)
    score(rows, str(slide.parent / "scores"))
    made = make(rows, slide.parent)
    assert made["regions"] == 2
    painted = rasterise(read_annotations(made["regions_uri"]), width_px=WIDTH_PX, height_px=HEIGHT_PX, downsample=1)
    assert (painted & spotted()).sum() / (painted | spotted()).sum() > 0.9
    features = json.loads(Path(made["regions_uri"]).read_text())["features"]
    for feature, (_, _, radius) in zip(features, SPOTS, strict=True):
        assert feature["properties"]["classification"] == {"name": "Anomaly", "color": [200, 0, 0]}
        measured = feature["properties"]["measurements"]
        assert measured["Area mm^2"] == pytest.approx(np.pi * (radius * SPACING_UM / 1000) ** 2, rel=0.1)
        assert 0.45 < measured["Mean score"] < measured["Max score"] <= 1
    assert made["area_mm2"] == pytest.approx(sum(feature["properties"]["measurements"]["Area mm^2"] for feature in features))


def test_regions_are_exactly_the_thresholded_heatmap(slide: Path) -> None:
    rows = write_rows(slide, stride_px=50)
    score(rows, str(slide.parent / "scores"))
    made = make(rows, slide.parent, threshold=0.004)
    heatmap = open_heatmap(made["uri"])
    mask = heatmap.read(0, 0, 0, *heatmap.shape_of(0)) >= 0.004
    found = rasterise(read_annotations(made["regions_uri"]), width_px=mask.shape[1], height_px=mask.shape[0], downsample=4)
    np.testing.assert_array_equal(found, mask)
    assert made["regions"] > 100


def test_small_regions_are_left_out(slide: Path) -> None:
    rows = write_rows(slide)
    score(rows, str(slide.parent / "scores"))
    between = np.pi * (50 * SPACING_UM) ** 2  # the spots have radii of 40 and 60 pixels
    assert make(rows, slide.parent, least_area_um2=between)["regions"] == 1


def test_glass_has_no_score_and_failed_tiles_are_told_apart(slide: Path) -> None:
    rows = write_rows(slide)
    table = read_manifest(rows["uri"])
    [row] = np.flatnonzero((table["x_px"] == 640) & (table["y_px"] == 512))
    score(rows, str(slide.parent / "scores"), failed=(int(row),))
    made = make(rows, slide.parent)
    values = open_heatmap(made["uri"]).read(0, 0, 0, HEIGHT_PX // 4, WIDTH_PX // 4)
    assert np.isnan(values[:, : 128 // 4]).all()  # the first column of tiles lies on glass
    assert np.isnan(values[128 : 128 + 32, 160 : 160 + 32]).all()
    assert np.isfinite(values[:128, 64:]).mean() > 0.9
    assert (made["failed"], made["tiles"]) == (1, len(table))
    features = json.loads(Path(made["regions_uri"]).read_text())["features"]
    [lost] = [feature for feature in features if feature["properties"]["classification"]["name"] == "Not scored"]
    assert lost["geometry"]["coordinates"] == [[[640, 512], [768, 512], [768, 640], [640, 640], [640, 512]]]
    assert lost["properties"]["measurements"] == {"Area mm^2": pytest.approx((0.128 * SPACING_UM) ** 2)}


def test_a_detector_without_maps_fills_each_tile_with_its_score(slide: Path) -> None:
    rows = write_rows(slide)
    store = score(rows, str(slide.parent / "scores"), maps=False)
    heatmap = open_heatmap(make(rows, slide.parent)["uri"])
    table, scores = read_manifest(rows["uri"]), store.image_scores()
    assert heatmap.downsample_of(0) == 8
    for x, y, expected in zip(table["x_px"], table["y_px"], scores, strict=True):
        np.testing.assert_array_equal(heatmap.read(0, y // 8, x // 8, 16, 16), expected)


def test_a_slide_map_is_valid_ome_zarr(slide: Path) -> None:
    rows = write_rows(slide)
    score(rows, str(slide.parent / "scores"))
    Image.from_zarr(zarr.open_group(make(rows, slide.parent)["uri"], mode="r"))


def test_a_map_is_made_once_and_again_when_scores_or_threshold_change(slide: Path) -> None:
    rows = write_rows(slide)
    score(rows, str(slide.parent / "scores"))
    first = make(rows, slide.parent)
    written = Path(first["uri"], "zarr.json").stat().st_mtime_ns
    assert make(rows, slide.parent) == first
    assert Path(first["uri"], "zarr.json").stat().st_mtime_ns == written
    assert make(rows, slide.parent, threshold=0.9)["made_from"] != first["made_from"]
    store = score(rows, str(slide.parent / "scores"), failed=(3,))
    again = make(rows, slide.parent, threshold=0.9)
    assert again["failed"] == 1
    assert store.rows == again["tiles"]


def test_a_slide_that_is_not_scored_to_its_end_is_refused(slide: Path) -> None:
    rows = write_rows(slide)
    score(rows, str(slide.parent / "scores"), until=2)
    with pytest.raises(SlideMapError, match="not scored to its end"):
        make(rows, slide.parent)


def test_without_a_threshold_only_what_was_not_scored_is_outlined(slide: Path) -> None:
    rows = write_rows(slide)
    score(rows, str(slide.parent / "scores"), failed=(3,))
    made = make(rows, slide.parent, threshold=None)
    assert made["regions"] == 0
    assert [annotation.group for annotation in read_annotations(made["regions_uri"])] == ["Not scored"]


def test_a_slide_of_which_nothing_was_scored_has_an_empty_map(slide: Path) -> None:
    rows = write_rows(slide)
    table = read_manifest(rows["uri"])
    score(rows, str(slide.parent / "scores"), failed=tuple(range(len(table))))
    made = make(rows, slide.parent)
    heatmap = open_heatmap(made["uri"])
    assert np.isnan(heatmap.read(0, 0, 0, *heatmap.shape_of(0))).all()
    assert {annotation.group for annotation in read_annotations(made["regions_uri"])} == {"Not scored"}


def test_outlines_end_at_the_slides_border(slide: Path) -> None:
    rows = write_rows(slide, dense=True, spacing_um=0.8)  # pixels of 6.4 that do not divide the slide
    score(rows, str(slide.parent / "scores"))
    corners = np.concatenate([found.polygon for found in read_annotations(make(rows, slide.parent, threshold=-1)["regions_uri"])])
    assert corners.max(0).tolist() == [WIDTH_PX, HEIGHT_PX]


def test_tiles_of_two_sizes_are_refused_with_both(slide: Path) -> None:
    table = read_manifest(write_rows(slide)["uri"])
    table.loc[0, ["width_px", "height_px"]] = 64
    uri = str(slide.parent / "mixed.parquet")
    rows = RowsReference(uri=uri, digest=write_manifest(uri, table))
    score(rows, str(slide.parent / "scores"))
    with pytest.raises(SlideMapError, match=r"64 × 64 px of level 0; 128 × 128 px of level 0"):
        make(rows, slide.parent)


def test_an_archives_slides_are_listed_with_their_rows(slide: Path) -> None:
    table = read_manifest(write_rows(slide)["uri"])
    other = table.assign(sample_id="b" + table["sample_id"], sha256="cd" * 32, slide_id="b")
    photograph = table.iloc[:1].assign(sample_id="photograph", slide_id=None, sha256="ef" * 32)
    mixed = pd.concat([table.iloc[:10], photograph, other, table.iloc[10:]], ignore_index=True)
    uri = str(slide.parent / "mixed.parquet")
    archive = append_manifest(str(slide.parent / "archive"), uri, write_manifest(uri, mixed))
    n = len(table)
    expected = [
        SlideReference(slide_id="Slide 1/a", uri=str(slide), sha256="ab" * 32, spans=[(0, 10), (n + 11, 2 * n + 1)]),
        SlideReference(slide_id="b", uri=str(slide), sha256="cd" * 32, spans=[(11, n + 11)]),
    ]
    assert list_slides(RowsReference(uri=archive.uri, digest=archive.digest)) == expected
