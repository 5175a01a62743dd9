"""DICOM: windows by the standard's formulas, every kind of pixels, compressions, damage, and no name in what comes out."""

import math
from dataclasses import asdict
from io import BytesIO
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from storage import dicom
from storage.datasets.miniatures.radiology import radiograph, write_dicom
from storage.dicom import dicom_size, read_dicom, read_dicom_header
from storage.images import UnreadableImageError

RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)


def grey(path: Path) -> np.ndarray:
    image = read_dicom(path)
    assert image.dtype == np.uint8
    assert (image[..., :1] == image).all()
    return image[..., 0]


def by_the_standard(x: float, center: float, width: float, function: str) -> float:
    """PS3.3 C.11.2.1.2 and C.11.2.1.3, case by case, from 0 to 255."""
    if function == "SIGMOID":
        return 255 / (1 + math.exp(min(-4 * (x - center) / width, 700)))
    if function == "LINEAR":
        if x <= center - 0.5 - (width - 1) / 2:
            return 0
        if x > center - 0.5 + (width - 1) / 2:
            return 255
        return ((x - (center - 0.5)) / (width - 1) + 0.5) * 255
    if x <= center - width / 2:
        return 0
    if x > center + width / 2:
        return 255
    return ((x - center) / width + 0.5) * 255


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID", None])
@pytest.mark.parametrize(("center", "width"), [(2048, 4096), (1000, 301), (40, 400), (700, 1)])
def test_windows_follow_the_standards_formulas(tmp_path: Path, function: str | None, center: float, width: float) -> None:
    path = write_dicom(tmp_path / "a.dcm", RAMP, WindowCenter=center, WindowWidth=width, VOILUTFunction=function)
    expected = [by_the_standard(int(x), center, width, function or "LINEAR") for x in RAMP.ravel()]
    np.testing.assert_allclose(grey(path).ravel(), expected, atol=0.5 + 1e-6)


def test_the_window_is_applied_after_the_rescaling(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "ct.dcm", RAMP, Modality="CT", RescaleSlope=2, RescaleIntercept=-1024, WindowCenter=40, WindowWidth=400)
    expected = [by_the_standard(2 * int(x) - 1024, 40, 400, "LINEAR") for x in RAMP.ravel()]
    np.testing.assert_allclose(grey(path).ravel(), expected, atol=0.5 + 1e-6)


def test_of_several_windows_the_first_counts(tmp_path: Path) -> None:
    several = write_dicom(tmp_path / "several.dcm", RAMP, WindowCenter=[500, 3000], WindowWidth=[100, 200])
    one = write_dicom(tmp_path / "one.dcm", RAMP, WindowCenter=500, WindowWidth=100)
    np.testing.assert_array_equal(read_dicom(several), read_dicom(one))


@pytest.mark.parametrize("tags", [{}, {"WindowCenter": 100, "WindowWidth": 0}])
def test_without_a_window_the_stored_bits_are_the_range_whatever_the_picture_shows(tmp_path: Path, tags: dict[str, int]) -> None:
    dark = np.array([[0, 1, 500, 1000]], np.uint16)
    np.testing.assert_array_equal(grey(write_dicom(tmp_path / "a.dcm", dark, BitsStored=12, **tags)), np.rint(dark / 4095 * 255))


def test_signed_values_without_a_window_have_their_middle_grey(tmp_path: Path) -> None:
    signed = np.array([[-2048, 0, 2047]], np.int16)
    np.testing.assert_array_equal(grey(write_dicom(tmp_path / "a.dcm", signed, BitsStored=12)), [[0, 128, 255]])


def test_eight_bits_without_a_window_come_as_they_are(tmp_path: Path) -> None:
    pixels = radiograph(np.random.default_rng(0), 32)
    np.testing.assert_array_equal(grey(write_dicom(tmp_path / "a.dcm", pixels)), pixels)


def test_monochrome1_is_the_negative_of_monochrome2(tmp_path: Path) -> None:
    tags = {"BitsStored": 12, "WindowCenter": 2000, "WindowWidth": 1000}
    positive = grey(write_dicom(tmp_path / "2.dcm", RAMP, **tags))
    negative = grey(write_dicom(tmp_path / "1.dcm", RAMP, PhotometricInterpretation="MONOCHROME1", **tags))
    np.testing.assert_allclose(negative.astype(int), 255 - positive.astype(int), atol=1)
    assert negative[0, 0] == 255


def lookup(entries: list[int], *, representation: str = "OW") -> Dataset:
    """A table of 16-bit entries in either representation that files have."""
    table = Dataset()
    table.add_new("LUTDescriptor", "US", [len(entries), 0, 16])
    table.add_new("LUTData", representation, np.array(entries, "<u2").tobytes() if representation == "OW" else entries)
    return table


@pytest.mark.parametrize("representation", ["OW", "US"])
def test_a_voi_table_goes_before_a_window_and_its_end_is_white(tmp_path: Path, representation: str) -> None:
    table = lookup([value * value // 4096 for value in range(4096)], representation=representation)  # 12 bits declared as 16
    path = write_dicom(tmp_path / "a.dcm", RAMP, BitsStored=12, VOILUTSequence=Sequence([table]), WindowCenter=10, WindowWidth=10)
    np.testing.assert_allclose(grey(path).ravel(), (np.arange(4096) ** 2 // 4096) / 4094 * 255, atol=0.51)


def test_a_modality_table_is_applied(tmp_path: Path) -> None:
    table = lookup([65535 - 16 * value for value in range(4096)])
    table.ModalityLUTType = "US"
    path = write_dicom(tmp_path / "a.dcm", RAMP, BitsStored=12, ModalityLUTSequence=Sequence([table]))
    np.testing.assert_allclose(grey(path).ravel(), (65535 - 16 * np.arange(4096)) / 257, atol=0.51)


def test_colour_comes_as_it_is_in_eight_bits_and_scaled_in_sixteen(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)
    np.testing.assert_array_equal(read_dicom(write_dicom(tmp_path / "8.dcm", colours)), colours)
    np.testing.assert_array_equal(read_dicom(write_dicom(tmp_path / "16.dcm", colours.astype(np.uint16) * 257)), colours)


def test_ybr_becomes_rgb(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)
    ybr = np.asarray(Image.fromarray(colours).convert("YCbCr"))
    path = write_dicom(tmp_path / "a.dcm", ybr, PhotometricInterpretation="YBR_FULL")
    np.testing.assert_allclose(read_dicom(path).astype(int), colours.astype(int), atol=3)


def test_a_palette_is_looked_up(tmp_path: Path) -> None:
    tables = {}
    for number, colour in enumerate(("Red", "Green", "Blue")):
        tables[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        tables[f"{colour}PaletteColorLookupTableData"] = (np.arange(256) * (number + 1) % 256 * 257).astype("<u2").tobytes()
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = read_dicom(write_dicom(tmp_path / "a.dcm", pixels, PhotometricInterpretation="PALETTE COLOR", **tables))
    np.testing.assert_array_equal(image, np.stack([pixels * factor for factor in (1, 2, 3)], axis=-1))


def test_of_many_frames_the_first_is_read(tmp_path: Path) -> None:
    frames = np.stack([RAMP, RAMP[::-1], RAMP.T])
    path = write_dicom(tmp_path / "a.dcm", frames, BitsStored=12)
    np.testing.assert_array_equal(read_dicom(path), read_dicom(write_dicom(tmp_path / "b.dcm", RAMP, BitsStored=12)))
    assert read_dicom_header(path).frames == 3


def _encode(syntax: str, pixels: np.ndarray) -> bytes:
    if syntax == uid.JPEGLosslessSV1:
        return imagecodecs.ljpeg_encode(pixels, bitspersample=12)
    if syntax == uid.JPEG2000Lossless:
        return imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", reversible=True, bitspersample=12)
    return imagecodecs.jpegls_encode(pixels)


@pytest.mark.parametrize("syntax", [uid.JPEGLosslessSV1, uid.JPEGLSLossless, uid.JPEG2000Lossless])
def test_lossless_compressions_of_twelve_bits_read_like_the_bare_pixels(tmp_path: Path, syntax: uid.UID) -> None:
    pixels = radiograph(np.random.default_rng(0), 64).astype(np.uint16) * 16 + 5
    tags = {"BitsStored": 12, "WindowCenter": 2000, "WindowWidth": 3000}
    packed = write_dicom(tmp_path / "packed.dcm", pixels, syntax=syntax, encoded=_encode(syntax, pixels), **tags)
    np.testing.assert_array_equal(read_dicom(packed), read_dicom(write_dicom(tmp_path / "bare.dcm", pixels, **tags)))


def test_lossless_jpeg_of_signed_values_keeps_their_sign(tmp_path: Path) -> None:
    signed = (radiograph(np.random.default_rng(0), 64).astype(np.int16) - 128) * 16
    stored = signed.view(np.uint16) & 0xFFF
    encoded = _encode(uid.JPEGLosslessSV1, stored)
    packed = write_dicom(tmp_path / "packed.dcm", signed, syntax=uid.JPEGLosslessSV1, encoded=encoded, BitsStored=12)
    np.testing.assert_array_equal(read_dicom(packed), read_dicom(write_dicom(tmp_path / "bare.dcm", signed, BitsStored=12)))


def test_run_length_encoding_is_read(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", RAMP, BitsStored=12)
    packed = pydicom.dcmread(path)
    packed.compress(uid.RLELossless)
    packed.save_as(tmp_path / "rle.dcm")
    np.testing.assert_array_equal(read_dicom(tmp_path / "rle.dcm"), read_dicom(path))


@pytest.mark.parametrize("colour", [False, True])
def test_baseline_jpeg_is_read(tmp_path: Path, colour: bool) -> None:
    pixels = np.repeat(radiograph(np.random.default_rng(0), 64)[..., None], 3, axis=2)
    pixels[..., 2] //= 2
    pixels = pixels if colour else pixels[..., 0]
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=95)
    photometric = {"PhotometricInterpretation": "YBR_FULL_422"} if colour else {}
    path = write_dicom(tmp_path / "a.dcm", pixels, syntax=uid.JPEGBaseline8Bit, encoded=stream.getvalue(), **photometric)
    expected = np.asarray(Image.open(stream).convert("RGB"))
    np.testing.assert_allclose(read_dicom(path).astype(int), expected.astype(int), atol=2)


def test_the_size_is_found_without_the_pixels(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", np.zeros((7, 9), np.uint16))
    whole = path.read_bytes()
    assert dicom_size(path) == (9, 7)
    assert dicom_size(BytesIO(whole[:-100])) == (9, 7)
    assert read_dicom(path).shape == (7, 9, 3)


def test_the_header_says_what_the_picture_is_but_not_whose(tmp_path: Path) -> None:
    patient = {"PatientName": "Doe^Jane", "PatientID": "4711", "PatientBirthDate": "19500101", "PatientSex": "F"}
    tags = {"ViewPosition": "PA", "BodyPartExamined": "CHEST", "PixelSpacing": [0.2, 0.2], "BurnedInAnnotation": "YES"}
    header = read_dicom_header(write_dicom(tmp_path / "a.dcm", RAMP, **patient, **tags))
    assert (header.modality, header.projection, header.body_part) == ("DX", "PA", "CHEST")
    assert header.spacing_um == pytest.approx(200)
    assert header.burned_in_annotation is True
    assert header.frames == 1
    assert header.patient_key is not None
    assert len(header.patient_key) == 16
    assert not any(value in str(asdict(header)) for value in patient.values() if len(value) > 1)


def test_a_patients_pseudonym_is_the_same_in_every_file_and_another_with_another_salt(tmp_path: Path) -> None:
    paths = [write_dicom(tmp_path / f"{number}.dcm", RAMP, PatientID=patient) for number, patient in enumerate(("A1", "A1 ", "A2"))]
    one, same, other = (read_dicom_header(path).patient_key for path in paths)
    assert one == same != other
    assert read_dicom_header(paths[0], salt="pepper").patient_key not in (one, other, None)


def test_a_header_that_says_nothing_leaves_everything_unknown(tmp_path: Path) -> None:
    header = read_dicom_header(write_dicom(tmp_path / "a.dcm", RAMP, Modality=None, PixelSpacing=None, PatientID=""))
    assert asdict(header) == {
        "modality": None,
        "projection": None,
        "body_part": None,
        "spacing_um": None,
        "burned_in_annotation": None,
        "patient_key": None,
        "frames": 1,
    }


def test_the_spacing_of_the_detector_counts_where_there_is_no_other(tmp_path: Path) -> None:
    detector = write_dicom(tmp_path / "a.dcm", RAMP, ImagerPixelSpacing=[0.1, 0.4])
    both = write_dicom(tmp_path / "b.dcm", RAMP, ImagerPixelSpacing=[0.1, 0.1], PixelSpacing=[0.09, 0.09])
    assert read_dicom_header(detector).spacing_um == pytest.approx(200)
    assert read_dicom_header(both).spacing_um == pytest.approx(90)


def test_no_error_and_no_warning_quotes_a_damaged_field(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    path = write_dicom(tmp_path / "a.dcm", RAMP, WindowCenter=2000, WindowWidth=2000, PixelSpacing=[3000, 3000])
    path.write_bytes(path.read_bytes().replace(b"2000", b"JANE").replace(b"3000", b"JANE"))
    for read in (read_dicom, read_dicom_header):
        with pytest.raises(UnreadableImageError, match=r"a\.dcm: unreadable DICOM file \(ValueError\)") as caught:
            read(path)
        assert caught.value.__suppress_context__
    assert not any("JANE" in str(warning.message) for warning in recwarn)


def test_a_file_that_is_no_dicom_is_refused_naming_it(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(b"no picture" * 100)
    for read in (read_dicom, dicom_size, read_dicom_header):
        with pytest.raises(UnreadableImageError, match=r"a\.dcm: unreadable DICOM"):
            read(tmp_path / "a.dcm")


def test_pixels_that_end_too_early_are_refused(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", RAMP)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UnreadableImageError, match=r"a\.dcm"):
        read_dicom(path)


@pytest.mark.parametrize("syntax", [uid.JPEGLosslessSV1, uid.JPEGLSLossless, uid.JPEG2000Lossless, uid.JPEGBaseline8Bit])
def test_a_damaged_stream_is_refused(tmp_path: Path, syntax: uid.UID) -> None:
    path = write_dicom(tmp_path / "a.dcm", RAMP, syntax=syntax, encoded=b"\xff\xd8 no stream at all", BitsStored=12)
    with pytest.raises(UnreadableImageError, match=r"a\.dcm"):
        read_dicom(path)


def test_a_stream_of_another_size_than_the_header_says_is_refused(tmp_path: Path) -> None:
    encoded = _encode(uid.JPEGLosslessSV1, RAMP[:32])
    path = write_dicom(tmp_path / "a.dcm", RAMP, syntax=uid.JPEGLosslessSV1, encoded=encoded, BitsStored=12)
    with pytest.raises(UnreadableImageError, match="says 64 × 64 px, the picture has 64 × 32"):
        read_dicom(path)


def test_a_file_without_a_picture_is_refused(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", RAMP, Rows=None, Columns=None)
    for read in (read_dicom, dicom_size):
        with pytest.raises(UnreadableImageError, match=r"Rows|Columns"):
            read(path)


def test_a_pixel_bomb_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom, "_decode_first_frame", lambda _: pytest.fail("decoded"))
    with pytest.raises(UnreadableImageError, match="decompression bomb"):
        read_dicom(write_dicom(tmp_path / "a.dcm", RAMP, Rows=40_000, Columns=40_000))


def test_an_unknown_kind_of_window_is_refused(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", RAMP, WindowCenter=10, WindowWidth=10, VOILUTFunction="CUBIC")
    with pytest.raises(UnreadableImageError, match="got 'CUBIC'"):
        read_dicom(path)


def test_random_damage_is_read_or_refused_but_never_another_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tags = {"BitsStored": 12, "WindowCenter": 2000, "WindowWidth": 3000, "PixelSpacing": [0.1, 0.1]}
    packed = write_dicom(tmp_path / "a.dcm", RAMP, syntax=uid.JPEGLosslessSV1, encoded=_encode(uid.JPEGLosslessSV1, RAMP), **tags)
    whole = packed.read_bytes()
    refused = 0
    for _ in range(200):
        damaged = bytearray(whole)
        for place in rng.integers(132, len(whole), 4):
            damaged[place] = rng.integers(256)
        for read in (read_dicom, dicom_size, read_dicom_header):
            try:
                read(BytesIO(damaged[: rng.integers(len(whole) // 2, len(whole) + 1)]))
            except UnreadableImageError:
                refused += 1
    assert 0 < refused < 600


def test_a_missing_file_is_the_file_systems_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_dicom(tmp_path / "absent.dcm")
