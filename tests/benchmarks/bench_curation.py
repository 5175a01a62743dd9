"""Curation against what it cannot do without: `pytest -m benchmark -s tests/benchmarks/bench_curation.py`, or run it as a script.

Ratios of one run; what is compared is timed in turns by seconds of the processor, and of each the best turn counts, because what disturbs
a shared machine only ever takes longer. Everything runs in one process on one thread. A table and one line of JSON for each of four
subjects, each in a minute or two.
"""

import hashlib
import io
import json
import multiprocessing
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import openslide
import pyarrow as arrow
import pytest
import tifffile
from PIL import Image
from skimage import data

from methods.curation.hashing import hash_to_text, perceptual_hash
from methods.curation.quality import measure_quality
from methods.curation.split_config import SplitConfig
from storage import filesystems
from storage.datasets.folder import FolderSource
from storage.manifest import read_manifest, read_rows, sample_id, write_rows
from storage.pictures import read_picture
from storage.slides import TiffSlide, write_pyramid
from tasks import duplicates, picture_rows
from tasks.curate import assemble_manifest
from tasks.curation import CurationConfig, TilingConfig
from tasks.execution import keep_freed_memory
from tasks.references import BatchReference, ManifestReference, TableReference
from tasks.rows import to_columns
from tasks.survey import deal_batches, survey
from tasks.tabulate_batch import tabulate_batch

SLIDES_PX, TILE_PX, SPACING_UM = (16_384, 32_768), 256, 0.25
PIECE_PX, LEVELS = 512, 7
OPENSLIDE_TILES = 400
BLOCK_TILES = 200
PHOTOGRAPHS, PHOTOGRAPH_PX = 200, 1024
OLD_PICTURES = {256: 2000, 512: 2000, 1024: 1000}  # by their size; one per cent is added
ADDITIONS = 3
ARCHIVES = (20_000, 100_000)


# ---- measuring


def best_of(turns: int, **work: Callable[[], Any]) -> dict[str, float]:
    """Seconds of the processor that each takes, the best of some turns in which each comes once."""
    best = dict.fromkeys(work, float("inf"))
    for _ in range(turns):
        for name, step in work.items():
            start = time.process_time()
            step()
            best[name] = min(best[name], time.process_time() - start)
    return best


def best_by_block(turns: int, blocks: Sequence[Any], **work: Callable[[Any], Any]) -> dict[str, float]:
    """As `best_of`, of each block of the work by itself: what disturbs a machine lasts longer than a block."""
    by_block = [best_of(turns, **{name: partial(step, block) for name, step in work.items()}) for block in blocks]
    return {name: sum(best[name] for best in by_block) for name in work}


def show(title: str, lines: dict[str, str], numbers: dict[str, Any]) -> None:
    print(f"\n{title}")  # noqa: T201
    for name, value in lines.items():
        print(f"  {name:<72} {value:>24}")  # noqa: T201
    rounded = {name: round(value, 4) if isinstance(value, float) else value for name, value in numbers.items()}
    print(json.dumps({"benchmark": f"curation: {title}", "load": os.getloadavg()[0], **rounded}))  # noqa: T201


# ---- slides


def paint_pieces(rng: np.random.Generator) -> np.ndarray:
    """Stained tissue, each piece turned and tinted otherwise, and last slightly noisy glass; (33, 512, 512, 3) uint8."""
    tissue = data.immunohistochemistry()
    pieces = [
        (np.rot90(tissue[:, :: int(mirror)], turn) * rng.uniform(0.8, 1.03, 3)).clip(0, 255).astype(np.uint8)
        for mirror in (1, -1)
        for turn in range(4)
        for _ in range(4)
    ]
    return np.stack([*pieces, rng.normal(243, 1.5, (PIECE_PX, PIECE_PX, 3)).clip(0, 255).astype(np.uint8)])


def write_slide(path: Path, side_px: int, rng: np.random.Generator) -> None:
    """A pyramid of pieces, tissue in an ellipse on glass; of the two finest levels tiles are encoded once a piece."""
    pieces = paint_pieces(rng)
    across = (np.arange(side_px // PIECE_PX) + 0.5) / (side_px // PIECE_PX) - 0.5
    inside = (across[None, :] / 0.43) ** 2 + (across[:, None] / 0.4) ** 2 < 1
    which = np.where(inside, rng.integers(len(pieces) - 1, size=inside.shape), len(pieces) - 1)
    atlas = path.with_name("atlas.tif")
    write_pyramid(atlas, np.concatenate(pieces), spacing_um=SPACING_UM)
    with tifffile.TiffFile(atlas) as tif, tifffile.TiffWriter(path) as written:
        for level in range(LEVELS):
            layout: dict[str, Any] = {"tile": (TILE_PX, TILE_PX), "photometric": "rgb", "metadata": None, "subfiletype": int(level > 0)}
            layout |= {"resolution": (10_000 / SPACING_UM / 2**level,) * 2, "resolutionunit": "CENTIMETER", "compression": "jpeg"}
            side = side_px >> level
            if level < 2:
                page, tiles = tif.pages[level], 2 >> level  # of a piece, along each side
                coded = [segment for segment, _ in tif.filehandle.read_segments(page.dataoffsets, page.databytecounts)]
                index = which.repeat(tiles, 0).repeat(tiles, 1) * tiles**2
                index += np.arange(len(index))[:, None] % tiles * tiles + np.arange(len(index)) % tiles
                written.write((coded[i] for i in index.ravel().tolist()), shape=(side, side, 3), dtype="uint8", **layout)
            else:
                small = np.stack([np.asarray(Image.fromarray(piece).reduce(1 << level)) for piece in pieces])
                picture = small[which].swapaxes(1, 2).reshape(side, side, 3)
                written.write(picture, compressionargs={"level": 90}, **layout)
    atlas.unlink()


class Slide:
    """One slide and the ways to read its kept tiles."""

    def __init__(self, folder: Path, side_px: int) -> None:
        path = folder / "slides" / "normal" / "slide.tif"
        path.parent.mkdir(parents=True)
        write_slide(path, side_px, np.random.default_rng(0))
        self.path, self.store = str(path), str(folder / "store")
        [self.batch] = deal_batches(survey([FolderSource(path=str(folder / "slides"))], store=self.store), store=self.store)
        kept = read_rows(self.curate()["uri"]).to_pandas()
        self.corners: list[tuple[int, int]] = list(zip(kept["x_px"].tolist(), kept["y_px"].tolist(), strict=True))

    def curate(self) -> TableReference:
        return tabulate_batch(self.batch, TilingConfig(size_px=TILE_PX), CurationConfig(), None, self.store)

    def blocks(self) -> list[list[tuple[int, int]]]:
        """The kept tiles, some at a time."""
        return [self.corners[start : start + BLOCK_TILES] for start in range(0, len(self.corners), BLOCK_TILES)]

    def open(self) -> None:
        TiffSlide(self.path).close()

    def read(self, slide: TiffSlide, corners: list[tuple[int, int]]) -> None:
        for x, y in corners:
            slide.read_region(x, y, TILE_PX, TILE_PX)

    def decode_bare(self, page: tifffile.TiffPage, corners: list[tuple[int, int]]) -> None:
        """As little as can be done: the bytes of each tile, and libjpeg-turbo."""
        tables = page.jpegtables
        for _, coded in self._coded(page, corners):
            imagecodecs.jpeg8_decode(coded, tables=tables, colorspace="YCBCR", outcolorspace="RGB")

    def decode_bare_aside(self, page: tifffile.TiffPage, corners: list[tuple[int, int]]) -> None:
        """The same into memory that begins at no multiple of 32 bytes, which is faster; where `decode_bare` writes is chance."""
        tables, shape = page.jpegtables, (TILE_PX, TILE_PX, 3)
        for _, coded in self._coded(page, corners):
            aside = np.ndarray(shape, np.uint8, np.empty(TILE_PX**2 * 3 + 8, np.uint8), 8)
            imagecodecs.jpeg8_decode(coded, tables=tables, colorspace="YCBCR", outcolorspace="RGB", out=aside)

    def decode_pages(self, page: tifffile.TiffPage, corners: list[tuple[int, int]]) -> None:
        """The tiles by tifffile."""
        tables = page.jpegtables
        for index, coded in self._coded(page, corners):
            page.decode(coded, index, jpegtables=tables)

    def _coded(self, page: tifffile.TiffPage, corners: list[tuple[int, int]]) -> Iterator[tuple[int, bytes]]:
        offsets, counts, across = page.dataoffsets, page.databytecounts, page.imagewidth // TILE_PX
        with Path(self.path).open("rb") as file:
            for x, y in corners:
                index = y // TILE_PX * across + x // TILE_PX
                yield index, os.pread(file.fileno(), counts[index], offsets[index])

    def read_with_openslide(self) -> None:
        """Some of the tiles, evenly over the slide."""
        with openslide.OpenSlide(self.path) as slide:
            for x, y in self.corners[:: len(self.corners) // OPENSLIDE_TILES]:
                np.asarray(slide.read_region((x, y), 0, (TILE_PX, TILE_PX)).convert("RGB"))


@pytest.mark.benchmark
@pytest.mark.timeout(600)
@pytest.mark.parametrize("side_px", SLIDES_PX)
def test_print_what_curating_and_reading_a_slide_costs_beside_decoding_it(side_px: int) -> None:
    keep_freed_memory()  # as every worker does
    with tempfile.TemporaryDirectory() as folder:
        slide = Slide(Path(folder), side_px)
        with TiffSlide(slide.path) as reader, tifffile.TiffFile(slide.path) as tif:
            page = tif.pages.first
            loops = {"bare": slide.decode_bare, "aside": slide.decode_bare_aside, "pages": slide.decode_pages}
            bare_loops = {name: partial(loop, page) for name, loop in loops.items()}
            seconds = best_by_block(7, slide.blocks(), read=partial(slide.read, reader), **bare_loops)
        seconds |= best_of(7, curate=slide.curate, open=slide.open, openslide=slide.read_with_openslide)
        n = len(slide.corners)
        seconds["openslide"] *= n / len(slide.corners[:: n // OPENSLIDE_TILES])
        seconds["read"] += seconds["open"]
    bare, ours = min(seconds[name] for name in loops), seconds["curate"] + seconds["read"]
    show(
        f"a slide of {side_px} × {side_px} px at {SPACING_UM} µm, {n} tiles of {TILE_PX} px, seconds of the processor",
        {
            "curated and read": f"{n / ours:,.0f} tiles/s",
            "decoded by the fastest bare loop (libjpeg-turbo or tifffile)": f"{n / bare:,.0f} tiles/s",
            "read by OpenSlide": f"{n / seconds['openslide']:,.0f} tiles/s",
            "curated and read / bare loop (target 0.9)": f"{bare / ours:.3f}",
            "curated and read / OpenSlide (target 4)": f"{seconds['openslide'] / ours:.2f}",
            "  read_region alone / bare loop": f"{bare / seconds['read']:.3f}",
            "  bare loop where memory falls / bare loop": f"{bare / seconds['bare']:.3f}",
            "  curation alone": f"{1e6 * seconds['curate'] / n:.0f} µs a tile",
        },
        {
            "tiles": n,
            "of_bare_loop": bare / ours,
            "of_openslide": seconds["openslide"] / ours,
            "read_of_bare_loop": bare / seconds["read"],
            "curation_share_of_bare_loop": seconds["curate"] / bare,
        },
    )


# ---- photographs


def write_photographs(folder: Path, count: int, *, size_px: int, copies: float = 0.0, seed: int = 0) -> None:
    """Parts of scikit-image's photographs, turned, stretched and tinted; a share of them is an earlier one compressed again."""
    rng = np.random.default_rng(seed)
    scenes = [Image.fromarray(picture) for picture in (data.immunohistochemistry(), data.astronaut(), data.coffee(), data.chelsea())]
    folder.mkdir(parents=True, exist_ok=True)
    photograph = scenes[0]
    for number in range(count):
        if number == 0 or rng.random() >= copies:
            scene = scenes[rng.integers(len(scenes))]
            side = int(rng.integers(90, 260))
            x, y = (int(rng.integers(0, length - side)) for length in scene.size)
            photograph = scene.resize((size_px, size_px), Image.Resampling.BICUBIC, box=(x, y, x + side, y + side))
            photograph = photograph.transpose(Image.Transpose(int(rng.integers(7))))
            tint = np.asarray(photograph) * rng.uniform(0.7, 1.1, 3) + 4 * rng.standard_normal((size_px, size_px, 3), np.float32)
            photograph = Image.fromarray(tint.clip(0, 255).astype(np.uint8))
        photograph.save(folder / f"{seed}-{number:05d}.jpg", quality=int(rng.integers(80, 95)))


def decode(paths: list[str]) -> None:
    for path in paths:
        with Image.open(path) as image:
            np.asarray(image.convert("RGB"))


@pytest.mark.benchmark
@pytest.mark.timeout(300)
def test_print_what_tabulating_photographs_costs_beside_decoding_them() -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        write_photographs(Path(folder) / "p" / "normal", PHOTOGRAPHS, size_px=PHOTOGRAPH_PX)
        items = survey([FolderSource(path=str(Path(folder) / "p"))], store=store)
        batches, paths = deal_batches(items, store=store), [item["uri"] for item in items]
        some = [read_picture(path, frame=None, sha256="") for path in paths[::10]]

        def tabulate() -> None:
            for batch in batches:
                tabulate_batch(batch, TilingConfig(), CurationConfig(), None, store)

        tabulate()
        seconds = best_of(
            3,
            tabulate=tabulate,
            decode=lambda: decode(paths),
            read=lambda: [read_picture(path, frame=None, sha256="") for path in paths],
            quality=lambda: [measure_quality(picture) for picture in some],
            hash=lambda: [perceptual_hash(picture) for picture in some],
        )
    part = len(paths) / len(some)
    decoding, quality, hashing = seconds["decode"], seconds["quality"] * part, seconds["hash"] * part
    rest = seconds["tabulate"] - seconds["read"] - quality - hashing
    show(
        f"{PHOTOGRAPHS} photographs of {PHOTOGRAPH_PX} × {PHOTOGRAPH_PX} px",
        {
            "decoded by Pillow": f"{1e3 * decoding / len(paths):.2f} ms each",
            "tabulated": f"{1e3 * seconds['tabulate'] / len(paths):.2f} ms each",
            "tabulated / decoded": f"{seconds['tabulate'] / decoding:.2f}",
            "  reading (decoding, orientation, RGB) / decoded": f"{seconds['read'] / decoding:.2f}",
            "  quality / decoded": f"{quality / decoding:.2f}",
            "  hash / decoded (target at most 1)": f"{hashing / decoding:.2f}",
            "  the rest (rows, table) / decoded": f"{rest / decoding:.2f}",
        },
        {
            "of_decoding": seconds["tabulate"] / decoding,
            "reading": seconds["read"] / decoding,
            "quality": quality / decoding,
            "hash": hashing / decoding,
            "rest": rest / decoding,
        },
    )


# ---- additions to a curated archive


class Archive:
    """A folder of pictures and the store it is curated in; batches that were tabulated are not again, as the cache has it."""

    def __init__(self, folder: Path) -> None:
        self.source, self.store = FolderSource(path=str(folder / "p")), str(folder / "store")
        self._tables: dict[str, TableReference] = {}

    def curate(self) -> tuple[dict[str, float], ManifestReference]:
        """Seconds of the processor of each step, and the manifest."""
        seconds: dict[str, float] = {}
        with timed(seconds, "survey"):
            items = survey([self.source], store=self.store)
        with timed(seconds, "deal"):
            batches = deal_batches(items, store=self.store)
        with timed(seconds, "tabulate"):
            tables = [self._tabulated(batch) for batch in batches]
        with timed(seconds, "assemble"):
            manifest = assemble(tables, self.store)
        return seconds, manifest

    def _tabulated(self, batch: BatchReference) -> TableReference:
        if batch["uri"] not in self._tables:
            self._tables[batch["uri"]] = tabulate_batch(batch, TilingConfig(), CurationConfig(), None, self.store)
        return self._tables[batch["uri"]]


def assemble(tables: list[TableReference], store: str) -> ManifestReference:
    options: dict[str, Any] = {"previous_manifest": None, "previous_digest": None, "failed_share_max": 0.0}
    return assemble_manifest.fn(tables, split=SplitConfig(), curation=CurationConfig(), store=store, **options)  # type: ignore[no-any-return]


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.process_time()
    yield
    seconds[name] = time.process_time() - start


@contextmanager
def counted(counts: Counter[str], **functions: tuple[Any, str]) -> Iterator[None]:
    """How often functions of modules are called, by the names that are given."""

    def count(name: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        counts[name] += 1
        return function(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        for name, (module, function) in functions.items():
            patch.setattr(module, function, partial(count, name, getattr(module, function)))
        yield


@pytest.mark.benchmark
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("size_px", "old"), OLD_PICTURES.items())
def test_print_what_one_per_cent_of_new_pictures_costs(size_px: int, old: int) -> None:
    new = old // 100
    with tempfile.TemporaryDirectory() as folder:
        pictures, archive = Path(folder) / "p" / "normal", Archive(Path(folder))
        write_photographs(pictures, 4, size_px=256, copies=0.0, seed=99)
        Archive(Path(folder)).curate()  # loads and compiles
        for path in pictures.iterdir():
            path.unlink()
        write_photographs(pictures, old, size_px=size_px, copies=0.1)
        work = {"hashed": (filesystems, "sha256_of"), "tabulated": (picture_rows, "read_picture"), "compared": (duplicates, "read_picture")}
        before, after = Counter[str](), Counter[str]()
        with counted(before, **work):
            first, _ = archive.curate()
        nothing = min((archive.curate()[0] for _ in range(5)), key=total)
        additions = []
        for seed in range(1, 1 + ADDITIONS):
            write_photographs(pictures, new, size_px=size_px, copies=0.1, seed=seed)
            with counted(after, **work):
                seconds, manifest = archive.curate()
            additions.append(seconds)
        assert manifest["rows"] == old + ADDITIONS * new
    added, everything = sorted(additions, key=total)[ADDITIONS // 2], total(first)
    lines = {"seconds of the processor": f"{old:,} | nothing new | {new} more"}
    lines |= {f"  {name}": f"{first[name]:.2f} | {nothing[name]:.3f} | {added[name]:.3f}" for name in first}
    of_pictures = {name: after[name] / ADDITIONS / before[name] for name in work}
    lines |= {f"files {name}, of those of the whole archive": f"{share:.4f}" for name, share in of_pictures.items()}
    shares = {"time": total(added) / everything, "time_of_manifest": total(nothing) / everything}
    lines |= {
        f"time of an addition, of that of the whole archive, the median of {ADDITIONS} (target 0.01)": f"{shares['time']:.4f}",
        "  when nothing is new (survey, assembly), the best of 5": f"{shares['time_of_manifest']:.4f}",
    }
    show(f"{new} pictures of {size_px} × {size_px} px added to {old:,}, three times", lines, {**of_pictures, **shares})


def total(seconds: dict[str, float]) -> float:
    return sum(seconds.values())


# ---- memory


def fabricate_archive(folder: Path, count: int, rng: np.random.Generator) -> list[TableReference]:
    """Small pictures, 1,000 a folder, and the tables that tabulating them would have written, with random hashes."""
    buffer = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(buffer, "PNG")
    contents = [buffer.getvalue() + b"%d" % number for number in range(count)]  # what follows a PNG's end is not looked at
    paths = [folder / "p" / "normal" / f"{number // 1000:03d}" / f"{number:06d}.png" for number in range(count)]
    for path, content in zip(paths, contents, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    digests = [hashlib.sha256(content).hexdigest() for content in contents]
    place = {"level": 0, "x_px": 0, "y_px": 0, "width_px": 600, "height_px": 450}
    measured = {name: rng.random(count) for name in ("sharpness", "brightness", "contrast", "ita_deg")}
    columns = {
        **{"uri": [str(path) for path in paths], "sha256": digests, "dataset": ["p"] * count, "subject_id": [path.stem for path in paths]},
        **{"sample_id": [sample_id(digest, **place) for digest in digests], "label": [0] * count, **measured},
        "phash": [hash_to_text(value) for value in rng.integers(0, 2**64, count, dtype=np.uint64)],
    }
    rows = to_columns(count, place, columns)
    return [write_fabricated(rows[start : start + 100], str(folder / "tables")) for start in range(0, count, 100)]


def write_fabricated(rows: arrow.Table, folder: str) -> TableReference:
    counts = {"items": len(rows), "unusable": 0, "rows": len(rows), "excluded": 0}
    return TableReference(uri=write_rows(folder, rows), name="pictures", note="", preview_uris=[], troubles=[], **counts)


def peak_bytes() -> int:
    """The most memory that this process has had. (That of `resource.getrusage` is handed down by the process that started this one.)"""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def measure_memory(folder: str, few: list[TableReference], tables: list[TableReference]) -> dict[str, float]:
    """Bytes by which the peak has grown after each step, of a process in which the same was done with few pictures before."""
    assemble(few, str(Path(folder) / "few"))
    before, grown = peak_bytes(), {}
    store = str(Path(folder) / "store")
    items = survey([FolderSource(path=str(Path(folder) / "p"))], store=store)
    grown["survey"] = peak_bytes() - before
    batches = deal_batches(items, store=store)
    grown["deal"] = peak_bytes() - before
    surveyed = len(items)
    del items  # as the flow does
    manifest = assemble(tables, store)
    grown["assemble"] = peak_bytes() - before
    assert surveyed == manifest["rows"] == 100 * len(batches)
    rows = read_manifest(manifest["uri"], digest=manifest["digest"])
    return {**grown, "manifest": int(rows.memory_usage(deep=True).sum())}


@pytest.mark.benchmark
@pytest.mark.timeout(600)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for the peak")
def test_print_the_memory_that_curating_takes_beside_the_manifest() -> None:
    lines, numbers = {"": " | ".join(f"{count:,} rows" for count in ARCHIVES)}, {}
    taken: dict[int, dict[str, float]] = {}
    for count in ARCHIVES:
        with tempfile.TemporaryDirectory() as folder:
            tables = fabricate_archive(Path(folder), count, np.random.default_rng(0))
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                taken[count] = process.submit(measure_memory, folder, tables[:2], tables).result()
    for name in ("manifest", "survey", "deal", "assemble"):
        lines[f"{name}: bytes a row"] = " | ".join(f"{taken[count][name] / count:,.0f}" for count in ARCHIVES)
        numbers[f"{name}_bytes_a_row"] = [round(taken[count][name] / count) for count in ARCHIVES]
    lines["peak after all steps / manifest in memory"] = " | ".join(f"{taken[n]['assemble'] / taken[n]['manifest']:.2f}" for n in ARCHIVES)
    few, many = ARCHIVES
    grown = {name: (taken[many][name] - taken[few][name]) / (many - few) for name in ("manifest", "survey", "deal", "assemble")}
    lines |= {f"each further row: {name} / manifest": f"{grown[name] / grown['manifest']:.2f}" for name in ("survey", "deal", "assemble")}
    ratios = {f"{name}_of_manifest": grown[name] / grown["manifest"] for name in ("survey", "deal", "assemble")}
    show("peak memory beyond the imports", lines, {**numbers, **ratios})


if __name__ == "__main__":
    for side_px in SLIDES_PX:
        test_print_what_curating_and_reading_a_slide_costs_beside_decoding_it(side_px)
    test_print_what_tabulating_photographs_costs_beside_decoding_them()
    for size_px, old in OLD_PICTURES.items():
        test_print_what_one_per_cent_of_new_pictures_costs(size_px, old)
    test_print_the_memory_that_curating_takes_beside_the_manifest()
