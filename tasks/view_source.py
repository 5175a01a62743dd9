"""What `normascope view` is given: an archive, or the score store of a pipeline; opened, and read again as scoring goes on."""

import threading
import time
from bisect import bisect_right
from functools import lru_cache
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd

from storage import filesystems
from storage.archives import ManifestRows, open_archive
from storage.models import BundleError, read_bundle
from storage.scores import PENDING, SCORED, ScoreStore, list_stores, open_store
from tasks.samples import Row
from tasks.view_pictures import PICTURE_COLUMNS, deep_slide
from tasks.view_slides import ViewedSlide
from tasks.view_table import SHOWN_COLUMNS, Columns, Layer, Rows, Table

_LEAST_AGE_S = 2.0  # what was read more recently is not read again
_SAMPLES_KEPT = 4096
_SLIDES_KEPT = 4


class _Place(NamedTuple):
    """Where a version's scores are, and its slides' maps where there can be any."""

    name: str
    store_uri: str
    slides_uri: str | None


class Source:
    """An archive or a pipeline's store. `table` is what was read last; requests that run meanwhile keep theirs.

    Raises:
        ValueError: neither an archive nor a score store, one without scores, or a manifest that is not the store's.
    """

    def __init__(self, uri: str) -> None:
        self.uri = filesystems.absolute(uri)
        self.name = filesystems.name_of(self.uri)
        self.table: Table
        self._rows: Rows
        self._lock = threading.Lock()
        self._layers: list[Layer] = []
        self._read_at = -np.inf
        self._sample = lru_cache(maxsize=_SAMPLES_KEPT)(self._read_sample)
        self.refresh()

    def refresh(self) -> None:
        """Take in rows, versions and scores that came since; what is finished is not read again."""
        with self._lock:
            if time.monotonic() - self._read_at < _LEAST_AGE_S:
                return
            rows, places = _look(self.uri)
            if not places:
                raise ValueError(f"{self.uri} holds no scores yet; score it with `normascope score`")
            columns = self.table.columns if self._layers and rows.digest == self._rows.digest else Columns(rows.iterate_rows(SHOWN_COLUMNS))
            self._rows = rows
            known = {layer.store.uri: layer for layer in self._layers}
            fresh = [place for place in places if place.store_uri not in known]
            # versions keep their number, by which an open page asks for them
            self._layers = [_reread(layer, len(columns.label)) for layer in self._layers]
            self._layers += [_read_layer(place, len(columns.label)) for place in fresh]
            self.table = Table(columns, self._layers)
            self._slides: dict[int, ViewedSlide] = {}
            self._read_at = time.monotonic()

    def sample(self, row: int) -> Row:
        """What the manifest says of where a row's picture is.

        Raises:
            IndexError: no such row.
        """
        self._check(row)
        return self._sample(row)

    def describe_row(self, row: int) -> dict[str, Any]:
        """What the table shows of a row, and all that the manifest says of it.

        Raises:
            IndexError: no such row.
        """
        self._check(row)
        [read] = self._rows.read_rows(row, row + 1).to_dict("records")
        record = {str(name): None if pd.isna(value) else value for name, value in read.items()}
        [shown] = self.table.describe(np.array([row]))
        return {**shown, "manifest": record}

    def slide(self, row: int) -> ViewedSlide:
        """The slide that a row belongs to.

        Raises:
            IndexError: no such row, or it belongs to no slide.
            UnreadableSlideError, OSError: the slide cannot be opened.
        """
        record, table = self.sample(row), self.table
        rows = table.rows_of_slide(row)
        if not len(rows):
            raise IndexError(f"row {row} belongs to no slide")
        with self._lock:
            if (slide := self._slides.get(int(rows[0]))) is None:
                slide = ViewedSlide(deep_slide(str(record["uri"]), str(record["sha256"])), table.layers, self._read_rows(rows))
                self._slides[int(rows[0])] = slide
                while len(self._slides) > _SLIDES_KEPT:
                    self._slides.pop(next(iter(self._slides)))
            return slide

    def _read_rows(self, rows: np.ndarray) -> pd.DataFrame:
        """Rows of the manifest, read in runs."""
        runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
        return pd.concat([self._rows.read_rows(int(run[0]), int(run[-1]) + 1) for run in runs])

    def _read_sample(self, row: int) -> Row:
        # of a part with few columns: the samples of a page lie in as many parts, and a whole part takes four times as long
        part = bisect_right([part["first"] for part in self._rows.parts], row) - 1
        return cast(Row, self._rows.read_part(part, columns=PICTURE_COLUMNS).loc[row])

    def _check(self, row: int) -> None:
        if not 0 <= row < self.table.rows:
            raise IndexError(f"there is no row {row}, the last is {self.table.rows - 1}")


def _look(uri: str) -> tuple[Rows, list[_Place]]:
    """The rows, and the versions there are scores of: of a pipeline's store also those beside it that are of the same rows."""
    if filesystems.exists(filesystems.join(uri, "archive.json")):
        archive = open_archive(uri)
        versions = [(slot, version) for slot, versions in archive.slots().items() for version in versions]
        return archive, [_Place(f"{slot} v{n}", archive.scores_uri(slot, n), archive.slides_uri(slot, n)) for slot, n in versions]
    store = open_store(uri)
    digest = store.attributes["manifest_digest"]
    siblings = [open_store(other) for other in list_stores(uri.rsplit("/", 1)[0]) if other != uri]
    stores = [store, *(other for other in siblings if other.attributes.get("manifest_digest") == digest)]
    return _manifest_rows(store.attributes["manifest_uri"], digest), [_Place(_name_of(one), one.uri, None) for one in stores]


@lru_cache(maxsize=1)
def _manifest_rows(uri: str, digest: str) -> ManifestRows:
    return ManifestRows(uri, digest)


def _name_of(store: ScoreStore) -> str:
    """A pipeline's store is called after its detector and the beginning of its run's digest."""
    return filesystems.name_of(store.uri).removesuffix(".zarr")[: len(store.attributes["detector"]) + 7]


def _read_layer(place: _Place, rows: int) -> Layer:
    store = open_store(place.store_uri)
    status = _fit(store.status(), rows, PENDING)
    return Layer(
        name=place.name,
        store=store,
        slides_uri=place.slides_uri,
        card=_read_card(store.attributes.get("model_uri"), store.attributes["model_digest"]),
        score=np.where(status == SCORED, _fit(store.image_scores(), rows, np.nan), np.float32(np.nan)),
        status=status,
    )


def _reread(layer: Layer, rows: int) -> Layer:
    if len(layer.status) == rows and not (layer.status == PENDING).any():
        return layer
    return _read_layer(_Place(layer.name, layer.store.uri, layer.slides_uri), rows)


def _fit(values: np.ndarray, rows: int, fill: float) -> np.ndarray:
    """The store may lag behind the archive's rows, or be ahead of what was read of them."""
    return np.concatenate([values[:rows], np.full(max(0, rows - len(values)), fill, values.dtype)])


@lru_cache(maxsize=64)
def _read_card(model_uri: str | None, digest: str) -> dict[str, Any]:
    """The card says what scores mean; without it, moved or changed, they can still be looked at."""
    try:
        return read_bundle(model_uri, digest=digest).card if model_uri else {}
    except (BundleError, OSError):
        return {}
