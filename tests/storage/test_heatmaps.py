"""Heatmaps as OME-Zarr 0.5 and outlines as GeoJSON: written, validated by others' readers, and read back."""

import json
from pathlib import Path

import numpy as np
import pytest
import zarr
from ome_zarr_models.v05.image import Image

from storage.annotations import rasterise, read_annotations
from storage.heatmaps import (
    BAND_PX,
    HeatmapError,
    HeatmapWriter,
    Outline,
    heatmap_uri,
    open_heatmap,
    read_attributes,
    regions_uri,
    write_outlines,
)
from tests.servers import s3_server

SHAPES = [(700, 1300), (350, 650), (175, 325)]


def write(uri: str, *, finished: bool = True) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    levels = [rng.random(shape).astype(np.float16) for shape in SHAPES]
    levels[0][:, 600:] = np.nan
    writer = HeatmapWriter(uri, shapes=SHAPES, dtype=np.dtype(np.float16))
    for level, rows in enumerate(levels):
        for y in range(0, len(rows), BAND_PX):
            writer.write(level, y, rows[y : y + BAND_PX])
    if finished:
        writer.finish(name="slide", spacing_um=0.25, downsample=3.5, window=(0.0, 1.0, 0.5), attributes={"made_from": "abc"})
    return levels


def test_a_heatmap_is_read_as_it_was_written(tmp_path: Path) -> None:
    levels = write(str(tmp_path / "slide.ome.zarr"))
    heatmap = open_heatmap(str(tmp_path / "slide.ome.zarr"))
    assert (heatmap.levels, heatmap.scale_um, heatmap.attributes["made_from"]) == (3, 0.875, "abc")
    assert [heatmap.downsample_of(level) for level in range(3)] == [3.5, 7, 14]
    for level, rows in enumerate(levels):
        assert heatmap.shape_of(level) == rows.shape
        np.testing.assert_array_equal(heatmap.read(level, 100, 200, 50, 60), rows[100:150, 200:260])


def test_what_lies_outside_of_a_heatmap_is_nan(tmp_path: Path) -> None:
    levels = write(str(tmp_path / "slide.ome.zarr"))
    region = open_heatmap(str(tmp_path / "slide.ome.zarr")).read(2, -5, 320, 20, 10)
    np.testing.assert_array_equal(region[5:, :5], levels[2][:15, 320:])
    assert np.isnan(region[:5]).all()
    assert np.isnan(region[:, 5:]).all()
    assert np.isnan(open_heatmap(str(tmp_path / "slide.ome.zarr")).read(0, 5000, 0, 2, 2)).all()


def test_a_heatmap_is_valid_ome_zarr(tmp_path: Path) -> None:
    write(str(tmp_path / "slide.ome.zarr"))
    image = Image.from_zarr(zarr.open_group(tmp_path / "slide.ome.zarr", mode="r"))
    [multiscale] = image.ome_attributes.multiscales
    assert [(axis.name, axis.type, axis.unit) for axis in multiscale.axes] == [("y", "space", "micrometer"), ("x", "space", "micrometer")]
    assert image.ome_attributes.version == "0.5"


def test_every_level_puts_a_place_on_the_slide_at_the_same_micrometres(tmp_path: Path) -> None:
    write(str(tmp_path / "slide.ome.zarr"))
    datasets = zarr.open_group(tmp_path / "slide.ome.zarr", mode="r").attrs["ome"]["multiscales"][0]["datasets"]  # type: ignore[index, call-overload]
    for level, dataset in enumerate(datasets):
        scale, translation = dataset["coordinateTransformations"]
        side_px = 3.5 * 2**level
        centre_px = (10 + 0.5) * side_px  # of pixel 10, in level-0 pixels from the slide's corner
        assert scale["scale"][0] * 10 + translation["translation"][0] == pytest.approx((centre_px - 0.5) * 0.25)


def test_shards_without_a_score_are_not_written(tmp_path: Path) -> None:
    write(str(tmp_path / "slide.ome.zarr"))
    writer = HeatmapWriter(str(tmp_path / "wide.ome.zarr"), shapes=[(10, 10_000)], dtype=np.dtype(np.float16))
    rows = np.full((10, 10_000), np.nan, np.float16)
    rows[:, :30] = 1
    writer.write(0, 0, rows)
    assert [path.name for path in (tmp_path / "wide.ome.zarr" / "0" / "c").rglob("*") if path.is_file()] == ["0"]


def test_a_heatmap_that_was_cut_short_is_not_there_and_is_made_anew(tmp_path: Path) -> None:
    uri = str(tmp_path / "slide.ome.zarr")
    with pytest.raises(HeatmapError, match="no complete heatmap"):
        open_heatmap(uri)
    write(uri)
    write(uri, finished=False)
    assert read_attributes(uri) is None
    with pytest.raises(HeatmapError, match="no complete heatmap"):
        open_heatmap(uri)
    write(uri)
    assert open_heatmap(uri).levels == 3


def test_viewers_are_told_which_scores_to_colour(tmp_path: Path) -> None:
    write(str(tmp_path / "slide.ome.zarr"))
    [channel] = zarr.open_group(tmp_path / "slide.ome.zarr", mode="r").attrs["ome"]["omero"]["channels"]  # type: ignore[index, call-overload]
    assert channel["window"] == {"min": 0, "max": 1, "start": 0.5, "end": 1}


def test_outlines_are_annotations_as_qupath_reads_them(tmp_path: Path) -> None:
    outline, hole = np.array([[10, 10], [60, 10], [60, 40], [10, 40]]), np.array([[20, 30], [30.5, 30], [30.5, 20], [20, 20]])
    uri = str(tmp_path / "slide.geojson")
    write_outlines(uri, [Outline([outline, hole], "Anomaly", (200, 0, 0), {"Area mm^2": 0.5, "Max score": 2.0})])
    content = json.loads(Path(uri).read_text())
    assert content["type"] == "FeatureCollection"
    [feature] = content["features"]
    assert feature["type"] == "Feature"
    assert feature["geometry"]["type"] == "Polygon"
    assert feature["geometry"]["coordinates"][0] == [[10, 10], [60, 10], [60, 40], [10, 40], [10, 10]]
    assert feature["geometry"]["coordinates"][1][1] == [30.5, 30.0]
    assert feature["properties"] == {
        "objectType": "annotation",
        "classification": {"name": "Anomaly", "color": [200, 0, 0]},
        "measurements": {"Area mm^2": 0.5, "Max score": 2.0},
    }
    mask = rasterise(read_annotations(uri), width_px=70, height_px=50, downsample=1)
    expected = np.zeros((50, 70), bool)
    expected[10:40, 10:60] = True
    expected[20:30, 20:30] = False
    np.testing.assert_array_equal(mask, expected)


def test_a_slide_without_a_region_has_an_empty_collection(tmp_path: Path) -> None:
    write_outlines(str(tmp_path / "slide.geojson"), [])
    assert json.loads((tmp_path / "slide.geojson").read_text()) == {"type": "FeatureCollection", "features": []}
    assert read_annotations(str(tmp_path / "slide.geojson")) == ()


@pytest.mark.slow
def test_a_heatmap_in_a_bucket_replaces_the_one_before_whole(tmp_path: Path) -> None:
    with s3_server(tmp_path) as server:
        uri = f"{server.bucket}/slides/slide.ome.zarr"
        levels = write(uri)
        heatmap = open_heatmap(uri)
        np.testing.assert_array_equal(heatmap.read(0, 0, 0, *SHAPES[0]), levels[0])
        writer = HeatmapWriter(uri, shapes=SHAPES, dtype=np.dtype(np.float16))
        writer.write(0, 256, levels[0][256:512])
        assert read_attributes(uri) is None
        writer.finish(name="slide", spacing_um=0.25, downsample=3.5, window=(0.0, 1.0, 0.5), attributes={"made_from": "def"})
        again = open_heatmap(uri)
        assert again.attributes["made_from"] == "def"
        assert np.isnan(again.read(0, 0, 0, 256, SHAPES[0][1])).all()
        np.testing.assert_array_equal(again.read(0, 256, 0, 256, SHAPES[0][1]), levels[0][256:512])
        assert np.isnan(again.read(1, 0, 0, *SHAPES[1])).all()
        write_outlines(regions_uri(uri), [])
        assert read_annotations(regions_uri(uri)) == ()


def test_the_maps_of_slides_of_one_name_have_different_places() -> None:
    assert heatmap_uri("/m", "Slide 1/a", "ab" * 32) == "/m/Slide_1_a-abababababab.ome.zarr"
    assert heatmap_uri("/m", "Slide 1/a", "cd" * 32) != heatmap_uri("/m", "Slide 1/a", "ab" * 32)
    assert regions_uri("/m/x.ome.zarr") == "/m/x.geojson"
