"""Miniatures of the pathology, radiology and one-class data sets in the layout in which they are downloaded, with generated content.

Every writer fills `folder` with a clean download; tests spoil it themselves. Equal seeds give equal files.
"""

import csv
import io
import pickle
import pickletools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar
from xml.etree import ElementTree

import numpy as np
import pydicom
import scipy.io
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid
from scipy.ndimage import gaussian_filter
from skimage import data

from storage.slides import write_pyramid

CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CHESTXRAY_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
# first rows of the published table: name, findings, follow-up, patient, age, gender, projection, original size and spacing
CHESTXRAY_ROWS = (
    "00000001_000.png,Cardiomegaly,0,1,57,M,PA,2682,2749,0.143,0.143",
    "00000001_001.png,Cardiomegaly|Emphysema,1,1,58,M,PA,2894,2729,0.143,0.143",
    "00000002_000.png,No Finding,0,2,80,M,PA,2500,2048,0.171,0.171",
    "00000003_000.png,Hernia,0,3,74,F,PA,2500,2048,0.168,0.168",
    "00000005_000.png,No Finding,0,5,69,F,PA,2048,2500,0.168,0.168",
    "00000011_000.png,No Finding,0,11,75,M,AP,2500,2048,0.168,0.168",
    "00000011_001.png,Infiltration,1,11,75,M,AP,2500,2048,0.168,0.168",
)
CHESTXRAY_TEST = ("00000003_000.png", "00000005_000.png")


def write_camelyon16(
    folder: Path,
    *,
    normal: Sequence[int] = (1, 2, 27),
    tumor: Sequence[int] = (1, 2),
    test: Mapping[int, str] | None = None,
    layout: str = "training and testing",
    size_px: int = 2304,
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
        tissue, outline, cut_out = _lymph_node(rng, size_px)
        if abnormal:
            annotations = "annotations" if flat else f"{'testing' if kind == 'test' else 'training'}/lesion_annotations"
            write_asap(_parent(folder / annotations / f"{name}.xml"), [("_0", outline), ("_2", cut_out)])
            tissue = _restain(tissue, outline)
        write_pyramid(_parent(folder / ("images" if flat else places[kind]) / f"{name}.tif"), tissue, spacing_um=0.243)
    # the bucket's table has a header and suffixes, that of the challenge neither
    rows = [
        f"test_{number:03d}{'.tif' if flat else ''},{word},{'negative' if word == 'Normal' else 'IDC'},0" for number, word in test.items()
    ]
    reference = _parent(folder / ("evaluation" if flat else "testing") / "reference.csv")
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


def write_chestxray14(
    folder: Path, *, rows: Sequence[str] = CHESTXRAY_ROWS, test: Sequence[str] = CHESTXRAY_TEST, size_px: int = 64, seed: int = 0
) -> Path:
    """The published table's rows (rows of the same columns), a radiograph for each in images_001/ and images_002/, and both lists."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "Data_Entry_2017.csv").write_text("\n".join([f"{CHESTXRAY_HEADER},", *(f"{row}," for row in rows)]) + "\n")
    names = [row.split(",")[0] for row in rows]
    for number, (name, row) in enumerate(zip(names, rows, strict=True)):
        path = _parent(folder / f"images_{1 + 2 * number // len(rows):03d}" / "images" / name)
        Image.fromarray(radiograph(rng, size_px, opacity="No Finding" not in row)).save(path)
    (folder / "test_list.txt").write_text("\n".join(test))  # as published: no newline at the end
    (folder / "train_val_list.txt").write_text("\n".join(name for name in names if name not in test))
    return folder


def radiograph(rng: np.random.Generator, size_px: int, *, opacity: bool = False) -> NDArray[np.uint8]:
    """A chest as grey levels (size_px, size_px): bright mediastinum and abdomen, two dark lungs, ribs, and maybe a round opacity."""
    y, x = np.mgrid[-1 : 1 : size_px * 1j, -1 : 1 : size_px * 1j]
    lungs = np.maximum(*(1 - ((x - side) / 0.32) ** 2 - ((y + 0.05) / 0.65) ** 2 for side in (-0.45, 0.45))).clip(0, 0.5)
    image = 190 - 230 * lungs + 12 * np.sin(14 * np.pi * (y + 0.3 * x**2))
    if opacity:
        centre = rng.choice((-0.45, 0.45)) + rng.uniform(-0.1, 0.1), rng.uniform(-0.3, 0.3)
        image += 90 * np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / 0.02)
    return (image + 4 * gaussian_filter(rng.normal(0, 1, image.shape), 0.7)).clip(0, 255).astype(np.uint8)


def small_pictures(labels: Sequence[int], *, size_px: int = 32, seed: int = 0) -> NDArray[np.uint8]:
    """(N, size_px, size_px, 3): stripes whose direction and colour say the class, with noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size_px, :size_px]
    pictures = []
    for label in labels:
        stripes = np.sin((x * np.cos(label * 0.3) + y * np.sin(label * 0.3)) * 0.8 + rng.uniform(0, 6))[..., None]
        tint = np.array([(label * 53) % 128, (label * 91) % 128, (label * 29) % 128])
        pictures.append(60 + tint + 40 * stripes + rng.normal(0, 6, (size_px, size_px, 3)))
    return np.stack(pictures).clip(0, 255).astype(np.uint8)


def write_cifar10(folder: Path, *, per_batch: int = 20, version: str = "py", seed: int = 0) -> Path:
    """Both published forms: "py" (pickles as Python 2 wrote them) or "bin"; five training batches and one of tests."""
    rng = np.random.default_rng(seed)
    target = folder / f"cifar-10-batches-{version}"
    target.mkdir(parents=True)
    batches = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    for number, name in enumerate(batches):
        labels = rng.permutation(np.arange(per_batch) % 10).tolist()
        planes = small_pictures(labels, seed=seed + number).transpose(0, 3, 1, 2).reshape(per_batch, -1)  # (N, 3072)
        if version == "bin":
            (target / f"{name}.bin").write_bytes(np.hstack([np.array(labels, np.uint8)[:, None], planes]).tobytes())
            continue
        of = "testing batch 1 of 1" if name == "test_batch" else f"training batch {number + 1} of 5"
        names = [f"{CIFAR_CLASSES[label]}_s_{index:06d}.png".encode() for index, label in enumerate(labels)]
        content = {b"batch_label": of.encode(), b"labels": labels, b"data": planes, b"filenames": names}
        (target / name).write_bytes(pickle_as_python_2(content))
    (target / ("batches.meta.txt" if version == "bin" else "readme.html")).write_text("\n".join(CIFAR_CLASSES))
    return folder


def pickle_as_python_2(value: Any) -> bytes:
    """Protocol 2 with byte strings and NumPy's module as they were then."""
    stream = io.BytesIO()
    _Python2Pickler(stream, protocol=2).dump(value)
    content = stream.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    assert not any(opcode.name.startswith("BINUNICODE") for opcode, _, _ in pickletools.genops(content))
    return content


class _Python2Pickler(pickle._Pickler):  # type: ignore[name-defined, misc]
    """Writes bytes and text alike as Python 2's byte strings."""

    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_text(self, value: bytes | str) -> None:
        content = value if isinstance(value, bytes) else value.encode("latin1")
        self.write(pickle.BINSTRING + len(content).to_bytes(4, "little") + content)
        self.memoize(value)

    dispatch[bytes] = dispatch[str] = save_text


def write_svhn(folder: Path, *, train: int = 40, test: int = 20, seed: int = 0) -> Path:
    """train_32x32.mat and test_32x32.mat: X (32, 32, 3, N) uint8, y (N, 1) with 10 for the digit zero."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("train", train), ("test", test)):
        digits = rng.permutation(np.arange(count) % 10)
        pictures = small_pictures(digits.tolist(), seed=seed + count).transpose(1, 2, 3, 0)
        labels = np.where(digits == 0, 10, digits).astype(np.uint8)[:, None]
        scipy.io.savemat(folder / f"{name}_32x32.mat", {"X": pictures, "y": labels}, do_compression=True)
    return folder


def write_medmnist(
    path: Path,
    *,
    counts: Mapping[str, int] | None = None,
    classes: int = 2,
    colour: bool = False,
    columns: int = 1,
    size_px: int = 28,
    seed: int = 0,
) -> Path:
    """An .npz as MedMNIST's: {train, val, test}_images (N, H, W[, 3]) uint8 and _labels (N, columns); more columns are findings, 0 or 1."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for part, count in (counts or {"train": 12, "val": 6, "test": 8}).items():
        labels = rng.permutation(np.arange(count) % classes)[:, None] if columns == 1 else (rng.random((count, columns)) < 0.2)
        pictures = small_pictures(labels.sum(axis=1).tolist(), size_px=size_px, seed=seed + count)
        arrays |= {f"{part}_images": pictures if colour else pictures[..., 0], f"{part}_labels": labels.astype(np.uint8)}
    np.savez_compressed(_parent(path), **arrays)
    return path


def write_dicom_folder(folder: Path, *, normal: int = 4, abnormal: int = 2, seed: int = 0) -> Path:
    """Chest radiographs in normal/ and abnormal/, two a patient, PA and AP, spacing 0.143 mm."""
    rng = np.random.default_rng(seed)
    for number in range(normal + abnormal):
        path = _parent(folder / ("normal" if number < normal else "abnormal") / f"IM{number:04d}.dcm")
        pixels = radiograph(rng, 64, opacity=number >= normal).astype(np.uint16) * 16
        tags = {"PatientID": f"P{number // 2}", "ViewPosition": ("PA", "AP")[number % 2], "PixelSpacing": [0.143, 0.143]}
        write_dicom(path, pixels, BitsStored=12, BodyPartExamined="CHEST", PatientName="Doe^Jane", PatientBirthDate="19500101", **tags)
    return folder


def write_dicom(
    path: Path,
    pixels: NDArray[Any],
    *,
    syntax: UID = ExplicitVRLittleEndian,
    encoded: bytes | None = None,
    **tags: Any,
) -> Path:
    """A digital radiograph, MONOCHROME2 or RGB by the shape of `pixels`; `tags` by DICOM keyword replace the defaults, None removes one.

    `encoded` is the first frame's compressed stream, for syntaxes that pydicom does not write.
    """
    colour = pixels.ndim > 2 and pixels.shape[-1] == 3
    frames = 1 if colour or pixels.ndim == 2 else len(pixels)
    height_px, width_px = pixels.shape[-3:-1] if colour else pixels.shape[-2:]
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = UID("1.2.840.10008.5.1.4.1.1.1.1")
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid(entropy_srcs=[path.name])
    defaults = {
        "Modality": "DX",
        "Rows": height_px,
        "Columns": width_px,
        "NumberOfFrames": frames if frames > 1 else None,
        "SamplesPerPixel": 3 if colour else 1,
        "PlanarConfiguration": 0 if colour else None,
        "PhotometricInterpretation": "RGB" if colour else "MONOCHROME2",
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        "BitsAllocated": pixels.itemsize * 8,
        "BitsStored": pixels.itemsize * 8,
    }
    for keyword, value in {**defaults, **tags}.items():
        if value is not None:
            setattr(dataset, keyword, value)
    if "BitsStored" in dataset:
        dataset.HighBit = dataset.BitsStored - 1
    content = pydicom.encaps.encapsulate([encoded]) if encoded is not None else pixels.tobytes()
    dataset.add_new("PixelData", "OB" if encoded is not None or pixels.itemsize == 1 else "OW", content + b"\0" * (len(content) % 2))
    dataset.save_as(_parent(path), enforce_file_format=True)
    return path


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    with _parent(path).open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def _lymph_node(rng: np.random.Generator, size_px: int) -> tuple[NDArray[np.uint8], list[list[float]], list[list[float]]]:
    """Tissue, a disc on glass; the outline of a metastasis in it, and of normal tissue inside that."""
    texture = np.tile(data.immunohistochemistry(), (size_px // 512 + 1, size_px // 512 + 1, 1))
    shift = rng.integers(0, 512, 2)
    texture = np.roll(texture, shift, axis=(0, 1))[:size_px, :size_px]
    y, x = np.mgrid[:size_px, :size_px] / size_px
    glass = rng.normal(243, 1.5, (size_px, size_px, 3)).clip(0, 255).astype(np.uint8)
    tissue = np.where((np.hypot(x - 0.5, y - 0.5) < 0.4)[..., None], texture, glass).astype(np.uint8)
    centre = rng.uniform(0.4, 0.6, 2) * size_px
    return tissue, _circle(centre, 0.22 * size_px, 60), _circle(centre, 0.04 * size_px, 20)


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


def _parent(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
