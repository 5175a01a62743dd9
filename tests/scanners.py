"""Slides as scanners write them, of real tissue: tiled TIFF, Aperio SVS, Philips TIFF, DICOM."""

from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from skimage import data

TISSUE = np.ascontiguousarray(np.tile(data.immunohistochemistry(), (2, 5, 1))[:700, :2300])  # as wide as a slide, no higher than needed
SMALL = TISSUE[:, :900]
_APERIO = "Aperio Image Library v12.0.15\r\n"
_DICOM_TILE_PX = 256


def write_tiled_tiff(
    path: Path, *, tile_px: tuple[int, int] = (256, 256), byteorder: str = "<", bigtiff: bool = False, **options: object
) -> Path:
    """A pyramid of `TISSUE` in two levels."""
    with tifffile.TiffWriter(path, byteorder=byteorder, bigtiff=bigtiff) as tif:
        for reduction in range(2):
            tiled = {"subfiletype": int(reduction > 0), "metadata": None, "tile": tile_px, "photometric": "rgb", "software": False}
            tif.write(TISSUE[:: 2**reduction, :: 2**reduction], **(tiled | options))
    return path


def write_svs(path: Path, *, tile_px: int, codec: str, **options: object) -> Path:
    """The pages of an Aperio file in their order: level 0, a striped thumbnail, another level (a quarter), label and macro of value 7."""
    title, tiles = "2300x700 [0,0 2300x700]", f"({tile_px}x{tile_px})"
    known = "|AppMag = 40|MPP = 0.2521|ScanScope ID = SS1"
    label = np.full((64, 80, 3), 7, np.uint8)
    plain = {"photometric": "rgb", "metadata": None, "software": False}
    tiled = {**plain, "tile": (tile_px, tile_px), **options}
    striped = {**plain, "compression": "jpeg", "rowsperstrip": 16}
    with tifffile.TiffWriter(path) as tif:
        tif.write(TISSUE, description=f"{_APERIO}{title} {tiles} {codec} Q=70{known}", **tiled)
        tif.write(TISSUE[::8, ::8], description=f"{_APERIO}{title} -> 288x88 - {known}", **striped)
        tif.write(TISSUE[::4, ::4], description=f"{_APERIO}{title} {tiles} -> 575x175 {codec} Q=70{known}", **tiled)
        tif.write(label, description=f"{_APERIO}label 80x64", subfiletype=1, **striped)
        tif.write(label, description=f"{_APERIO}macro 80x64", subfiletype=9, **striped)
    return path


def write_philips_tiff(path: Path) -> Path:
    """A pyramid of `TISSUE` in two levels, 0.25 µm per pixel, which only the XML says."""
    levels = "".join(
        f'<DataObject ObjectType="PixelDataRepresentation"><Attribute Name="DICOM_PIXEL_SPACING" PMSVR="IDoubleArray">{spacing}</Attribute>'
        "</DataObject>"
        for spacing in ("&quot;0.00025&quot; &quot;0.00025&quot;", "&quot;0.0005&quot; &quot;0.0005&quot;")
    )
    xml = (
        '<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport"><Attribute Name="PIM_DP_SCANNED_IMAGES"><Array>'
        '<DataObject ObjectType="DPScannedImage"><Attribute Name="PIM_DP_IMAGE_TYPE">WSI</Attribute>'
        '<Attribute Name="DICOM_PIXEL_SPACING">&quot;0.00025&quot; &quot;0.00025&quot;</Attribute>'
        f'<Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE"><Array>{levels}</Array></Attribute>'
        "</DataObject></Array></Attribute></DataObject>"
    )
    with tifffile.TiffWriter(path) as tif:
        for reduction, description in enumerate((xml, "level=1")):
            tif.write(
                TISSUE[:: 2**reduction, :: 2**reduction],
                description=description,
                subfiletype=int(reduction > 0),
                software="Philips DP v1.0",
                tile=(256, 256),
                photometric="rgb",
                compression="jpeg",
                metadata=None,
            )
    return path


def write_dicom_slide(folder: Path, *, series: str = "one", syntax: uid.UID = uid.JPEGBaseline8Bit) -> Path:
    """`SMALL` in two levels of 0.5 and 1 µm per pixel, the label (value 7) and the whole glass (9), of Jane Doe, patient P17.

    Gives the file of level 0, which is not the first by name.
    """
    write_dicom_level(folder / f"{series}-1.dcm", SMALL[::2, ::2], series=series, spacing_um=1.0, syntax=syntax)
    for flavour, grey in (("LABEL", 7), ("OVERVIEW", 9)):
        write_dicom_level(folder / f"{series}-{flavour}.dcm", np.full((64, 64, 3), grey, np.uint8), series=series, flavour=flavour)
    return write_dicom_level(folder / f"{series}-2.dcm", SMALL, series=series, syntax=syntax)


def write_dicom_level(
    path: Path, pixels: np.ndarray, *, series: str, flavour: str = "VOLUME", spacing_um: float = 0.5, syntax: uid.UID = uid.JPEGBaseline8Bit
) -> Path:
    """One level of a whole slide, TILED_FULL (PS3.3 A.32.8), or with another flavour a picture that goes with it, in one tile."""
    height_px, width_px = pixels.shape[:2]
    tile_px = _DICOM_TILE_PX if flavour == "VOLUME" else max(height_px, width_px)
    slide = _identify(path, series, flavour, reduced=pixels.shape != SMALL.shape)
    slide.file_meta.TransferSyntaxUID = syntax
    slide.SamplesPerPixel, slide.PlanarConfiguration, slide.PixelRepresentation = 3, 0, 0
    slide.BitsAllocated, slide.BitsStored, slide.HighBit = 8, 8, 7
    slide.Rows, slide.Columns = tile_px, tile_px
    slide.TotalPixelMatrixColumns, slide.TotalPixelMatrixRows, slide.TotalPixelMatrixFocalPlanes = width_px, height_px, 1
    slide.DimensionOrganizationType = "TILED_FULL"
    measures, groups = Dataset(), Dataset()
    measures.PixelSpacing = [spacing_um / 1000] * 2
    groups.PixelMeasuresSequence = Sequence([measures])
    slide.SharedFunctionalGroupsSequence = Sequence([groups])
    tiles = _cut(pixels, tile_px)
    slide.NumberOfFrames = len(tiles)
    if syntax == uid.JPEGBaseline8Bit:
        slide.PhotometricInterpretation = "YBR_FULL_422"
        slide.PixelData = encapsulate([imagecodecs.jpeg_encode(tile, level=95, subsampling="422") for tile in tiles])
    else:
        slide.PhotometricInterpretation = "RGB"
        slide.PixelData = b"".join(tile.tobytes() for tile in tiles)
    path.parent.mkdir(parents=True, exist_ok=True)
    slide.save_as(path, enforce_file_format=True)
    return path


def _identify(path: Path, series: str, flavour: str, *, reduced: bool) -> Dataset:
    slide = Dataset()
    slide.file_meta = FileMetaDataset()
    slide.file_meta.MediaStorageSOPClassUID = slide.SOPClassUID = uid.VLWholeSlideMicroscopyImageStorage
    slide.file_meta.MediaStorageSOPInstanceUID = slide.SOPInstanceUID = uid.generate_uid(entropy_srcs=[series, path.name])
    slide.SeriesInstanceUID = uid.generate_uid(entropy_srcs=[series])
    slide.ImageType = ["DERIVED" if reduced else "ORIGINAL", "PRIMARY", flavour, "RESAMPLED" if reduced and flavour == "VOLUME" else "NONE"]
    slide.Modality, slide.PatientID, slide.PatientName = "SM", "P17", "Doe^Jane"
    slide.BurnedInAnnotation = "YES" if flavour == "LABEL" else "NO"
    return slide


def _cut(pixels: np.ndarray, tile_px: int) -> list[np.ndarray]:
    """Tiles (tile_px, tile_px, 3) by rows; those at the right and lower edge are filled up."""
    height_px, width_px = pixels.shape[:2]
    padded = np.pad(pixels, ((0, -height_px % tile_px), (0, -width_px % tile_px), (0, 0)), mode="edge")
    corners = [(y, x) for y in range(0, height_px, tile_px) for x in range(0, width_px, tile_px)]
    return [np.ascontiguousarray(padded[y : y + tile_px, x : x + tile_px]) for y, x in corners]
