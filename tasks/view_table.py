"""An archive as the page shows it: a few columns of its rows held compactly, the scores of each version sorted once."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd
import pyarrow as arrow
from pyarrow import compute
from pydantic import BaseModel, ConfigDict, Field

from methods.evaluation.calibration import Null, null_from_dict
from storage.scores import FAILED, PENDING, SCORED, ScoreStore

_TEXTS = ("split", "dataset", "subject_id", "slide_id", "finding")
SHOWN_COLUMNS = ["sample_id", "label", *_TEXTS]
STATUS_NAMES = {PENDING: "pending", SCORED: "scored", FAILED: "failed"}
_LABEL_NAMES = {0: "normal", 1: "abnormal", -1: "unknown"}
_NONE = "none"
_RANGE_MAPS = 32  # maps that a version's colours are spread over
_RANGE_QUANTILES = (0.02, 0.99)


class Rows(Protocol):
    """What the manifest's rows are read through: an archive, or a pipeline's manifest."""

    digest: str
    parts: list[dict[str, Any]]  # with the first row of each

    def read_rows(self, first: int, stop: int) -> pd.DataFrame:
        """Rows [first, stop) with all columns of the manifest, their numbers as index."""

    def read_part(self, part: int, *, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """The rows of a part, or some of their columns, row numbers as index."""

    def iterate_rows(self, columns: Sequence[str] | None = None) -> Iterator[pd.DataFrame]:
        """All rows part by part, or some of their columns."""


class Query(BaseModel):
    """A page of the table: which rows, where None admits all, in the order of one layer's scores."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    split: str | None = None
    dataset: str | None = None
    label: Literal["normal", "abnormal", "unknown"] | None = None
    status: Literal["pending", "scored", "failed"] | None = None
    subject: str | None = None  # a part of the subject's id, as for slide and sample
    slide: str | None = None
    sample: str | None = None
    layer: int = Field(default=0, ge=0)
    lowest_first: bool = False
    offset: int = Field(default=0, ge=0)
    limit: int = Field(default=50, ge=1, le=200)


class Columns:
    """The columns that the table shows and is filtered by: 29 bytes a row, its sample id, and each distinct text once."""

    def __init__(self, parts: Iterable[pd.DataFrame]) -> None:
        samples: list[arrow.Array] = []
        labels: list[np.ndarray] = [np.empty(0, np.int8)]
        texts: dict[str, list[arrow.Array]] = {name: [] for name in _TEXTS}
        for part in parts:
            samples.append(_as_text(part["sample_id"]))
            labels.append(part["label"].fillna(-1).to_numpy(np.int8))
            for name in _TEXTS:
                texts[name].append(_as_text(part[name]).dictionary_encode())
        self.sample_id = arrow.chunked_array(samples, arrow.large_string()).combine_chunks()
        self.label = np.concatenate(labels)
        self.codes: dict[str, np.ndarray] = {}  # (N,) int32 into names, -1 where there is none
        self.names: dict[str, arrow.Array] = {}
        for name in _TEXTS:
            self.codes[name], self.names[name] = _unify(texts.pop(name))
        # a data set's slides are told apart from another's of the same name
        slides = self.codes["slide_id"].astype(np.int64) * max(1, len(self.names["dataset"])) + self.codes["dataset"]
        self.slide = np.where(self.codes["slide_id"] < 0, -1, slides)

    def text(self, name: str, row: int) -> str | None:
        """One text of one row."""
        code = int(self.codes[name][row])
        return None if code < 0 else str(self.names[name][code])

    def match(self, query: Query) -> np.ndarray | None:
        """(N,) bool: the rows that the manifest's part of the filters admits; None where it admits all."""
        masks = [self.codes[name] == self._code(name, wanted) for name in ("split", "dataset") if (wanted := getattr(query, name))]
        if query.label is not None:
            masks.append(self.label == {name: label for label, name in _LABEL_NAMES.items()}[query.label])
        for name, wanted in (("subject_id", query.subject), ("slide_id", query.slide)):
            if wanted:
                found = _contains(self.names[name], wanted)
                masks.append(np.append(found, False)[self.codes[name]])  # code -1, no text, takes the last
        if query.sample:
            masks.append(_contains(self.sample_id, query.sample))
        return np.logical_and.reduce(masks) if masks else None

    def count(self, name: str) -> dict[str, int]:
        """Rows by value, the most frequent first."""
        counts = np.bincount(self.codes[name] + 1, minlength=len(self.names[name]) + 1)
        named = dict(zip([_NONE, *self.names[name].to_pylist()], counts.tolist(), strict=True))
        return {value: count for value, count in sorted(named.items(), key=lambda entry: -entry[1]) if count}

    def count_labels(self) -> dict[str, int]:
        """Rows by label."""
        return {name: count for label, name in _LABEL_NAMES.items() if (count := int((self.label == label).sum()))}

    def _code(self, name: str, wanted: str) -> int:
        """-2, which no row has, for a text that does not occur."""
        found = int(compute.index(self.names[name], arrow.scalar(wanted, arrow.large_string())).as_py())
        return found if found >= 0 else -1 if wanted == _NONE else -2


@dataclass
class Layer:
    """The scores of one version of one detector, as they stood when they were read.

    Attributes:
        name: slot and version, for people.
        store: the score store.
        slides_uri: where its whole-slide maps are; None for a pipeline's store.
        card: of the model; empty where its bundle is not to be had.
        score: (N,) float32, NaN where not scored.
        status: (N,) uint8.
    """

    name: str
    store: ScoreStore
    slides_uri: str | None
    card: dict[str, Any]
    score: np.ndarray = field(repr=False)
    status: np.ndarray = field(repr=False)
    _reasons: dict[int, dict[int, str]] = field(default_factory=dict, repr=False)  # of the shards that were asked for

    @cached_property
    def order(self) -> np.ndarray:
        """(N,) uint32: rows by score, the highest first and equal ones by row; then those that failed, then those still to be scored."""
        by_score = np.argsort(-self.score, kind="stable").astype(np.uint32)  # NaN comes last
        scored, rest = np.split(by_score, [int((~np.isnan(self.score)).sum())])
        failed = self.status[rest] == FAILED
        return np.concatenate([scored, rest[failed], rest[~failed]])

    @cached_property
    def null(self) -> Null | None:
        """The first distribution of normal scores on the model's card."""
        nulls = [document for document in self.card.get("calibration", {}).get("nulls", []) if "why_none" not in document]
        return null_from_dict(nulls[0]) if nulls else None

    @cached_property
    def colour_range(self) -> tuple[float, float] | None:
        """Scores that the darkest and the brightest colour stand for; None while nothing is scored.

        Ours: the 2 % and 99 % quantiles of 32 maps, the 16 of the highest scores and 16 evenly over all; without maps those of all scores.
        """
        rows = self.order[: int((self.status == SCORED).sum())]
        if not len(rows):
            return None
        values = self.score[rows]
        if self.store.map_size_px is not None:
            half = _RANGE_MAPS // 2
            chosen = np.unique(np.concatenate([rows[:half], rows[np.linspace(0, len(rows) - 1, half).astype(int)]]))
            values = np.concatenate([self.read_map(int(row)).ravel() for row in chosen])
        low, high = np.quantile(values, _RANGE_QUANTILES)
        return float(low), float(high if high > low else low + 1e-6)

    def read_map(self, row: int) -> np.ndarray:
        """(H, W) float32 of one row."""
        return self.store.read_maps(range(row, row + 1))[0].astype(np.float32)

    def reason(self, row: int) -> str | None:
        """Why a row failed."""
        shard = row // self.store.shard_rows
        if shard not in self._reasons:
            failures = self.store.read_record(shard)["failures"]
            self._reasons[shard] = {int(failure["row"]): str(failure["reason"]) for failure in failures}
        return self._reasons[shard].get(row)

    def thresholds(self) -> list[dict[str, Any]]:
        """Operating points of the card: level, value, rule."""
        points = self.card.get("calibration", {}).get("operating_points", [])
        return [{name: point[name] for name in ("level", "value", "rule")} for point in points]

    def counts(self) -> dict[str, int]:
        """Rows by status."""
        return {name: int((self.status == status).sum()) for status, name in STATUS_NAMES.items()}


class Table:
    """Rows and layers, read at one moment."""

    def __init__(self, columns: Columns, layers: list[Layer]) -> None:
        self.columns = columns
        self.layers = layers
        self.rows = len(columns.label)
        self._matching = lru_cache(maxsize=16)(self._find_matching)

    def page(self, query: Query) -> tuple[int, list[dict[str, Any]]]:
        """How many rows match, and those of the page.

        Raises:
            IndexError: no such layer.
        """
        matching = self._matching(query.model_copy(update={"offset": 0, "limit": 1}))
        return len(matching), self.describe(matching[query.offset : query.offset + query.limit])

    def describe(self, rows: np.ndarray) -> list[dict[str, Any]]:
        """What the table shows of rows."""
        places = rows.astype(np.int64)
        scores = [self._scores(layer, places) for layer in self.layers]
        samples = self.columns.sample_id.take(arrow.array(places)).to_pylist()
        return [
            {
                "row": row,
                "sample_id": sample,
                **{name: self.columns.text(name, row) for name in _TEXTS},
                "label": _LABEL_NAMES[int(self.columns.label[row])],
                "scores": [layer[place] for layer in scores],
            }
            for place, (row, sample) in enumerate(zip(places.tolist(), samples, strict=True))
        ]

    def summarise(self) -> dict[str, Any]:
        """Rows, what can be filtered by with the number of rows, and the layers: counts, colours, thresholds."""
        columns = self.columns
        return {
            "rows": self.rows,
            "slides": len(columns.names["slide_id"]),
            "filters": {"split": columns.count("split"), "dataset": columns.count("dataset"), "label": columns.count_labels()},
            "layers": [
                {
                    "name": layer.name,
                    "counts": layer.counts(),
                    "maps": layer.store.map_size_px is not None,
                    "colour_range": layer.colour_range,
                    "thresholds": layer.thresholds(),
                    "p_values": None if layer.null is None else layer.null.kind,
                }
                for layer in self.layers
            ],
        }

    def read_map(self, layer: int, row: int) -> np.ndarray:
        """(H, W) float32 of one row.

        Raises:
            IndexError: no such layer or row, a layer without maps, or a row that is not scored.
        """
        chosen = self.layers[layer]
        if chosen.store.map_size_px is None or chosen.status[row] != SCORED:
            raise IndexError(f"{chosen.name} has no map of row {row}")
        return chosen.read_map(row)

    def slides(self, layer: int) -> list[dict[str, Any]]:
        """Every slide: the row of its highest score, that score, how many rows it has and how many are scored; the highest first.

        Raises:
            IndexError: no such layer.
        """
        rows = np.flatnonzero(self.columns.slide >= 0)
        score = self.layers[layer].score[rows]
        by_slide = np.lexsort((-score, self.columns.slide[rows]))  # within a slide the highest first, NaN last
        rows, score = rows[by_slide], score[by_slide]
        firsts = np.flatnonzero(np.diff(self.columns.slide[rows], prepend=-1))
        samples = np.diff(np.append(firsts, len(rows)))
        scored = np.add.reduceat(~np.isnan(score), firsts, dtype=int) if len(rows) else samples
        order = np.argsort(-score[firsts], kind="stable")
        return [
            {
                "row": int(rows[firsts[place]]),
                "slide_id": self.columns.text("slide_id", int(rows[firsts[place]])),
                "dataset": self.columns.text("dataset", int(rows[firsts[place]])),
                "samples": int(samples[place]),
                "scored": int(scored[place]),
                "score": _number(score[firsts[place]]),
            }
            for place in order.tolist()
        ]

    def rows_of_slide(self, row: int) -> np.ndarray:
        """All rows of the slide that a row belongs to; none where it belongs to none."""
        slide = self.columns.slide[row]
        return np.flatnonzero(self.columns.slide == slide) if slide >= 0 else np.empty(0, np.int64)

    def _find_matching(self, query: Query) -> np.ndarray:
        chosen = self.layers[query.layer]
        order = chosen.order
        if query.lowest_first:
            scored, rest = np.split(order, [int((~np.isnan(chosen.score)).sum())])
            order = np.concatenate([scored[::-1], rest])
        mask = self.columns.match(query)
        if query.status is not None:
            wanted = chosen.status == {name: status for status, name in STATUS_NAMES.items()}[query.status]
            mask = wanted if mask is None else mask & wanted
        return order if mask is None else order[mask[order]]

    @staticmethod
    def _scores(layer: Layer, rows: np.ndarray) -> list[dict[str, Any]]:
        score, status = layer.score[rows], layer.status[rows]
        p = np.full(len(rows), np.nan)
        if layer.null is not None and (scored := ~np.isnan(score)).any():
            p[scored] = layer.null.p_values(score[scored])
        return [
            {
                "status": STATUS_NAMES[state],
                "score": _number(value),
                "p": _number(chance),
                "reason": layer.reason(row) if state == FAILED else None,
            }
            for row, state, value, chance in zip(rows.tolist(), status.tolist(), score, p, strict=True)
        ]


def _number(value: np.floating) -> float | None:
    """NaN is not JSON."""
    return None if np.isnan(value) else float(value)


def _as_text(values: pd.Series) -> arrow.Array:
    found = arrow.Array.from_pandas(values, type=arrow.large_string())
    return found.combine_chunks() if isinstance(found, arrow.ChunkedArray) else found


def _unify(parts: list[arrow.Array]) -> tuple[np.ndarray, arrow.Array]:
    """Codes (N,) int32, -1 for null, and what they stand for, from dictionaries of each part."""
    if not parts:
        return np.empty(0, np.int32), arrow.array([], arrow.large_string())
    chunks = arrow.chunked_array(parts).unify_dictionaries().chunks
    codes = np.concatenate([chunk.indices.fill_null(-1).to_numpy() for chunk in chunks]).astype(np.int32)
    return codes, chunks[-1].dictionary


def _contains(texts: arrow.Array | arrow.ChunkedArray, wanted: str) -> np.ndarray:
    return np.asarray(compute.match_substring(texts, wanted, ignore_case=True))
