"""The page's server: what it answers, in which order, and what it refuses."""

import http.client
import json
import shutil
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from storage import filesystems
from storage.archives import Archive, append_manifest, open_archive
from storage.manifest import read_manifest, write_named
from storage.scores import create_store, open_store
from tasks import view_source
from tasks.view_pictures import TILE_PX, DeepSlide
from tasks.view_slides import compose_heat
from tasks.view_source import Source
from tasks.view_table import Query
from tests.archives import write_archive_pictures, write_manifest_of
from tests.servers import s3_server
from tests.viewed import (
    FAILED_ROW,
    GREY,
    HEAT,
    HEAT_DOWNSAMPLE,
    KEY,
    MAP_PX,
    NORMAL_SCORES,
    PICTURES,
    REASON,
    SHARD_ROWS,
    SLIDE_PX,
    TILES,
    make_archive,
    map_of,
    scores_of,
    serving,
)

ROWS = PICTURES + TILES
COOKIE = {"Cookie": f"normascope-{KEY[:6]}={KEY}"}


class Answer(NamedTuple):
    status: int
    body: bytes
    headers: dict[str, str]

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def halves(self) -> np.ndarray:
        values = np.frombuffer(self.body, "<f2")
        return values.reshape(-1, int(self.headers["x-width"]))


Ask = Callable[..., Answer]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    return make_archive(tmp_path_factory.mktemp("viewed"))


@pytest.fixture(scope="module")
def ask(archive: Archive) -> Iterator[Ask]:
    """Sends a path as it is written, which clients that tidy up addresses do not."""
    with serving(archive.uri) as address:

        def ask(path: str, *, method: str = "GET", **headers: str) -> Answer:
            connection = http.client.HTTPConnection(address, timeout=30)
            given = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, headers={**COOKIE, **given})
            answer = connection.getresponse()
            found = Answer(answer.status, answer.read(), dict(answer.headers))
            connection.close()
            return found

        yield ask


def rows_of(ask: Ask, query: str) -> list[int]:
    return [sample["row"] for sample in ask(f"/table?limit=200&{query}").json["rows"]]


def test_table_is_sorted_by_score_then_failed_then_pending(ask: Ask) -> None:
    score = scores_of(range(ROWS))
    expected = sorted((row for row in range(ROWS) if row != FAILED_ROW), key=lambda row: -score[row])
    assert rows_of(ask, "layer=0") == [*expected, FAILED_ROW]
    done = [row for row in expected if row < 2 * SHARD_ROWS]
    assert rows_of(ask, "layer=1") == [*done, FAILED_ROW, *range(2 * SHARD_ROWS, ROWS)]
    assert rows_of(ask, "layer=0&lowest_first=true") == [*expected[::-1], FAILED_ROW]


def test_pages_follow_each_other_without_gap(ask: Ask) -> None:
    pages = [ask(f"/table?offset={offset}&limit=10").json for offset in range(0, 80, 10)]
    assert [row["row"] for page in pages for row in page["rows"]] == rows_of(ask, "")
    assert {page["matching"] for page in pages} == {ROWS}


@pytest.mark.parametrize(
    ("query", "column", "value"),
    [("split=test", "split", "test"), ("dataset=ward", "dataset", "ward"), ("subject=00003", "subject_id", "subject-00003")],
)
def test_filters_admit_what_the_manifest_says(archive: Archive, ask: Ask, query: str, column: str, value: str) -> None:
    rows = archive.read_rows(0, ROWS)
    assert set(rows_of(ask, query)) == set(np.flatnonzero(rows[column].fillna("") == value))


def test_filters_by_label_status_and_sample_meet(archive: Archive, ask: Ask) -> None:
    assert set(rows_of(ask, "label=abnormal")) == set(range(5, PICTURES, 6))
    assert set(rows_of(ask, "label=unknown")) == set(rows_of(ask, "slide=SLIDE")) == set(range(PICTURES, ROWS))
    assert rows_of(ask, "split=none") == rows_of(ask, "label=unknown")
    assert rows_of(ask, "status=failed") == [FAILED_ROW]
    assert set(rows_of(ask, "layer=1&status=pending")) == set(range(2 * SHARD_ROWS, ROWS))
    sample = archive.read_rows(33, 34)["sample_id"][33]
    assert rows_of(ask, f"sample={sample[4:20].upper()}") == [33]
    assert rows_of(ask, f"sample={sample}&label=abnormal") == []
    assert rows_of(ask, "split=nowhere") == []


def test_summary_counts_rows_by_what_can_be_filtered(ask: Ask) -> None:
    summary = ask("/archive").json
    assert summary["rows"] == ROWS
    assert summary["filters"]["split"] == {"archive": 45, "none": TILES, "test": 15}
    assert summary["filters"]["label"] == {"normal": 50, "abnormal": 10, "unknown": TILES}
    assert [layer["name"] for layer in summary["layers"]] == ["maps v1", "whole v1"]
    assert summary["layers"][0]["counts"] == {"pending": 0, "scored": ROWS - 1, "failed": 1}
    assert summary["layers"][1]["counts"] == {"pending": ROWS - 2 * SHARD_ROWS, "scored": 2 * SHARD_ROWS - 1, "failed": 1}
    assert summary["layers"][0]["p_values"] == "empirical"
    low, high = summary["layers"][0]["colour_range"]
    assert 0 <= low < high <= scores_of(range(ROWS)).max()


def test_row_says_all_that_the_manifest_says_and_why_it_failed(archive: Archive, ask: Ask) -> None:
    found = ask(f"/row/{FAILED_ROW}").json
    record = archive.read_rows(FAILED_ROW, FAILED_ROW + 1).iloc[0]
    assert found["manifest"]["uri"] == record["uri"]
    assert found["manifest"]["site"] == record["site"]
    assert found["manifest"]["spacing_um"] is None
    assert found["scores"][0] == {"status": "failed", "score": None, "p": None, "reason": REASON}


def test_scores_have_the_p_value_of_the_cards_first_distribution(ask: Ask) -> None:
    for row in (0, 20, 55):
        [score] = scores_of(range(row, row + 1)).tolist()
        shown = ask(f"/row/{row}").json["scores"][0]
        at_or_above = sum(normal >= score for normal in NORMAL_SCORES)
        assert (shown["status"], shown["score"]) == ("scored", score)
        assert shown["p"] == pytest.approx((1 + at_or_above) / (1 + len(NORMAL_SCORES)))


def test_picture_and_map_are_those_of_the_row(archive: Archive, ask: Ask) -> None:
    with Image.open(BytesIO(ask("/picture/5?size=64").body)) as shown, Image.open(archive.read_rows(5, 6)["uri"][5]) as file:
        assert shown.format == "JPEG"
        assert np.abs(np.asarray(shown).astype(int) - np.asarray(file.convert("RGB"))).mean() < 8
    np.testing.assert_array_equal(ask("/map/0/5?size=64").halves, map_of(5).astype(np.float16))
    assert ask("/map/0/5?size=16").halves.shape == (MAP_PX, MAP_PX)


def test_slides_are_listed_and_opened_by_any_of_their_rows(ask: Ask) -> None:
    best = PICTURES + int(np.argmax(scores_of(range(PICTURES, ROWS))))
    [slide] = ask("/slides?layer=0").json["highest"]
    assert slide == {"row": best, "slide_id": "slide 1", "dataset": "biopsies", "samples": TILES, "scored": TILES, "score": slide["score"]}
    assert slide["score"] == pytest.approx(float(scores_of(range(best, best + 1))[0]))
    described = ask("/slide/65").json
    assert (described["width_px"], described["height_px"], described["spacing_um"]) == (SLIDE_PX, SLIDE_PX, 0.5)
    assert described["box"] == [512, 512, 512, 512]
    assert ask("/slide/3").status == 404


def test_tiles_cover_the_slide_at_every_level(ask: Ask) -> None:
    slide = ask("/slide/60").json
    for level in range(slide["levels"]):
        side = -(-SLIDE_PX // 2 ** (slide["levels"] - 1 - level))
        tiles = -(-side // slide["tile_px"])
        for x in range(tiles):
            with Image.open(BytesIO(ask(f"/slide/60/tile/{level}/{x}/0").body)) as tile:
                assert tile.size == (min(slide["tile_px"], side), min(slide["tile_px"], side))
                assert np.abs(np.asarray(tile).astype(int) - GREY).max() <= 2
        assert ask(f"/slide/60/tile/{level}/{tiles}/0").status == 404


def test_heatmap_lies_over_the_slide_in_place_and_its_regions_are_listed(ask: Ask) -> None:
    layer = ask("/slide/60/layer/0").json
    heat = layer["heat"]
    assert heat["shows"] == "heatmap of the slide"
    assert heat["width_px"] * heat["pixel_px"] == SLIDE_PX
    assert heat["pixel_px"] == HEAT_DOWNSAMPLE
    finest = ask(f"/slide/60/heat/0/{heat['levels'] - 1}/0/0").halves
    assert finest.shape == (512, 512)
    assert (finest[0, 0], finest[0, -1]) == (0, HEAT)
    assert np.isnan(finest[-1]).all()
    [region] = layer["regions"]
    assert region["box"] == [1024, 0, 1024, 1536]
    assert (region["area_mm2"], region["mean_score"], region["max_score"]) == (0.393, HEAT, HEAT)


def test_without_a_slide_map_the_scores_of_the_samples_are_laid_out(ask: Ask) -> None:
    layer = ask("/slide/60/layer/1").json
    assert layer["regions"] == []
    assert np.isnan(ask("/slide/60/heat/1/0/0/0").halves).all()  # nothing of the slide is scored there


def test_maps_of_samples_are_laid_out_in_place_and_the_highest_counts_where_they_overlap(archive: Archive) -> None:
    slide = Source(archive.uri).slide(PICTURES)
    layer = Source(archive.uri).table.layers[0]
    samples = archive.read_rows(PICTURES, ROWS)
    heat = compose_heat(slide.pixels.reader, layer, samples)
    assert heat.shows == "maps of its samples"
    assert heat.pixel_px == 1
    for row, sample in samples.iterrows():
        y, x = sample["y_px"], sample["x_px"]
        [score] = scores_of(range(row, row + 1)).astype(np.float16)
        assert heat.read(0, y, x, 512, 512)[::511, ::511].tolist() == [[0, score], [0, score]]
    moved = pd.concat([samples.iloc[[0]], samples.iloc[[1]].assign(x_px=0)])
    lower, higher = sorted(scores_of(range(PICTURES, PICTURES + 2)).astype(np.float16))
    overlapped = compose_heat(slide.pixels.reader, layer, moved).tile(0, 0, 0)
    assert overlapped[5, 511] == higher > lower
    assert np.isnan(compose_heat(slide.pixels.reader, layer, moved).tile(0, 1, 0)).all()


class Ramp:
    """A slide of one level: column x is x / 64."""

    width_px, height_px, spacing_um = 16384, 600, None
    level_dimensions, level_downsamples = ((16384, 600),), (1.0,)

    def read_region(self, x_px: int, y_px: int, width_px: int, height_px: int, *, level: int = 0) -> np.ndarray:
        assert width_px * height_px <= 16384 * 600 / 2  # never whole
        columns = (np.arange(x_px, x_px + width_px) // 64).astype(np.uint8)
        return np.broadcast_to(columns[None, :, None], (height_px, width_px, 3))


def test_a_slide_without_coarse_levels_is_shown_whole_too() -> None:
    slide = DeepSlide(Ramp())  # type: ignore[arg-type]
    for level in range(slide.levels):
        side = -(-16384 // 2 ** (slide.levels - 1 - level))
        tiles = [slide.tile(level, x, 0) for x in range(-(-side // TILE_PX))]
        shown = np.concatenate([tile[0, :, 0] for tile in tiles]).astype(float)
        assert len(shown) == side
        assert np.abs(shown - np.linspace(0, 255, side)).max() < 3


def test_a_pipelines_store_is_shown_with_those_beside_it_of_the_same_rows(archive: Archive, tmp_path: Path) -> None:
    uri, digest = write_named(str(tmp_path), archive.read_rows(0, ROWS), manifest=slice(None))["manifest"]
    for name, of in (("ae-0123456789", digest), ("vae-89abcdef01", digest), ("ae-ffffffffff", "another")):
        attributes = {"manifest_digest": of, "model_digest": "0" * 64, "detector": name.split("-")[0]}
        store = create_store(
            str(tmp_path / "scores" / f"{name}.zarr"),
            rows=ROWS,
            map_size_px=None,
            shard_rows=ROWS,
            attributes=attributes,
            notes={"manifest_uri": uri},
        )
        store.write_shard(0, image=scores_of(range(ROWS)), maps=None, failures=[])
    source = Source(str(tmp_path / "scores" / "vae-89abcdef01.zarr"))
    assert [layer.name for layer in source.table.layers] == ["vae-89abcd", "ae-012345"]
    assert source.table.page(Query(limit=1))[1][0]["row"] == int(np.argmax(scores_of(range(ROWS))))
    assert source.sample(5)["uri"] == archive.read_rows(5, 6)["uri"][5]
    assert source.slide(PICTURES).heat(0).shows == "scores of its samples"


def test_what_holds_no_scores_is_refused_with_a_reason(tmp_path: Path, archive: Archive) -> None:
    with pytest.raises(ValueError, match="no score store"):
        Source(str(tmp_path))
    shutil.copytree(archive.uri, tmp_path / "empty", ignore=shutil.ignore_patterns("scores"))
    with pytest.raises(ValueError, match="holds no scores yet"):
        Source(str(tmp_path / "empty"))


@pytest.mark.slow
def test_an_archive_in_a_bucket_is_shown_as_a_local_one_is(archive: Archive, tmp_path: Path) -> None:
    with s3_server(tmp_path) as server:
        for path in Path(archive.uri).rglob("*"):
            if path.is_file():
                filesystems.write_bytes(f"{server.bucket}/copy/{path.relative_to(archive.uri)}", path.read_bytes())
        local, remote = Source(archive.uri), Source(f"{server.bucket}/copy")
        assert remote.table.summarise() == local.table.summarise()
        assert remote.table.page(Query()) == local.table.page(Query())
        np.testing.assert_array_equal(remote.table.read_map(0, 5), local.table.read_map(0, 5))
        assert remote.describe_row(3) == local.describe_row(3)
        finest = remote.slide(PICTURES).heat(0)
        np.testing.assert_array_equal(finest.tile(1, 0, 0), local.slide(PICTURES).heat(0).tile(1, 0, 0))
        assert remote.slide(PICTURES).regions(0) == local.slide(PICTURES).regions(0)


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd",
        "/etc/passwd",
        "/view.js/../../../pyproject.toml",
        "/view.html.j2",
        "/picture//etc/passwd?size=64",
        "/picture/..%2f..%2fetc%2fpasswd?size=64",
        "/picture/-1?size=64",
        f"/picture/{ROWS}?size=64",
        "/picture/3?size=100000",
        "/map/7/3?size=64",
        "/map/1/3?size=64",
        f"/map/0/{FAILED_ROW}?size=64",
        f"/map/0/{ROWS}?size=64",
        "/table?uri=/etc/passwd",
        "/table?limit=100000",
        "/table?layer=9",
        "/slides?layer=9",
        "/slide/60/tile/99/0/0",
        "/slide/60/heat/9/0/0/0",
        "/slide/60/heat/0/0/9/9",
        "/docs",
        "/openapi.json",
    ],
)
def test_nothing_but_what_the_archive_names_is_read(ask: Ask, path: str) -> None:
    answer = ask(path)
    assert answer.status in (404, 422)
    assert b"root:" not in answer.body
    assert b"[project]" not in answer.body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_other_methods_are_refused(ask: Ask, method: str) -> None:
    assert ask("/archive", method=method).status == 405


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8321", "127.0.0.1.evil.example", "localhost.evil.example:80", "[::2]:1"])
def test_other_host_names_are_refused(ask: Ask, host: str) -> None:
    assert ask("/archive", Host=host).status == 421


@pytest.mark.parametrize("host", ["localhost", "localhost:99", "127.0.0.1", "[::1]:8321"])
def test_loopback_names_are_answered_at_any_port(ask: Ask, host: str) -> None:
    assert ask("/archive", Host=host).status == 200  # a tunnel's end has another port


def test_other_pages_of_the_browser_are_refused(ask: Ask) -> None:
    for site in ("cross-site", "same-site"):
        assert ask("/archive", Sec_Fetch_Site=site).status == 403
    assert ask("/archive", Sec_Fetch_Site="same-origin").status == 200
    answer = ask("/archive", Origin="http://evil.example")
    assert not [name for name in answer.headers if name.lower().startswith("access-control")]


def test_who_has_no_key_sees_nothing(ask: Ask) -> None:
    for path in ("/", "/archive", "/picture/3?size=64", "/?key=another", "/archive?key=" + KEY):
        assert ask(path, Cookie="").status == 403
    entered = ask(f"/?key={KEY}", Cookie="")
    assert (entered.status, entered.headers["location"]) == (303, "/")
    for said in ("HttpOnly", "SameSite=strict", COOKIE["Cookie"]):
        assert said in entered.headers["set-cookie"]


def test_every_answer_forbids_what_the_page_does_not_need(ask: Ask) -> None:
    for path in ("/", "/view.js", "/archive", "/nothing", "/picture/3?size=64"):
        headers = ask(path).headers
        assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self';")
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["cache-control"] == "no-store"


def test_page_names_nothing_from_elsewhere(ask: Ask) -> None:
    page = ask("/").body.decode()
    assert "http:" not in page
    assert "https:" not in page


def test_a_picture_that_is_gone_is_a_404_with_the_reason(ask: Ask, archive: Archive) -> None:
    path = Path(archive.read_rows(11, 12)["uri"][11])
    content = path.read_bytes()
    path.unlink()
    try:
        answer = ask("/picture/11?size=32")
    finally:
        path.write_bytes(content)
    assert answer.status == 404


def test_refresh_takes_in_shards_and_rows_that_came(archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view_source, "_LEAST_AGE_S", 0)
    shutil.copytree(archive.uri, tmp_path / "archive")
    archive = open_archive(str(tmp_path / "archive"))
    source = Source(archive.uri)
    store = open_store(archive.scores_uri("whole", 1))
    store.write_shard(2, image=scores_of(store.rows_of(2)), maps=None, failures=[])
    source.refresh()
    assert source.table.layers[1].counts() == {"pending": ROWS - 3 * SHARD_ROWS, "scored": 3 * SHARD_ROWS - 1, "failed": 1}
    more = read_manifest(write_manifest_of(write_archive_pictures(tmp_path / "more", 4, first=500))[0])
    grown = pd.concat([archive.read_rows(0, ROWS), more], ignore_index=True)
    append_manifest(archive.uri, *write_named(str(tmp_path), grown, grown=slice(None))["grown"])
    source.refresh()
    assert source.table.rows == ROWS + 4
    assert source.table.layers[0].counts() == {"pending": 4, "scored": ROWS - 1, "failed": 1}
    assert source.describe_row(ROWS + 3)["manifest"]["subject_id"] == "subject-00001"
