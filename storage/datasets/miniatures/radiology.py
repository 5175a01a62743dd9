"""Miniatures of the radiology data sets in the layout in which they are downloaded, with drawn radiographs.

Every writer fills `folder` with a clean download; tests spoil it themselves. Equal seeds give equal files.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid
from scipy.ndimage import gaussian_filter

from storage.datasets.miniatures.files import in_folder

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


def write_chestxray14(
    folder: Path, *, rows: Sequence[str] = CHESTXRAY_ROWS, test: Sequence[str] = CHESTXRAY_TEST, size_px: int = 64, seed: int = 0
) -> Path:
    """The published table's rows (rows of the same columns), a radiograph for each in images_001/ and images_002/, and both lists."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "Data_Entry_2017.csv").write_text("\n".join([f"{CHESTXRAY_HEADER},", *(f"{row}," for row in rows)]) + "\n")
    names = [row.split(",")[0] for row in rows]
    for number, (name, row) in enumerate(zip(names, rows, strict=True)):
        path = in_folder(folder / f"images_{1 + 2 * number // len(rows):03d}" / "images" / name)
        Image.fromarray(radiograph(rng, size_px, opacity="No Finding" not in row)).save(path)
    (folder / "test_list.txt").write_text("\n".join(test))  # as published: no newline at the end
    (folder / "train_val_list.txt").write_text("\n".join(name for name in names if name not in test))
    return folder


def plan_chestxray14(patients: int) -> tuple[list[str], list[str]]:
    """Rows of the published table: a radiograph a patient, PA and AP in turn, a third with a mass; and a test list of nearly a third."""
    findings = ("No Finding", "No Finding", "Mass")
    rows = [
        f"{patient + 1:08d}_000.png,{findings[patient // 2 % 3]},0,{patient + 1},57,M,{('PA', 'AP')[patient % 2]},2500,2048,0.168,0.168"
        for patient in range(patients)
    ]
    return rows, [row.split(",")[0] for patient, row in enumerate(rows) if patient // 6 % 3 == 2]


def radiograph(rng: np.random.Generator, size_px: int, *, opacity: bool = False) -> NDArray[np.uint8]:
    """A chest as grey levels (size_px, size_px): bright mediastinum, heart and abdomen, two dark lungs, ribs, and maybe a round opacity.

    Build, position and exposure are drawn anew each time, so that two chests are no near-duplicates of each other.
    """
    y, x = np.mgrid[-1 : 1 : size_px * 1j, -1 : 1 : size_px * 1j]
    x, y = x + rng.uniform(-0.15, 0.15) + rng.uniform(-0.12, 0.12) * y, y + rng.uniform(-0.15, 0.15)
    apart, half_width, half_height = rng.uniform(0.36, 0.52), rng.uniform(0.22, 0.36), rng.uniform(0.45, 0.8)
    lungs = np.maximum(*(1 - ((x - side) / half_width) ** 2 - (y / half_height) ** 2 for side in (-apart, apart))).clip(0, 0.5)
    heart = (1 - ((x - rng.uniform(0.02, 0.25)) / rng.uniform(0.15, 0.4)) ** 2 - ((y - 0.3) / rng.uniform(0.25, 0.45)) ** 2).clip(0, 0.5)
    ribs = np.sin(rng.uniform(9, 18) * np.pi * (y + rng.uniform(0.1, 0.6) * x**2) + rng.uniform(0, 2 * np.pi))
    image = rng.uniform(165, 205) - rng.uniform(180, 260) * lungs + rng.uniform(60, 140) * heart * lungs + rng.uniform(8, 20) * ribs
    if opacity:
        centre = rng.choice((-apart, apart)) + rng.uniform(-0.1, 0.1), rng.uniform(-0.3, 0.3)
        image += 110 * np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / 0.02)
    return (image + 4 * gaussian_filter(rng.normal(0, 1, image.shape), 0.7)).clip(0, 255).astype(np.uint8)


def write_dicom_folder(folder: Path, *, normal: int = 4, abnormal: int = 2, seed: int = 0) -> Path:
    """Chest radiographs in normal/ and abnormal/, two a patient, PA and AP, spacing 0.143 mm."""
    rng = np.random.default_rng(seed)
    for number in range(normal + abnormal):
        path = in_folder(folder / ("normal" if number < normal else "abnormal") / f"IM{number:04d}.dcm")
        pixels = radiograph(rng, 64, opacity=number >= normal).astype(np.uint16) * 16
        tags: dict[str, Any] = {"PatientID": f"P{number // 2}", "ViewPosition": ("PA", "AP")[number % 2], "PixelSpacing": [0.143, 0.143]}
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
    dataset.save_as(in_folder(path), enforce_file_format=True)
    return path
