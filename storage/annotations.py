"""Outlines drawn on slides: ASAP's XML (Camelyon16) and QuPath's GeoJSON → polygons → masks."""

import json
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from storage import filesystems

# Camelyon16's README: "_0" and "_1" are tumour, "_2" is what was cut out of them; "Exclusion" in its test part, "normal" in Camelyon17
EXCLUSION_GROUPS = ("_2", "exclusion", "normal")
_OUTLINES = ("Polygon", "Spline", "Rectangle")


class UnreadableAnnotationError(ValueError):
    """A file of outlines that is damaged or of another kind; the message says what was expected."""


@dataclass(frozen=True, eq=False)
class Annotation:
    """One outline.

    Attributes:
        group: the class that it was drawn for ("_0", "Tumor"); empty where there is none.
        name: the outline's own name; empty where there is none.
        polygon: (n, 2) float64, x and y in pixels of level 0 of the slide; not closed. Holes are part of it by a bridge that is walked
            both ways, which the even-odd rule does not see.
    """

    group: str
    name: str
    polygon: NDArray[np.float64]


def read_annotations(uri: str) -> tuple[Annotation, ...]:
    """The outlines of a file, ASAP's XML or GeoJSON by its suffix (.xml, .geojson, .json).

    Raises:
        UnreadableAnnotationError: another suffix, or as for the reader of that format.
    """
    suffix = uri.lower().rsplit(".", 1)[-1]
    if suffix == "xml":
        return read_asap(uri)
    if suffix in ("geojson", "json"):
        return read_geojson(uri)
    raise UnreadableAnnotationError(f"{uri}: expected outlines as .xml (ASAP) or .geojson (QuPath)")


def read_asap(uri: str) -> tuple[Annotation, ...]:
    """The outlines of an ASAP XML file in its order; polygons, splines and rectangles by their corners, of which one is enough.

    Raises:
        UnreadableAnnotationError: no XML, not ASAP's, an annotation that is no outline, none or no numbers for coordinates.
    """
    try:
        root = ElementTree.fromstring(filesystems.read_bytes(uri))
    except ElementTree.ParseError as error:
        raise UnreadableAnnotationError(f"{uri}: expected ASAP's XML, but it does not parse ({error})") from error
    if root.tag != "ASAP_Annotations":
        raise UnreadableAnnotationError(f"{uri}: expected the root ASAP_Annotations, found {root.tag}")
    try:
        return tuple(_from_asap(element) for element in root.iterfind("./Annotations/Annotation"))
    except (KeyError, ValueError) as error:
        raise UnreadableAnnotationError(f"{uri}: {error}") from error


def read_geojson(uri: str) -> tuple[Annotation, ...]:
    """The polygons of a GeoJSON file as QuPath writes it: a collection, a list or one feature; classification is the group.

    Raises:
        UnreadableAnnotationError: no JSON, no features, or a geometry that is no polygon.
    """
    try:
        content = json.loads(filesystems.read_bytes(uri))
    except ValueError as error:
        raise UnreadableAnnotationError(f"{uri}: expected GeoJSON, but it does not parse ({error})") from error
    try:
        features = content if isinstance(content, list) else content.get("features", [content])
        return tuple(annotation for feature in features for annotation in _from_feature(feature))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UnreadableAnnotationError(
            f"{uri}: expected features with a Polygon or MultiPolygon ({type(error).__name__}: {error})"
        ) from error


def rasterise(
    annotations: Sequence[Annotation],
    *,
    width_px: int,
    height_px: int,
    downsample: float,
    exclusions: Collection[str] = EXCLUSION_GROUPS,
) -> NDArray[np.bool_]:
    """A mask of what is outlined, less what outlines of an exclusion group cut out.

    A pixel belongs to a polygon if its centre does, by the even-odd rule. A polygon too small to hold a pixel's centre keeps the pixels
    that its corners are in, unless it is an exclusion: no finding is lost to the resolution of the mask.

    Args:
        annotations: in pixels of level 0.
        width_px: of the mask.
        height_px: of the mask.
        downsample: pixels of level 0 per pixel of the mask.
        exclusions: names of groups that are normal tissue inside of a finding, in any case.

    Returns:
        (height_px, width_px) bool.
    """
    if width_px < 1 or height_px < 1 or not 0 < downsample < math.inf:
        raise ValueError(f"expected a mask of 1 px and more and a positive downsample, got {width_px} × {height_px} px, {downsample}")
    normal_groups = {group.lower() for group in exclusions}
    found, cut_out = np.zeros((height_px, width_px), bool), np.zeros((height_px, width_px), bool)
    for annotation in annotations:
        polygon = annotation.polygon / downsample
        if annotation.group.lower() in normal_groups:
            _fill(cut_out, polygon)
        elif not _fill(found, polygon):
            _mark_corners(found, polygon)
    return found & ~cut_out


def _fill(mask: NDArray[np.bool_], polygon: NDArray[np.float64]) -> bool:
    """Set the pixels whose centre is inside; whether there was any, inside the mask or beyond its rim.

    Every edge toggles all pixels to the right of where it crosses the line through a row's centres (even-odd rule), so the cost is that
    of the crossings and of the bounding box, not their product.
    """
    low = np.floor(polygon.min(axis=0)).astype(int)
    width, height = np.floor(polygon.max(axis=0)).astype(int) + 1 - low
    columns, rows = _crossings(polygon - low)
    top, left = max(low[1], 0), max(low[0], 0)
    bottom, right = min(low[1] + height, mask.shape[0]), min(low[0] + width, mask.shape[1])
    if top >= bottom or left >= right:
        return True  # wholly beyond the rim: there is nothing to keep
    toggles = np.zeros((bottom - top, right - left + 1), np.uint8)  # overflow keeps the parity
    inside = (rows >= top - low[1]) & (rows < bottom - low[1])
    shifted = np.clip(columns[inside] + low[0] - left, 0, right - left)
    np.add.at(toggles, (rows[inside] + low[1] - top, shifted), 1)
    filled = (toggles[:, :-1].cumsum(axis=1, dtype=np.uint8) & 1).astype(bool)
    mask[top:bottom, left:right] |= filled
    return bool(filled.any())


def _crossings(polygon: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For every edge and every row whose centre line it crosses: the first column with its centre right of the crossing, and the row."""
    start, end = polygon, np.roll(polygon, -1, axis=0)
    upper, lower = np.where((start[:, 1] <= end[:, 1])[:, None], (start, end), (end, start))
    first, last = (np.ceil(corner[:, 1] - 0.5).astype(np.int64) for corner in (upper, lower))  # rows with upper ≤ centre < lower
    counts = last - first
    edge = np.repeat(np.arange(len(polygon)), counts)
    rows = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts) + first[edge]
    slope = (lower[:, 0] - upper[:, 0])[edge] / (lower[:, 1] - upper[:, 1])[edge]
    x = upper[edge, 0] + (rows + 0.5 - upper[edge, 1]) * slope
    return np.ceil(x - 0.5).astype(np.int64), rows


def _mark_corners(mask: NDArray[np.bool_], polygon: NDArray[np.float64]) -> None:
    x, y = np.floor(polygon).astype(int).T
    inside = (x >= 0) & (y >= 0) & (x < mask.shape[1]) & (y < mask.shape[0])
    mask[y[inside], x[inside]] = True


def _from_asap(element: ElementTree.Element) -> Annotation:
    name, kind = element.get("Name", ""), element.get("Type")
    if kind not in _OUTLINES:
        raise ValueError(f"annotation {name!r} is of type {kind!r}; expected one of {', '.join(_OUTLINES)}")
    corners = element.findall("./Coordinates/Coordinate")
    if all(corner.get("Order") is not None for corner in corners):
        corners = sorted(corners, key=lambda corner: int(corner.attrib["Order"]))
    group = element.get("PartOfGroup", "")
    polygon = _to_polygon([(corner.get("X"), corner.get("Y")) for corner in corners], f"annotation {name!r}")
    return Annotation(group="" if group == "None" else group, name=name, polygon=polygon)


def _from_feature(feature: dict[str, Any]) -> Iterator[Annotation]:
    geometry, properties = feature["geometry"], feature.get("properties") or {}
    group = (properties.get("classification") or {}).get("name") or ""
    if geometry["type"] not in ("Polygon", "MultiPolygon"):
        raise ValueError(f"geometry {geometry['type']!r}")
    parts = [geometry["coordinates"]] if geometry["type"] == "Polygon" else geometry["coordinates"]
    for rings in parts:
        polygons = [_to_polygon(ring, "ring") for ring in rings]
        yield Annotation(group=group, name=properties.get("name") or "", polygon=_bridge(polygons))


def _bridge(rings: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """One polygon of a rim and its holes: from the rim's first corner to each hole, around it, and back."""
    rim, *holes = rings
    if not holes:
        return rim
    return np.concatenate([rim, rim[:1], *(part for hole in holes for part in (hole, hole[:1], rim[:1]))])


def _to_polygon(corners: Sequence[Any], what: str) -> NDArray[np.float64]:
    """(n, 2) float64, without the repetition of the first corner that closes it."""
    if not corners:
        raise ValueError(f"{what} has no coordinates")
    try:
        polygon = np.array([[float(value) for value in corner] for corner in corners], np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{what} has coordinates that are no numbers") from None
    if polygon.ndim != 2 or polygon.shape[1] < 2 or not np.isfinite(polygon).all():
        raise ValueError(f"{what}: expected finite pairs of x and y")
    polygon = polygon[:, :2]
    return polygon[:-1] if len(polygon) > 1 and (polygon[0] == polygon[-1]).all() else polygon
