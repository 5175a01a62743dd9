"""What comes out of the slide formats that scanners write: tiled TIFF and Aperio SVS in their variants, Philips TIFF, DICOM.

They are generated here. Hamamatsu NDPI (JPEG of one strip with restart markers indexed in private tags) and 3DHISTECH MRXS (an index of
binary files) cannot be: nothing but their scanners writes them. They go to OpenSlide by their suffix, which is all that is tested of them.
"""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import fsspec
import numpy as np
import openslide
import pydicom
import pytest
from pydicom import uid

from storage import filesystems
from storage.datasets.dicom_folder import DicomFolderSource, list_dicom_folder
from storage.datasets.folder import FolderSource, list_folder
from storage.datasets.miniatures.files import write_csv
from storage.datasets.miniatures.radiology import write_dicom
from storage.dicom_slides import keep_one_file_a_slide, slide_header_of
from storage.slides import OpenSlideReader, TiffSlide, is_slide, open_slide
from storage.tiff_levels import UnreadableSlideError
from tests.scanners import SMALL, TISSUE, write_dicom_level, write_dicom_slide, write_philips_tiff, write_svs, write_tiled_tiff


def assert_reads_as_openslide(path: Path, vendor: str, *, written: np.ndarray = TISSUE, fast: bool) -> None:
    """Every level from its corner, and a region across tiles at an odd place; pixels lie where they were written."""
    with open_slide(path) as slide, openslide.OpenSlide(path) as oracle:
        assert isinstance(slide, TiffSlide if fast else OpenSlideReader)
        assert oracle.properties["openslide.vendor"] == vendor
        assert slide.level_dimensions == oracle.level_dimensions
        for level, size in enumerate(oracle.level_dimensions):
            expected = np.asarray(oracle.read_region((0, 0), level, size).convert("RGB"))
            np.testing.assert_array_equal(slide.read_region(0, 0, *size, level=level), expected)
            np.testing.assert_array_equal(slide.read_region(201, 33, 180, 140, level=level), expected[33:173, 201:381])
        assert np.abs(slide.read_region(0, 0, slide.width_px, slide.height_px).astype(int) - written).mean() < 8
    assert is_slide(path)


TIFFS: dict[str, tuple[bool, dict[str, object]]] = {
    "jpeg, wide tiles": (True, {"compression": "jpeg", "tile_px": (128, 512)}),
    "jpeg, tiles of 240 as of Aperio": (True, {"compression": "jpeg", "tile_px": (240, 240)}),
    "jpeg, one tile wider than the slide": (True, {"compression": "jpeg", "tile_px": (2304, 2304)}),
    "lzw, tiles of 128": (True, {"compression": "lzw", "tile_px": (128, 128)}),
    "lzw, big-endian BigTIFF": (True, {"compression": "lzw", "byteorder": ">", "bigtiff": True}),
    "uncompressed": (True, {}),
    "deflate": (False, {"compression": "deflate"}),
}


@pytest.mark.parametrize("kind", TIFFS)
def test_generic_tiff_is_read_as_openslide_reads_it(tmp_path: Path, kind: str) -> None:
    fast, options = TIFFS[kind]
    assert_reads_as_openslide(write_tiled_tiff(tmp_path / "slide.tif", **options), "generic-tiff", fast=fast)  # type: ignore[arg-type]


SVS: dict[str, tuple[bool, dict[str, object]]] = {
    "jpeg": (True, {"tile_px": 240, "codec": "JPEG/RGB", "compression": "jpeg"}),
    "lzw": (True, {"tile_px": 256, "codec": "LZW", "compression": "lzw"}),
    "jpeg 2000": (False, {"tile_px": 256, "codec": "J2K/YUV16", "compression": "aperio_jp2000_rgb"}),
}


@pytest.mark.parametrize("kind", SVS)
def test_svs_is_read_as_openslide_reads_it_without_label_and_macro(tmp_path: Path, kind: str) -> None:
    fast, options = SVS[kind]
    path = write_svs(tmp_path / "slide.svs", **options)  # type: ignore[arg-type]
    assert_reads_as_openslide(path, "aperio", fast=fast)
    with open_slide(path) as slide:
        assert slide.level_dimensions == ((2300, 700), (575, 175))  # neither thumbnail nor label nor macro is a level
        assert slide.spacing_um == pytest.approx(0.2521)
        assert slide.thumbnail(100).min() > 7


def test_philips_tiff_goes_to_openslide_with_its_spacing(tmp_path: Path) -> None:
    path = write_philips_tiff(tmp_path / "slide.tiff")
    assert_reads_as_openslide(path, "philips", fast=False)
    with open_slide(path) as slide:
        assert slide.spacing_um == pytest.approx(0.25)


@pytest.mark.parametrize("name", ["a.ndpi", "a.mrxs", "a.scn", "a.bif", "a.vms"])
def test_what_only_scanners_write_goes_to_openslide_by_its_suffix(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"no slide")
    assert is_slide(tmp_path / name)
    with pytest.raises(UnreadableSlideError, match=rf"{name}.*OpenSlide"):
        open_slide(tmp_path / name)


@pytest.mark.parametrize("syntax", [uid.JPEGBaseline8Bit, uid.ExplicitVRLittleEndian])
def test_a_dicom_slide_is_read_by_openslide_with_levels_and_spacing(tmp_path: Path, syntax: uid.UID) -> None:
    path = write_dicom_slide(tmp_path, syntax=syntax)
    assert openslide.OpenSlide.detect_format(path) == "dicom"
    assert_reads_as_openslide(path, "dicom", written=SMALL, fast=False)
    with open_slide(path) as slide:
        assert slide.level_dimensions == ((900, 700), (450, 350))
        assert slide.spacing_um == pytest.approx(0.5)


def test_is_slide_agrees_with_openslide_on_dicom(tmp_path: Path) -> None:
    write_dicom_slide(tmp_path)
    write_dicom(tmp_path / "radiograph.dcm", np.zeros((300, 300), np.uint16))
    (tmp_path / "broken.dcm").write_bytes(b"DICM" * 100)
    (tmp_path / "empty.dcm").write_bytes(b"")
    for path in tmp_path.iterdir():
        assert is_slide(path) == (openslide.OpenSlide.detect_format(path) == "dicom"), path
    with pytest.raises(FileNotFoundError):
        is_slide(tmp_path / "absent.dcm")


def listed_by_folder(path: Path) -> list[str]:
    return [item.uri for item in list_folder(FolderSource(path=str(path)))]


def listed_by_dicom(path: Path) -> list[str]:
    return [item.uri for item in list_dicom_folder(DicomFolderSource(path=str(path)))]


@pytest.mark.parametrize("listed", [listed_by_folder, listed_by_dicom])
def test_a_series_is_one_item_named_by_its_largest_level(tmp_path: Path, listed: Callable[[Path], list[str]]) -> None:
    slides = [write_dicom_slide(tmp_path / "normal", series=series) for series in ("one", "two")]
    radiographs = [write_dicom(tmp_path / f"normal/radiograph-{n}.dcm", np.full((64, 64), n, np.uint8)) for n in range(2)]
    broken = tmp_path / "normal" / "broken.dcm"
    broken.write_bytes(b"no DICOM")
    assert sorted(listed(tmp_path)) == sorted(str(path) for path in (*slides, *radiographs, broken))


def test_a_table_that_names_another_file_of_the_slide_has_its_way(tmp_path: Path) -> None:
    write_dicom_slide(tmp_path)
    table = write_csv(tmp_path / "labels.csv", [{"uri": "one-1.dcm", "label": "1"}])
    (item,) = list_dicom_folder(DicomFolderSource(path=str(table)))
    assert (Path(item.uri).name, item.label, item.excluded) == ("one-1.dcm", 1, None)


def test_copies_in_two_folders_are_two_slides_and_a_level_of_two_files_is_one(tmp_path: Path) -> None:
    first, second = (write_dicom_slide(tmp_path / name) for name in ("a", "b"))
    part = write_dicom_level(tmp_path / "b" / "one-3.dcm", SMALL, series="one")
    files = sorted(str(path) for path in tmp_path.rglob("*.dcm"))
    assert str(part) in files
    assert keep_one_file_a_slide(files) == [str(first), str(second)]


def test_a_label_alone_is_kept_as_a_slide_that_cannot_be_read_and_never_as_a_picture(tmp_path: Path) -> None:
    label = write_dicom_level(tmp_path / "normal" / "label.dcm", np.full((64, 64, 3), 7, np.uint8), series="x", flavour="LABEL")
    assert listed_by_folder(tmp_path) == [str(label)]
    assert is_slide(label)
    with pytest.raises(UnreadableSlideError, match="No pyramid levels"):
        open_slide(label)


@pytest.mark.filterwarnings("ignore:Expected")  # pydicom, of the damage
def test_a_header_without_series_or_size_and_random_damage_are_no_error(tmp_path: Path) -> None:
    whole = write_dicom_slide(tmp_path / "whole").read_bytes()
    dataset = pydicom.dcmread(BytesIO(whole))
    del dataset.SeriesInstanceUID, dataset.TotalPixelMatrixRows
    dataset.save_as(tmp_path / "bare.dcm")
    header = slide_header_of(str(tmp_path / "bare.dcm"))
    assert header is not None
    assert (header.series, header.level_pixels) == ("", 0)
    rng = np.random.default_rng(0)
    damaged_path = tmp_path / "damaged.dcm"
    for _ in range(200):
        damaged = bytearray(whole[:4000])
        for position in rng.integers(128, 1500, 4):
            damaged[position] = rng.integers(256)
        damaged_path.write_bytes(damaged)
        is_slide(damaged_path)


def test_a_dicom_slide_in_an_object_store_is_one_item_that_says_what_to_do(tmp_path: Path) -> None:
    write_dicom_slide(tmp_path / "normal")
    store = fsspec.filesystem("memory")
    try:
        store.put(str(tmp_path), "/wsi", recursive=True)
        (item,) = list_folder(FolderSource(path="memory://wsi"))
        assert filesystems.name_of(item.uri) == "one-2.dcm"
        assert is_slide(item.uri)
        with pytest.raises(UnreadableSlideError, match="from a local disk: copy it there"):
            open_slide(item.uri)
    finally:
        store.store.clear()
