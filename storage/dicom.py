"""Radiographs and other pictures in DICOM files: file → what a viewer would show, and what the header says without naming anyone.

The steps and formulas are those of DICOM PS3.3 C.7.6.3 (pixels), C.11.1 (modality LUT), C.11.2 (VOI LUT and windows).
"""

import hashlib
import hmac
import math
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import imagecodecs
import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image
from pydicom import uid
from pydicom.encaps import get_frame
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_partial
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi, convert_color_space, pixel_array
from pydicom.tag import Tag

from storage.images import PictureFile, UnreadableImageError

_SIZE_TAGS = ["Rows", "Columns"]
_HEADER_TAGS = [
    "Modality",
    "ViewPosition",
    "BodyPartExamined",
    "PixelSpacing",
    "ImagerPixelSpacing",
    "BurnedInAnnotation",
    "PatientID",
    "NumberOfFrames",
]
_SLIDE_TAGS: list[Any] = [Tag(name) for name in ("ImageType", "SeriesInstanceUID", "TotalPixelMatrixColumns", "TotalPixelMatrixRows")]
_PAST_THE_SLIDE_TAGS = 0x0048_0008
# what pydicom decodes only with GPL packages, or not at all
_DECODERS: dict[str, Callable[[bytes], NDArray[Any]]] = {
    uid.JPEGExtended12Bit: imagecodecs.jpeg_decode,
    uid.JPEGLossless: imagecodecs.jpegsof3_decode,
    uid.JPEGLosslessSV1: imagecodecs.jpegsof3_decode,
    uid.JPEGLSLossless: imagecodecs.jpegls_decode,
    uid.JPEGLSNearLossless: imagecodecs.jpegls_decode,
}
# what broken headers and streams set off in pydicom and in the decoders
_BROKEN = (
    InvalidDicomError,
    BytesLengthException,
    MemoryError,  # a damaged header asks for more than any machine has
    AttributeError,
    ValueError,
    LookupError,
    TypeError,
    RuntimeError,  # includes NotImplementedError and the decoders' own
    EOFError,
    ArithmeticError,
    struct.error,
    zlib.error,
)
# say what is missing; the others may quote a damaged field, and so a name
_QUOTABLE = (InvalidDicomError, AttributeError, RuntimeError)
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE  # its warnings quote fields in the logs


@dataclass(frozen=True)
class DicomHeader:
    """What a DICOM file says of its picture; no field leads to a person.

    Attributes:
        modality: CR, DX, MG, CT, …
        projection: of a radiograph, the view position: PA, AP, LL, …
        body_part: CHEST, …
        spacing_um: µm per pixel from Pixel Spacing, else from Imager Pixel Spacing (in the detector's plane); the geometric mean of rows
            and columns, which hardly ever differ.
        burned_in_annotation: whether text is part of the pixels; None where the file does not say.
        patient_key: pseudonym of the Patient ID, 16 hexadecimal digits; None where there is no ID.
        frames: how many pictures the file holds.
    """

    modality: str | None
    projection: str | None
    body_part: str | None
    spacing_um: float | None
    burned_in_annotation: bool | None
    patient_key: str | None
    frames: int


@dataclass(frozen=True)
class DicomSlideHeader:
    """What a file of a whole slide says of itself.

    Attributes:
        series: Series Instance UID, which all files of the slide share.
        level_pixels: pixels of the level that it holds, all of its tiles together; 0 where it shows the label or the glass.
    """

    series: str
    level_pixels: int


def read_dicom(file: PictureFile) -> NDArray[np.uint8]:
    """Read a picture as a viewer shows it; of a file of many frames the first.

    Grey: modality LUT or rescale, then the first VOI LUT, else the first window (LINEAR, LINEAR_EXACT or SIGMOID). Where there is neither,
    or the window has no width, the full range of the stored bits (after rescaling) becomes 0 to 255, so that the result never depends on
    what the picture shows. MONOCHROME1 is inverted: more absorbing is brighter. Colour: RGB, YBR and palettes become RGB, more than 8
    bits are scaled by their range.

    Args:
        file: A local path, or a binary file open for reading.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        UnreadableImageError: no DICOM file, no picture in it, a damaged one, one in a compression that is not read here, or one of more
            pixels than Pillow's limit against decompression bombs.
        OSError: The file itself could not be opened or read.
    """
    with _opened(file) as dataset:
        _check_size(dataset)
        frame = _decode_first_frame(dataset)  # (H, W) or (H, W, 3)
        if dataset.PhotometricInterpretation == "PALETTE COLOR":
            frame = apply_color_lut(frame, dataset)
            return _scale(frame / np.iinfo(frame.dtype).max)
        if frame.ndim == 3:
            return _scale(frame[..., :3] / (2**dataset.BitsStored - 1))
        shown = _apply_voi(dataset, apply_modality_lut(frame, dataset))  # (H, W) in [0, 1]
        if dataset.PhotometricInterpretation == "MONOCHROME1":
            shown = 1 - shown
        return np.repeat(_scale(shown)[..., None], 3, axis=2)


def dicom_size(file: PictureFile) -> tuple[int, int]:
    """Look up (width_px, height_px) of what `read_dicom` would give, without decoding pixels.

    Raises:
        UnreadableImageError: no DICOM file, or no picture in it.
    """
    with _opened(file, tags=_SIZE_TAGS) as dataset:
        return int(dataset.Columns), int(dataset.Rows)


def read_dicom_header(file: PictureFile, *, salt: str = "") -> DicomHeader:
    """What the header says, without decoding pixels.

    Args:
        file: A local path, or a binary file open for reading, which is left where the pixels begin.
        salt: the key of the patients' pseudonyms (HMAC with SHA-256). Without one, whoever can list the possible patient IDs can find
            whose pseudonym one is; with one, only who knows it.

    Raises:
        UnreadableImageError: no DICOM file, or a damaged header.
    """
    with _opened(file, tags=_HEADER_TAGS) as dataset:
        burned_in = _text(dataset, "BurnedInAnnotation")
        patient = _text(dataset, "PatientID")
        return DicomHeader(
            modality=_text(dataset, "Modality"),
            projection=_text(dataset, "ViewPosition"),
            body_part=_text(dataset, "BodyPartExamined"),
            spacing_um=_spacing_um(dataset.get("PixelSpacing") or dataset.get("ImagerPixelSpacing")),
            burned_in_annotation=None if burned_in is None else burned_in.upper() != "NO",
            patient_key=None if patient is None else hmac.new(salt.encode(), patient.encode(), hashlib.sha256).hexdigest()[:16],
            frames=int(dataset.get("NumberOfFrames") or 1),
        )


def read_slide_header(file: BinaryIO) -> DicomSlideHeader | None:
    """What the header says of a whole slide (VL Whole Slide Microscopy Image); None of another or a damaged file.

    Args:
        file: The first 64 KiB of a DICOM file are enough.
    """
    try:
        dataset = read_partial(file, stop_when=lambda tag, _vr, _length: tag >= _PAST_THE_SLIDE_TAGS, specific_tags=_SLIDE_TAGS)
        if dataset.file_meta.MediaStorageSOPClassUID != uid.VLWholeSlideMicroscopyImageStorage:
            return None
        is_level = "VOLUME" in (dataset.get("ImageType") or ())
        pixels = int(dataset.get("TotalPixelMatrixColumns") or 0) * int(dataset.get("TotalPixelMatrixRows") or 0)
        return DicomSlideHeader(series=str(dataset.get("SeriesInstanceUID") or ""), level_pixels=pixels if is_level else 0)
    except _BROKEN:
        return None


@contextmanager
def _opened(file: PictureFile, *, tags: list[str] | None = None) -> Iterator[pydicom.Dataset]:
    """Read the data set, of the header the named tags alone, and turn what broken content raises into `UnreadableImageError`."""
    try:
        yield pydicom.dcmread(file, stop_before_pixels=tags is not None, specific_tags=tags)
    except UnreadableImageError as error:
        raise UnreadableImageError(f"{_name_of(file)}: {error}") from error
    except OSError as error:
        if error.errno is not None:  # the file system's own
            raise
        raise UnreadableImageError(f"{_name_of(file)}: unreadable DICOM file ({error})") from error
    except _QUOTABLE as error:
        raise UnreadableImageError(f"{_name_of(file)}: unreadable DICOM file ({type(error).__name__}: {error})") from error
    except _BROKEN as error:
        raise UnreadableImageError(f"{_name_of(file)}: unreadable DICOM file ({type(error).__name__})") from None


def _check_size(dataset: pydicom.Dataset) -> None:
    limit = 2 * (Image.MAX_IMAGE_PIXELS or math.inf)  # from where on Pillow, too, refuses
    if dataset.Rows * dataset.Columns > limit:
        raise UnreadableImageError(f"refused as a possible decompression bomb ({dataset.Columns} × {dataset.Rows} px, limit {limit:.0f})")


def _decode_first_frame(dataset: pydicom.Dataset) -> NDArray[Any]:
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax not in _DECODERS:
        return pixel_array(dataset, index=0)  # YBR comes as RGB
    frame = _DECODERS[syntax](get_frame(dataset.PixelData, 0, number_of_frames=int(dataset.get("NumberOfFrames") or 1)))
    if frame.shape[:2] != (dataset.Rows, dataset.Columns):
        raise UnreadableImageError(
            f"the header says {dataset.Columns} × {dataset.Rows} px, the picture has {frame.shape[1]} × {frame.shape[0]}"
        )
    if str(dataset.PhotometricInterpretation).startswith("YBR"):
        return convert_color_space(frame, dataset.PhotometricInterpretation, "RGB")
    if dataset.PixelRepresentation:  # the stream holds the stored bits; their sign is the header's
        unused = frame.itemsize * 8 - dataset.BitsStored
        signed = np.dtype(f"i{frame.itemsize}")
        return (frame << unused).view(signed) >> unused
    return frame


def _apply_voi(dataset: pydicom.Dataset, values: NDArray[Any]) -> NDArray[np.float64]:
    """Values of interest in [0, 1]: by VOI LUT, window or full range."""
    if dataset.get("VOILUTSequence"):
        return _apply_voi_lut(dataset, values)
    center, width = (_first(dataset.get(name)) for name in ("WindowCenter", "WindowWidth"))
    if center is None or width is None or not width > 0:
        low, high = _value_range(dataset)
        return np.clip((values - low) / (high - low), 0, 1)
    x = np.asarray(values, np.float64)
    match dataset.get("VOILUTFunction") or "LINEAR":
        case "LINEAR":  # C.11.2.1.2.1
            return np.clip((x - (center - 0.5)) / max(width - 1, 1e-9) + 0.5, 0, 1)
        case "LINEAR_EXACT":  # C.11.2.1.3.2
            return np.clip((x - center) / width + 0.5, 0, 1)
        case "SIGMOID":  # C.11.2.1.3.1
            return 1 / (1 + np.exp(np.clip(-4 * (x - center) / width, -500, 500)))
        case other:
            raise UnreadableImageError(f"expected a window of the kind LINEAR, LINEAR_EXACT or SIGMOID, got {other!r}")


def _apply_voi_lut(dataset: pydicom.Dataset, values: NDArray[Any]) -> NDArray[np.float64]:
    """By the first VOI LUT; its highest end is white, since tables of 12 bits are declared to have 16."""
    entries, first, _ = (int(number) for number in dataset.VOILUTSequence[0].LUTDescriptor)
    ends = apply_voi(np.array([first, first + (entries or 2**16) - 1]), dataset)
    return np.clip(apply_voi(np.rint(values).astype(np.int64), dataset) / max(float(ends.max()), 1), 0, 1)


def _value_range(dataset: pydicom.Dataset) -> tuple[float, float]:
    """The lowest and the highest value that the stored bits can hold, after the modality LUT."""
    if dataset.get("ModalityLUTSequence"):
        return 0.0, float(2 ** int(dataset.ModalityLUTSequence[0].LUTDescriptor[2]) - 1)
    if "PixelData" not in dataset:
        raise UnreadableImageError(
            "pixels of floating point without a window: nothing says what is black and what white; save them as integers"
        )
    bits = int(dataset.BitsStored)
    stored = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if dataset.PixelRepresentation else (0, 2**bits - 1)
    ends = [float(dataset.get("RescaleSlope", 1)) * value + float(dataset.get("RescaleIntercept", 0)) for value in stored]
    return min(ends), max(ends)


def _scale(shown: NDArray[Any]) -> NDArray[np.uint8]:
    return np.rint(shown * 255).clip(0, 255).astype(np.uint8)


def _spacing_um(spacing_mm: Any) -> float | None:
    if not spacing_mm or len(spacing_mm) != 2 or not all(float(value) > 0 for value in spacing_mm):
        return None
    return 1000 * math.sqrt(float(spacing_mm[0]) * float(spacing_mm[1]))


def _first(value: Any) -> float | None:
    if value is None or value == "":
        return None
    return float(value[0] if isinstance(value, pydicom.multival.MultiValue) else value)


def _text(dataset: pydicom.Dataset, name: str) -> str | None:
    return str(dataset.get(name) or "").strip() or None


def _name_of(file: PictureFile) -> str:
    if isinstance(file, str | os.PathLike):
        return os.fspath(file)
    return str(getattr(file, "full_name", None) or getattr(file, "name", None) or "<DICOM file in memory>")
