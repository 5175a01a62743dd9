"""A miniature of Camelyon16 in the layouts in which it is downloaded: real stained texture in an invented arrangement.

The writer fills `folder` with a clean download; tests spoil it themselves. Equal seeds give equal files.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from skimage import data

from storage.datasets.miniatures.files import in_folder
from storage.slides import write_pyramid


def write_camelyon16(
    folder: Path,
    *,
    normal: Sequence[int] = (1, 2, 27),
    tumor: Sequence[int] = (1, 2),
    test: Mapping[int, str] | None = None,
    layout: str = "training and testing",
    size_px: int = 2304,
    radius_shares: tuple[float, float] = (0.22, 0.22),
    seed: int = 0,
) -> Path:
    """Slides of `size_px` at 0.243 µm with real stained texture; a tumour has one outline with a cut-out, and is restained inside.

    Args:
        folder: to fill.
        normal: numbers of normal training slides.
        tumor: numbers of tumour training slides.
        test: class ("Tumor", "Normal") by number of test slide.
        layout: "training and testing" (GigaDB, Google Drive; annotations unpacked) or "flat" (s3://camelyon-dataset).
        size_px: width and height of the slides; from 2048 a .tif counts as a slide.
        radius_shares: of the outlines of training and of test slides, in sides of a slide.
        seed: of texture and outlines.
    """
    rng = np.random.default_rng(seed)
    test = {1: "Tumor", 2: "Normal"} if test is None else test
    flat = layout == "flat"
    places = {"normal": "training/normal", "tumor": "training/tumor", "test": "testing/images"}
    slides = [("normal", number, False) for number in normal] + [("tumor", number, True) for number in tumor]
    slides += [("test", number, word == "Tumor") for number, word in test.items()]
    for kind, number, abnormal in slides:
        name = f"{kind}_{number:03d}"
        tissue, outline, cut_out = _lymph_node(rng, size_px, radius_share=radius_shares[kind == "test"])
        if abnormal:
            annotations = "annotations" if flat else f"{'testing' if kind == 'test' else 'training'}/lesion_annotations"
            write_asap(in_folder(folder / annotations / f"{name}.xml"), [("_0", outline), ("_2", cut_out)])
            tissue = _restain(tissue, outline)
        write_pyramid(in_folder(folder / ("images" if flat else places[kind]) / f"{name}.tif"), tissue, spacing_um=0.243)
    # the bucket's table has a header and suffixes, that of the challenge neither
    rows = [
        f"test_{number:03d}{'.tif' if flat else ''},{word},{'negative' if word == 'Normal' else 'IDC'},0" for number, word in test.items()
    ]
    reference = in_folder(folder / ("evaluation" if flat else "testing") / "reference.csv")
    reference.write_text("\n".join((["image,class,type,center"] if flat else []) + rows) + "\n")
    return folder


def write_asap(path: Path, outlines: Sequence[tuple[str, Sequence[Sequence[float]]]]) -> Path:
    """ASAP's XML of polygons, each with its group."""
    root = ElementTree.Element("ASAP_Annotations")
    annotations = ElementTree.SubElement(root, "Annotations")
    for number, (group, polygon) in enumerate(outlines):
        name = f"Annotation {number}"
        element = ElementTree.SubElement(annotations, "Annotation", Name=name, Type="Polygon", PartOfGroup=group, Color="#F4FA58")
        corners = ElementTree.SubElement(element, "Coordinates")
        for order, (x, y) in enumerate(polygon):
            ElementTree.SubElement(corners, "Coordinate", Order=str(order), X=f"{x:.4f}", Y=f"{y:.4f}")
    groups = ElementTree.SubElement(root, "AnnotationGroups")
    for group in sorted({group for group, _ in outlines}):
        ElementTree.SubElement(ElementTree.SubElement(groups, "Group", Name=group, PartOfGroup="None", Color="#00ff00"), "Attributes")
    path.write_bytes(b'<?xml version="1.0"?>\n' + ElementTree.tostring(root))
    return path


def _lymph_node(
    rng: np.random.Generator, size_px: int, *, radius_share: float
) -> tuple[NDArray[np.uint8], list[list[float]], list[list[float]]]:
    """Tissue, a disc on glass; the outline of a metastasis in it, and of normal tissue inside that."""
    texture = np.tile(data.immunohistochemistry(), (size_px // 512 + 1, size_px // 512 + 1, 1))
    shift = rng.integers(0, 512, 2)
    texture = np.roll(texture, shift, axis=(0, 1))[:size_px, :size_px]
    y, x = np.mgrid[:size_px, :size_px] / size_px
    glass = np.tile(rng.normal(243, 1.5, (256, 256, 3)).clip(0, 255).astype(np.uint8), (size_px // 256 + 1, size_px // 256 + 1, 1))
    glass = glass[:size_px, :size_px]
    tissue = np.where((np.hypot(x - 0.5, y - 0.5) < 0.4)[..., None], texture, glass).astype(np.uint8)
    centre = rng.uniform(0.4, 0.6, 2) * size_px
    return tissue, _circle(centre, radius_share * size_px, 60), _circle(centre, 0.04 * size_px, 20)


def _circle(centre: NDArray[np.float64], radius_px: float, corners: int) -> list[list[float]]:
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    return (centre + radius_px * np.stack([np.cos(angles), np.sin(angles)], axis=1)).tolist()


def _restain(tissue: NDArray[np.uint8], outline: list[list[float]]) -> NDArray[np.uint8]:
    """Darker and bluer inside a circle's outline."""
    centre = np.mean(outline, axis=0)
    radius_px = np.hypot(*(np.array(outline[0]) - centre))
    y, x = np.mgrid[: len(tissue), : len(tissue)]
    inside = np.hypot(x - centre[0], y - centre[1]) < radius_px
    restained = tissue.astype(float) * (0.6, 0.55, 0.8)
    return np.where(inside[..., None], restained, tissue).astype(np.uint8)
