"""Outlines: Camelyon16's XML and QuPath's GeoJSON, and masks that lose no finding."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.path import Path as Outline

from storage.annotations import Annotation, UnreadableAnnotationError, rasterise, read_annotations, read_asap, read_geojson
from storage.datasets.miniatures.pathology import write_asap

SQUARE = [(10, 10), (30, 10), (30, 30), (10, 30)]


def outline(polygon: object, group: str = "_0") -> Annotation:
    return Annotation(group=group, name="", polygon=np.array(polygon, np.float64))


def by_matplotlib(polygon: np.ndarray, width_px: int, height_px: int) -> np.ndarray:
    """Whether each centre is inside, pixel by pixel."""
    y, x = np.mgrid[:height_px, :width_px] + 0.5
    return Outline(polygon).contains_points(np.stack([x.ravel(), y.ravel()], axis=1)).reshape(height_px, width_px)


def test_asap_outlines_come_with_group_name_and_corners_in_level_0_pixels(tmp_path: Path) -> None:
    first, second = read_asap(str(write_asap(tmp_path / "tumor_001.xml", [("_0", SQUARE), ("_2", [(15.5, 12.25), (18, 12), (16, 14)])])))
    assert (first.group, first.name, second.group) == ("_0", "Annotation 0", "_2")
    assert first.polygon.dtype == np.float64
    np.testing.assert_array_equal(first.polygon, SQUARE)
    np.testing.assert_array_equal(second.polygon, [(15.5, 12.25), (18, 12), (16, 14)])


def test_corners_are_ordered_by_their_order(tmp_path: Path) -> None:
    path = write_asap(tmp_path / "a.xml", [("None", SQUARE)])
    lines = path.read_text().replace('Order="1"', 'Order="x"').replace('Order="2"', 'Order="1"').replace('Order="x"', 'Order="2"')
    path.write_text(lines)
    (annotation,) = read_asap(str(path))
    np.testing.assert_array_equal(annotation.polygon, [SQUARE[0], SQUARE[2], SQUARE[1], SQUARE[3]])
    assert annotation.group == ""


def test_a_file_without_outlines_is_empty(tmp_path: Path) -> None:
    assert read_asap(str(write_asap(tmp_path / "a.xml", []))) == ()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("<ASAP_Annotations><Annotations>", "does not parse"),
        ("<annotation/>", "found annotation"),
        ('<ASAP_Annotations><Annotations><Annotation Name="a" Type="Polygon"/></Annotations></ASAP_Annotations>', "'a' has no coordinates"),
        ('<ASAP_Annotations><Annotations><Annotation Name="a" Type="Dot"/></Annotations></ASAP_Annotations>', "of type 'Dot'"),
    ],
)
def test_a_malformed_asap_file_is_refused_saying_why(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "a.xml").write_text(content)
    with pytest.raises(UnreadableAnnotationError, match=rf"a\.xml.*{told}"):
        read_asap(str(tmp_path / "a.xml"))


@pytest.mark.parametrize(
    ("replaced", "by"), [('X="10.0000"', 'X="ten"'), ('X="10.0000"', ""), ('X="10.0000"', 'X="nan"'), ('Order="0"', 'Order="a"')]
)
def test_a_corner_without_finite_numbers_is_refused(tmp_path: Path, replaced: str, by: str) -> None:
    path = write_asap(tmp_path / "a.xml", [("_0", SQUARE)])
    path.write_text(path.read_text().replace(replaced, by))
    with pytest.raises(UnreadableAnnotationError, match=r"a\.xml"):
        read_asap(str(path))


def _feature(geometry: object, name: str | None = "Tumor") -> dict[str, object]:
    properties = {"objectType": "annotation", **({"classification": {"name": name, "color": [200, 0, 0]}} if name else {})}
    return {"type": "Feature", "id": "PathAnnotationObject", "geometry": geometry, "properties": properties}


def test_geojson_is_read_as_collection_list_or_one_feature(tmp_path: Path) -> None:
    feature = _feature({"type": "Polygon", "coordinates": [[*SQUARE, SQUARE[0]]]})
    for content in ({"type": "FeatureCollection", "features": [feature]}, [feature], feature):
        (tmp_path / "a.geojson").write_text(json.dumps(content))
        (annotation,) = read_annotations(str(tmp_path / "a.geojson"))
        assert annotation.group == "Tumor"
        np.testing.assert_array_equal(annotation.polygon, SQUARE)


def test_holes_of_geojson_polygons_are_holes_and_parts_are_outlines(tmp_path: Path) -> None:
    hole = [[15, 15], [20, 15], [20, 20], [15, 20], [15, 15]]
    other_hole = [[22, 22], [28, 22], [28, 28], [22, 28], [22, 22]]
    far = [[40, 2], [44, 2], [44, 6], [40, 6], [40, 2]]
    geometry = {"type": "MultiPolygon", "coordinates": [[[*SQUARE, SQUARE[0]], hole, other_hole], [far]]}
    (tmp_path / "a.json").write_text(json.dumps([_feature(geometry, name=None)]))
    annotations = read_annotations(str(tmp_path / "a.json"))
    assert [annotation.group for annotation in annotations] == ["", ""]
    expected = np.zeros((50, 50), bool)
    expected[10:30, 10:30] = True
    expected[15:20, 15:20] = expected[22:28, 22:28] = False
    expected[2:6, 40:44] = True
    np.testing.assert_array_equal(rasterise(annotations, width_px=50, height_px=50, downsample=1), expected)


@pytest.mark.parametrize(
    "content", ["{", "3", "[3]", '{"features": [{}]}', json.dumps([_feature({"type": "Point", "coordinates": [1, 2]})])], ids=range(5)
)
def test_malformed_geojson_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.geojson").write_text(content)
    with pytest.raises(UnreadableAnnotationError, match=r"a\.geojson"):
        read_geojson(str(tmp_path / "a.geojson"))


def test_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableAnnotationError, match=r"\.xml \(ASAP\)"):
        read_annotations(str(tmp_path / "a.ndpa"))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), corners=st.integers(3, 40), downsample=st.sampled_from([1.0, 3.7, 16.0]))
def test_a_mask_holds_the_centres_inside_the_outline_also_beyond_the_rim(seed: int, corners: int, downsample: float) -> None:
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
    around = rng.uniform(3, 30, corners)[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    polygon = around + rng.uniform(-10, 50, 2)
    expected = by_matplotlib(polygon, 41, 37)
    if not expected.any():
        return  # too small or outside: another rule
    mask = rasterise([outline(polygon * downsample)], width_px=41, height_px=37, downsample=downsample)
    assert mask.shape == (37, 41)
    np.testing.assert_array_equal(mask, expected)


def test_islands_of_normal_tissue_are_cut_out_whatever_the_order() -> None:
    island = outline([(15, 15), (20, 15), (20, 20), (15, 20)], "_2")
    tumour = outline(SQUARE)
    expected = np.zeros((40, 40), bool)
    expected[10:30, 10:30] = True
    expected[15:20, 15:20] = False
    for annotations in ([tumour, island], [island, tumour]):
        np.testing.assert_array_equal(rasterise(annotations, width_px=40, height_px=40, downsample=1), expected)


@pytest.mark.parametrize("group", ["Exclusion", "normal", "_2"])
def test_groups_of_both_camelyons_that_mean_normal_find_nothing(group: str) -> None:
    assert not rasterise([outline(SQUARE, group)], width_px=40, height_px=40, downsample=1).any()


@pytest.mark.parametrize(
    "polygon", [[(130, 70)], [(130, 70), (131, 71)], [(128, 64), (130, 64), (129, 65)], [(100, 70), (101, 70), (100, 71)]]
)
def test_an_outline_smaller_than_a_pixel_is_kept(polygon: list[tuple[float, float]]) -> None:
    mask = rasterise([outline(polygon)], width_px=8, height_px=6, downsample=32)
    x, y = np.array(polygon[0]) // 32
    assert mask.sum() == 1
    assert mask[int(y), int(x)]


def test_a_tiny_island_of_normal_tissue_does_not_take_a_pixel_of_tumour() -> None:
    tumour, island = outline(np.array(SQUARE) * 32), outline([(640, 640), (642, 640), (641, 642)], "_2")
    mask = rasterise([tumour, island], width_px=40, height_px=40, downsample=32)
    assert mask[20, 20]


def test_an_outline_beyond_the_rim_leaves_the_mask_empty() -> None:
    assert not rasterise([outline(np.array(SQUARE) + 1000), outline(np.array(SQUARE) - 1000)], width_px=9, height_px=9, downsample=1).any()


@pytest.mark.parametrize("wrong", [{"width_px": 0}, {"height_px": 0}, {"downsample": 0}, {"downsample": float("nan")}])
def test_an_impossible_mask_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="1 px and more and a positive downsample"):
        rasterise([], **({"width_px": 4, "height_px": 4, "downsample": 2} | wrong))  # type: ignore[arg-type]
