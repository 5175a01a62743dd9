import io
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import imagecodecs
import numpy as np
import openslide
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data

from storage import tiff_levels
from storage.slides import OpenSlideReader, TiffSlide, is_slide, open_slide, write_pyramid
from storage.tiff_levels import UnreadableSlideError

APERIO = "Aperio Image Library v11\r\n1427x1301 (256x256) JPEG|AppMag = 20|MPP = 0.4990|Filename = x"


@cache
def tissue(height_px: int, width_px: int) -> np.ndarray:
    ihc = data.immunohistochemistry()
    return np.ascontiguousarray(np.tile(ihc, (height_px // 512 + 1, width_px // 512 + 1, 1))[:height_px, :width_px])


def write_tiff(path: Path, level0: np.ndarray, *, reductions: int = 2, tile_px: int = 256, **options: object) -> None:
    with tifffile.TiffWriter(path) as tif:
        for reduction in range(reductions + 1):
            level = level0[:: 2**reduction, :: 2**reduction]
            layout = {
                "tile": (tile_px, tile_px),
                "photometric": "rgb",
                "subfiletype": int(reduction > 0),
                "metadata": None,
                "software": False,
            }
            tif.write(level, **(layout | options))


def whole_level(path: Path, level: int) -> np.ndarray:
    """The oracle: OpenSlide reads a whole level from its corner, where it has nothing to interpolate."""
    with openslide.OpenSlide(path) as slide:
        return np.asarray(slide.read_region((0, 0), level, slide.level_dimensions[level]).convert("RGB"))


def overwrite_tile(path: Path, index: int, content: bytes, *, at_byte: int = 0) -> None:
    with tifffile.TiffFile(path) as tif:
        offset, count = tif.pages[0].dataoffsets[index], tif.pages[0].databytecounts[index]
    with path.open("r+b") as file:
        file.seek(offset + at_byte % count)
        file.write(content)


@pytest.fixture(scope="module")
def slide_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slides") / "odd.tif"
    write_pyramid(path, tissue(2301, 2427), spacing_um=0.5)
    return path


@pytest.fixture
def small_path(tmp_path: Path) -> Path:
    path = tmp_path / "small.tif"
    write_pyramid(path, tissue(600, 900), spacing_um=0.25)
    return path


KINDS = {
    "jpeg": {"compression": "jpeg"},
    "jpeg 4:2:0 at low quality": {"compression": "jpeg", "subsampling": (2, 2), "compressionargs": {"level": 40}},
    "jpeg 4:4:4": {"compression": "jpeg", "subsampling": (1, 1)},
    "lzw": {"compression": "lzw"},
    "lzw with predictor": {"compression": "lzw", "predictor": 2},
    "uncompressed": {},
    "tiles of 512": {"compression": "jpeg", "tile_px": 512},
    "aperio": {"compression": "jpeg", "description": APERIO},
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_fast_reader_gives_openslides_levels_and_pixels(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "slide.tif"
    write_tiff(path, tissue(701, 827), **KINDS[kind])
    with open_slide(path) as fast, OpenSlideReader(path) as slow:
        assert isinstance(fast, TiffSlide)
        assert fast.level_dimensions == slow.level_dimensions
        assert fast.level_downsamples == slow.level_downsamples
        assert fast.spacing_um == slow.spacing_um
        for level, (width_px, height_px) in enumerate(fast.level_dimensions):
            np.testing.assert_array_equal(fast.read_region(0, 0, width_px, height_px, level=level), whole_level(path, level))


@pytest.mark.parametrize("photometric", [2, 6])
@pytest.mark.parametrize("stored", ["rgb", "ycbcr"])
def test_the_tag_decides_the_colours_of_jpeg_tiles_as_in_openslide(tmp_path: Path, photometric: int, stored: str) -> None:
    path = tmp_path / "slide.tif"
    tile = imagecodecs.jpeg_encode(tissue(256, 256), level=90, colorspace="rgb", outcolorspace=stored)
    tifffile.imwrite(
        path, iter([tile]), shape=(256, 256, 3), dtype="uint8", tile=(256, 256), photometric="rgb", compression=7, metadata=None
    )
    with tifffile.TiffFile(path, mode="r+") as tif:
        tif.pages[0].tags[262].overwrite(photometric)
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read_region(0, 0, 256, 256), whole_level(path, 0))


def test_tiles_that_share_their_jpeg_tables_are_read(tmp_path: Path) -> None:
    path = tmp_path / "slide.tif"
    tile = imagecodecs.jpeg_encode(tissue(256, 256), level=90)
    tables, rest, position = b"", b"", 2
    while tile[position + 1] != 0xDA:  # up to the start of the scan: marker, length, content
        (length,) = struct.unpack(">H", tile[position + 2 : position + 4])
        segment = tile[position : position + 2 + length]
        if segment[1] in (0xDB, 0xC4):  # quantisation and Huffman tables
            tables += segment
        else:
            rest += segment
        position += len(segment)
    shared = b"\xff\xd8" + tables + b"\xff\xd9"
    layout = {
        "tile": (256, 256),
        "photometric": "rgb",
        "compression": 7,
        "metadata": None,
        "extratags": [(347, 7, len(shared), shared, True)],
    }
    tifffile.imwrite(path, iter([b"\xff\xd8" + rest + tile[position:]]), shape=(256, 256, 3), dtype="uint8", **layout)
    with open_slide(path) as slide:
        assert isinstance(slide, TiffSlide)
        np.testing.assert_array_equal(slide.read_region(0, 0, 256, 256), whole_level(path, 0))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_region_is_openslides_with_white_outside(slide_path: Path, data: st.DataObject) -> None:
    with open_slide(slide_path) as slide:
        level = data.draw(st.integers(0, len(slide.level_dimensions) - 1))
        level_width_px, level_height_px = slide.level_dimensions[level]
        x_px, y_px = data.draw(st.integers(-300, level_width_px + 50)), data.draw(st.integers(-300, level_height_px + 50))
        width_px, height_px = data.draw(st.integers(1, 600)), data.draw(st.integers(1, 600))
        padded = np.pad(oracle(slide_path, level), ((300, 700), (300, 700), (0, 0)), constant_values=255)
        expected = padded[y_px + 300 : y_px + 300 + height_px, x_px + 300 : x_px + 300 + width_px]
        np.testing.assert_array_equal(slide.read_region(x_px, y_px, width_px, height_px, level=level), expected)


oracle = cache(whole_level)


@settings(max_examples=30, deadline=None)
@given(x_px=st.integers(-40, 1100), y_px=st.integers(-40, 1100), side_px=st.integers(1, 300), level=st.integers(0, 1))
def test_both_readers_agree_on_any_region_where_downsamples_are_whole(
    whole_downsamples_path: Path, x_px: int, y_px: int, side_px: int, level: int
) -> None:
    with TiffSlide(str(whole_downsamples_path)) as fast, OpenSlideReader(whole_downsamples_path) as slow:
        expected = slow.read_region(x_px, y_px, side_px, side_px + 7, level=level)
        np.testing.assert_array_equal(fast.read_region(x_px, y_px, side_px, side_px + 7, level=level), expected)


@pytest.fixture(scope="module")
def whole_downsamples_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slides") / "even.tif"
    write_pyramid(path, tissue(1100, 1124), spacing_um=0.5)
    return path


def test_a_written_pyramid_is_a_generic_tiff_to_openslide_with_its_spacing(slide_path: Path) -> None:
    with openslide.OpenSlide(slide_path) as slide:
        assert slide.properties["openslide.vendor"] == "generic-tiff"
        assert slide.level_dimensions == ((2427, 2301), (1213, 1150), (606, 575))
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.5, rel=1e-6)
        assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(0.5, rel=1e-6)
    with open_slide(slide_path) as read:
        assert (read.width_px, read.height_px, read.spacing_um) == (2427, 2301, pytest.approx(0.5, rel=1e-6))


def test_a_written_pyramid_shows_the_picture_and_its_box_averages(slide_path: Path) -> None:
    with open_slide(slide_path) as slide:
        for level in range(3):
            side = 2**level
            source = tissue(2301, 2427)[60 * side : 260 * side, 100 * side : 350 * side]
            boxes = source.reshape(200, side, 250, side, 3).mean(axis=(1, 3))
            assert np.abs(slide.read_region(100, 60, 250, 200, level=level) - boxes).mean() < 6
            assert np.abs(slide.read_region(101, 60, 250, 200, level=level) - boxes).mean() > 6  # one pixel off


def test_the_same_array_is_written_to_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.tif", "b.tif"):
        write_pyramid(tmp_path / name, tissue(600, 900), spacing_um=0.25)
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()


def test_a_failed_write_leaves_the_old_slide_and_nothing_half_written(small_path: Path) -> None:
    before = small_path.read_bytes()
    with pytest.raises(ValueError, match="tile"):
        write_pyramid(small_path, tissue(600, 900), spacing_um=0.25, tile_px=100)
    assert small_path.read_bytes() == before
    assert [path.name for path in small_path.parent.iterdir()] == [small_path.name]


@pytest.mark.parametrize(
    ("array", "spacing_um"), [(np.zeros((64, 64), np.uint8), 0.5), (np.zeros((64, 64, 3)), 0.5), (tissue(64, 64), 0.0)]
)
def test_a_pyramid_of_no_rgb_or_no_spacing_is_refused(tmp_path: Path, array: np.ndarray, spacing_um: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        write_pyramid(tmp_path / "x.tif", array, spacing_um=spacing_um)


@pytest.mark.parametrize(
    ("tags", "spacing_um"),
    [
        ({"resolution": (40_000, 40_000), "resolutionunit": "CENTIMETER"}, 0.25),
        ({"resolution": (101_600, 101_600), "resolutionunit": "INCH"}, 0.25),
        ({"description": APERIO, "resolution": (72, 72), "resolutionunit": "INCH"}, 0.499),
        ({"resolution": (72, 72), "resolutionunit": "INCH"}, None),
        ({"resolution": (96, 96), "resolutionunit": "INCH"}, None),
        ({"resolution": (28.35, 28.35), "resolutionunit": "CENTIMETER"}, None),
        ({"resolution": (40_000, 40_000), "resolutionunit": "NONE"}, None),
        ({}, None),
    ],
)
def test_both_readers_take_the_spacing_from_measured_tags_only(tmp_path: Path, tags: dict[str, object], spacing_um: float | None) -> None:
    path = tmp_path / "slide.tif"
    write_tiff(path, tissue(300, 300), reductions=0, compression="jpeg", **tags)
    with TiffSlide(str(path)) as fast, OpenSlideReader(path) as slow:
        for slide in (fast, slow):
            assert slide.spacing_um == (None if spacing_um is None else pytest.approx(spacing_um, rel=1e-6))


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.8, 0.95, 0.999])
def test_a_truncated_slide_is_refused_by_name(slide_path: Path, tmp_path: Path, share: float) -> None:
    whole = slide_path.read_bytes()
    cut = tmp_path / "cut.tif"
    cut.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UnreadableSlideError, match=r"cut\.tif"):
        open_slide(cut)


def test_a_slide_cut_between_two_levels_is_refused(slide_path: Path, tmp_path: Path) -> None:
    with tifffile.TiffFile(slide_path) as tif:
        end_of_level0 = max(o + n for o, n in zip(tif.pages[0].dataoffsets, tif.pages[0].databytecounts, strict=True))
    (tmp_path / "cut.tif").write_bytes(slide_path.read_bytes()[:end_of_level0])
    with pytest.raises(UnreadableSlideError, match="truncated: a directory"):
        open_slide(tmp_path / "cut.tif")


# Tile 5 of 4 columns stands in row 1, column 1. Zeros from its start, zeros to its end, foreign markers inside
@pytest.mark.parametrize(("content", "at_byte"), [(bytes(5000), 0), (bytes(5000), -5000), (b"\xff\xff\xff\xf7", 3000), (b"\xff\xd8", 4001)])
def test_a_corrupt_tile_is_named_and_its_neighbours_read(small_path: Path, content: bytes, at_byte: int) -> None:
    with open_slide(small_path) as slide:
        before = slide.read_region(0, 0, 900, 600)
    overwrite_tile(small_path, 5, content, at_byte=at_byte)
    with open_slide(small_path) as slide:
        for _ in range(2):
            with pytest.raises(UnreadableSlideError, match=r"small\.tif: level 0, tile in row 1, column 1"):
                slide.read_region(300, 300, 10, 10)
            np.testing.assert_array_equal(slide.read_region(0, 256, 256, 256), before[256:512, :256])
            np.testing.assert_array_equal(slide.read_region(512, 0, 300, 600), before[:, 512:812])


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_damage_to_a_tile_is_noticed_as_by_searching_its_whole_scan(data: st.DataObject) -> None:
    page: Any = SimpleNamespace(photometric=6, jpegtables=None, tilelength=128, tilewidth=128)
    decode, sound = tiff_levels._jpeg_decoder(page), jpeg_tile()
    decode(sound, 0)  # from here on tiles of this header are told by what was decoded
    at = data.draw(st.integers(sound.find(b"\xff\xda") + 14, len(sound) - 1) | st.integers(len(sound) - 300, len(sound) - 1))
    damage = data.draw(st.sampled_from([b"", b"\xff\xd9", bytes(40), b"\xff\xc4"]) | st.binary(min_size=1, max_size=8))
    damaged = sound[:at] + damage + (b"" if damage in (b"", b"\xff\xd9") else sound[at + len(damage) :])
    assert is_refused(lambda: decode(damaged, 0)) >= is_refused(lambda: tiff_levels._check_jpeg_is_whole(damaged))


@pytest.mark.parametrize("kind", ["progressive", "restarts"])
def test_a_scan_whose_end_says_nothing_of_its_middle_is_searched_whole(kind: str) -> None:
    buffer = io.BytesIO()
    options: Any = {"progressive": True} if kind == "progressive" else {"restart_marker_rows": 1}
    Image.fromarray(tissue(128, 128)).save(buffer, "JPEG", **options)
    sound = buffer.getvalue()
    assert tiff_levels._plain_header(sound, None) is None
    assert tiff_levels._plain_header(jpeg_tile(), None) == jpeg_tile()[: jpeg_tile().find(b"\xff\xda") + 5]


@pytest.mark.parametrize("size_px", [64, 256])
def test_a_tile_of_another_size_than_the_slide_says_is_refused(size_px: int) -> None:
    page: Any = SimpleNamespace(photometric=6, jpegtables=None, tilelength=128, tilewidth=128)
    other = bytes(imagecodecs.jpeg_encode(tissue(size_px, size_px), level=90))
    with pytest.raises(ValueError, match=rf"expected 128x128 px in three channels.*\({size_px}, {size_px}, 3\)"):
        tiff_levels._jpeg_decoder(page)(other, 0)


def test_tiles_begin_where_libjpeg_turbo_writes_through_the_cache() -> None:
    tiles = [tiff_levels._tile_aside((side_px, side_px, 3)) for side_px in (16, 128, 256, 512, 1024)]
    assert all(tile.ctypes.data % 32 and tile.flags.c_contiguous and tile.flags.writeable for tile in tiles)


@cache
def jpeg_tile() -> bytes:
    return bytes(imagecodecs.jpeg_encode(tissue(128, 128), level=90))


def is_refused(step: Callable[[], Any]) -> bool:
    try:
        step()
    except (ValueError, RuntimeError):
        return True
    return False


def test_openslide_reads_on_after_a_corrupt_tile(small_path: Path) -> None:
    with open_slide(small_path) as slide:
        before = slide.read_region(0, 0, 900, 600)
    overwrite_tile(small_path, 5, bytes(5000))
    with OpenSlideReader(small_path) as slide:
        for _ in range(2):
            with pytest.raises(UnreadableSlideError, match=r"small\.tif: level 0"):
                slide.read_region(300, 300, 10, 10)
            np.testing.assert_array_equal(slide.read_region(0, 256, 256, 256), before[256:512, :256])


def test_a_corrupt_lzw_tile_is_named(tmp_path: Path) -> None:
    path = tmp_path / "lzw.tif"
    write_tiff(path, tissue(600, 900), compression="lzw")
    overwrite_tile(path, 5, np.random.default_rng(0).bytes(20_000), at_byte=100)
    with open_slide(path) as slide:
        with pytest.raises(UnreadableSlideError, match="row 1, column 1"):
            slide.read_region(300, 300, 10, 10)
        np.testing.assert_array_equal(slide.read_region(0, 0, 256, 256), tissue(600, 900)[:256, :256])


def test_strips_and_other_files_are_no_slides(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "strips.tif", tissue(3000, 2500), photometric="rgb")
    Image.fromarray(tissue(100, 100)).save(tmp_path / "picture.png")
    (tmp_path / "text.svs").write_text("no slide at all")
    (tmp_path / "empty.svs").write_bytes(b"")
    for name in ("strips.tif", "picture.png", "text.svs", "empty.svs"):
        with pytest.raises(UnreadableSlideError, match=name):
            open_slide(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        open_slide(tmp_path / "absent.svs")


@pytest.mark.parametrize(
    "layout",
    [
        {"compression": "deflate"},
        {"compression": "jpeg", "description": "<?xml version='1.0'?><OME>x</OME>"},
        {"photometric": "minisblack"},
    ],
)
def test_what_the_fast_reader_does_not_know_goes_to_openslide(tmp_path: Path, layout: dict[str, object]) -> None:
    path = tmp_path / "slide.tif"
    level0 = tissue(700, 900)[..., 0] if layout.get("photometric") == "minisblack" else tissue(700, 900)
    write_tiff(path, level0, **layout)
    with open_slide(path) as slide:
        assert isinstance(slide, OpenSlideReader)
        np.testing.assert_array_equal(slide.read_region(100, 50, 300, 200), whole_level(path, 0)[50:250, 100:400])
    with fsspec.open("memory://dialect.tif", "wb") as file:
        file.write(path.read_bytes())
    with pytest.raises(UnreadableSlideError, match="local disk"):
        open_slide("memory://dialect.tif")


def test_a_slide_is_read_alike_from_an_object_store(small_path: Path) -> None:
    with fsspec.open("memory://remote/small.tif", "wb") as file:
        file.write(small_path.read_bytes())
    with open_slide("memory://remote/small.tif") as remote, open_slide(small_path) as local:
        assert remote.spacing_um == local.spacing_um
        np.testing.assert_array_equal(remote.read_region(-5, 100, 700, 513), local.read_region(-5, 100, 700, 513))


def test_is_slide_tells_slides_from_pictures(slide_path: Path, small_path: Path, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "strips.tif", tissue(3000, 2500), photometric="rgb")
    (tmp_path / "broken.tif").write_bytes(b"II*\x00garbage")
    (tmp_path / "empty.tif").write_bytes(b"")
    Image.fromarray(tissue(100, 100)).save(tmp_path / "picture.tif")
    with fsspec.open("memory://remote/slide.tif", "wb") as file:
        file.write(slide_path.read_bytes())
    assert is_slide(slide_path)
    assert is_slide("memory://remote/slide.tif")
    assert is_slide("s3://bucket/CASE.NDPI")  # by its name alone
    for picture in (small_path, *(tmp_path / name for name in ("strips.tif", "broken.tif", "empty.tif", "picture.tif", "absent.png"))):
        assert not is_slide(picture), picture
    with pytest.raises(FileNotFoundError):
        is_slide(tmp_path / "absent.tif")


@pytest.mark.parametrize("max_px", [5000, 1000, 300, 100, 1])
def test_a_thumbnail_keeps_the_aspect_and_the_picture(slide_path: Path, max_px: int) -> None:
    with open_slide(slide_path) as slide:
        thumbnail = slide.thumbnail(max_px)
    height_px, width_px = thumbnail.shape[:2]
    assert thumbnail.dtype == np.uint8
    assert width_px == min(max_px, 2427)
    assert abs(height_px - width_px * 2301 / 2427) <= 0.5
    expected = np.asarray(Image.fromarray(tissue(2301, 2427)).resize((width_px, height_px), Image.Resampling.BOX))
    assert np.abs(thumbnail[::4, ::4].astype(float) - expected[::4, ::4]).mean() < 8
    np.testing.assert_allclose(thumbnail.mean(axis=(0, 1)), expected.mean(axis=(0, 1)), atol=1.5)


def test_a_thumbnail_of_a_slide_of_one_level_sees_every_pixel(tmp_path: Path) -> None:
    stripes = np.zeros((1000, 1500, 3), np.uint8)
    stripes[::2] = 200  # every second row: sampling instead of averaging gives 0 or 200
    write_tiff(tmp_path / "slide.tif", stripes, reductions=0, compression="lzw")
    with open_slide(tmp_path / "slide.tif") as slide:
        np.testing.assert_allclose(slide.thumbnail(90), 100, atol=3)


def test_threads_share_a_reader(slide_path: Path) -> None:
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 2000, (200, 2)).tolist()
    expected = oracle(slide_path, 0)
    with open_slide(slide_path) as slide, ThreadPoolExecutor(8) as pool:
        regions = list(pool.map(lambda corner: slide.read_region(*corner, 224, 224), corners))
    for (x_px, y_px), region in zip(corners, regions, strict=True):
        np.testing.assert_array_equal(region, expected[y_px : y_px + 224, x_px : x_px + 224])


def test_a_region_on_no_level_or_of_no_size_is_refused(small_path: Path) -> None:
    with TiffSlide(str(small_path)) as fast, OpenSlideReader(small_path) as slow:
        for slide in (fast, slow):
            with pytest.raises(ValueError, match="level from 0 to 0, got 1"):
                slide.read_region(0, 0, 10, 10, level=1)
            with pytest.raises(ValueError, match="0x10"):
                slide.read_region(0, 0, 0, 10)


def test_random_damage_to_a_header_gives_a_reader_or_the_one_error(small_path: Path) -> None:
    rng = np.random.default_rng(5)
    whole = small_path.read_bytes()
    damaged_path = small_path.parent / "damaged.tif"
    for _ in range(150):
        damaged = bytearray(whole)
        for position in rng.integers(0, 400, 3):
            damaged[position] = rng.integers(256)
        damaged_path.write_bytes(damaged)
        is_slide(damaged_path)
        try:
            slide = open_slide(damaged_path)
        except UnreadableSlideError:
            continue
        with slide:
            if max(slide.level_dimensions[0]) < 10_000:
                assert slide.width_px > 0
