"""What is compared: which rows of which stores are reference and archive; their scores, subjects and sources, streamed."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from typing_extensions import TypedDict

from storage import filesystems
from storage.archives import Archive, ArchiveError, open_archive
from storage.manifest import ManifestError, iterate_manifest
from storage.scores import FAILED, PENDING, SCORED, ScoreStore, ScoreStoreError, open_store
from tasks.caching import digest_of

GROUPINGS = {"dataset": "source", "site": "site", "projection": "projection"}
_COLUMNS = (*GROUPINGS, "subject_id", "excluded")
_ROWS = re.compile(r"(\d*):(\d*)")


class SideReference(TypedDict):
    """Scored rows of a store that are one side of a comparison.

    Of an archive that is rows first … stop - 1, of a pipeline's store (`kind`) the normal samples of its manifest's validation split.
    `finished` is a digest of which shards are scored.
    """

    kind: Literal["archive", "pipeline"]
    title: str
    store_uri: str
    model_digest: str
    rows_uri: str
    rows_digest: str
    first: int
    stop: int
    finished: str


@dataclass(frozen=True)
class Side:
    """The scored items of a side.

    Attributes:
        scores: (n,) float32.
        subjects: (n,) uint64, a hash of data set and subject, because ids hold within a data set.
        groups: by column, (n,) int32 codes, -1 where the manifest does not say.
        names: by column, what the codes stand for.
        left_out: rows without a score, by why.
    """

    scores: np.ndarray
    subjects: np.ndarray
    groups: dict[str, np.ndarray]
    names: dict[str, list[str]]
    left_out: dict[str, int]


def parse_rows(text: str) -> tuple[int, int | None]:
    """FIRST:STOP as numbers, from 0 and to the end where one is not given.

    Raises:
        ValueError: anything else, or no row.
    """
    match = _ROWS.fullmatch(text)
    first, stop = (int(match[1] or 0), int(match[2]) if match[2] else None) if match else (0, 0)
    if stop is not None and first >= stop:
        raise ValueError(f"expected rows as FIRST:STOP, such as 10000: or 0:5000, the last not included; got {text!r}")
    return first, stop


def find_sides(
    archive_uri: str, reference_uri: str, *, slot: str | None = None, rows: tuple[int, int | None] = (0, None)
) -> tuple[SideReference, SideReference]:
    """The reference, and what of the archive is compared with it: stores of one model.

    Args:
        archive_uri: of an archive.
        reference_uri: a pipeline's score store, of which the normal samples of the validation split are taken; another archive, of which
            all rows are; or the same archive, of which the rows before the first one are.
        slot: of the archive; needed where several have a model of the reference.
        rows: of the archive, first and stop; to its end where None.

    Raises:
        ArchiveError, ScoreStoreError: nothing there, no scores, no such slot or rows.
        ValueError: the two have no model in common, or several.
    """
    archive = open_archive(archive_uri)
    first, stop = rows[0], archive.rows if rows[1] is None else rows[1]
    if not first < stop <= archive.rows:
        raise ArchiveError(f"{archive_uri} holds rows 0 to {archive.rows - 1}, asked for {first} to {stop - 1}")
    ours = _list_slots(archive, slot)
    if not filesystems.exists(filesystems.join(reference_uri, "archive.json")):
        store = open_store(reference_uri)
        title = _match(ours, {filesystems.name_of(reference_uri): store}, archive_uri, reference_uri)[0]
        return _of_pipeline(store), _of_archive(archive, title, ours[title], first, stop)
    other = open_archive(reference_uri)
    is_same = filesystems.absolute(other.uri) == filesystems.absolute(archive.uri)
    if is_same and not first:
        raise ValueError("an archive is compared with its own earlier rows: give --rows FIRST:STOP; those before FIRST are the reference")
    theirs = _list_slots(other, slot if is_same else None)
    title, other_title = _match(ours, theirs, archive_uri, reference_uri)
    reference = _of_archive(other, other_title, theirs[other_title], 0, first if is_same else other.rows)
    return reference, _of_archive(archive, title, ours[title], first, stop)


def read_side(side: SideReference) -> Side:
    """Scores, subjects and groups of a side, its rows streamed; rows that are excluded, failed or pending are left out and counted.

    Raises:
        ManifestError, ArchiveError, ScoreStoreError: rows or scores are not those that the side names.
    """
    store = open_store(side["store_uri"], expected={"model_digest": side["model_digest"]})
    status, scores = _fit(store.status(), side["stop"], PENDING), _fit(store.image_scores(), side["stop"], np.nan)
    kept: list[np.ndarray] = [np.zeros(0, np.int64)]
    subjects: list[np.ndarray] = [np.zeros(0, np.uint64)]
    codes: dict[str, list[np.ndarray]] = {column: [np.zeros(0, np.int32)] for column in GROUPINGS}
    numbers: dict[str, dict[str, int]] = {column: {} for column in GROUPINGS}
    left_out: Counter[str] = Counter(excluded=0, failed=0, pending=0)
    for rows in _iterate_rows(side):
        included = rows["excluded"].isna().to_numpy()
        state = status[rows.index]
        left_out["excluded"] += int((~included).sum())
        left_out["failed"] += int((included & (state == FAILED)).sum())
        left_out["pending"] += int((included & (state != FAILED) & (state != SCORED)).sum())
        rows = rows[included & (state == SCORED)]
        kept.append(rows.index.to_numpy())
        subjects.append(_hash_subjects(rows))
        for column in GROUPINGS:
            codes[column].append(_encode(rows[column], numbers[column]))
    return Side(
        scores=scores[np.concatenate(kept)],
        subjects=np.concatenate(subjects),
        groups={column: np.concatenate(parts) for column, parts in codes.items()},
        names={column: list(known) for column, known in numbers.items()},
        left_out=dict(left_out),
    )


def _list_slots(archive: Archive, slot: str | None) -> dict[str, ScoreStore]:
    """The stores of an archive, or of one of its slots, by slot and version, later versions last."""
    slots = archive.slots()
    if slot is not None and slot not in slots:
        raise ArchiveError(f"{archive.uri} holds no scores of {slot}; there are {', '.join(sorted(slots)) or 'none'}")
    chosen = [(name, number) for name, numbers in slots.items() for number in numbers if slot in (None, name)]
    if not chosen:
        raise ArchiveError(f"{archive.uri} holds no scores yet; score it with `normascope score`")
    stores = {f"{name} v{number}": open_store(archive.scores_uri(name, number)) for name, number in chosen}
    for store in stores.values():
        if store.rows > archive.rows:
            raise ScoreStoreError(f"the scores {store.uri} are of {store.rows} rows, the archive holds {archive.rows}")
    return stores


def _match(ours: dict[str, ScoreStore], theirs: dict[str, ScoreStore], archive_uri: str, reference_uri: str) -> tuple[str, str]:
    """The latest versions of archive and reference that have one model.

    Raises:
        ValueError: there are none, or slots of several models.
    """
    by_model = {store.attributes["model_digest"]: title for title, store in theirs.items()}
    shared = {title: by_model[digest] for title, store in ours.items() if (digest := store.attributes["model_digest"]) in by_model}
    if not shared:
        listed = [", ".join(f"{title} of {_model(store)}" for title, store in stores.items()) for stores in (ours, theirs)]
        raise ValueError(
            f"scores of different models are not compared: {archive_uri} has {listed[0]}; the reference {reference_uri} has {listed[1]}. "
            "Score the archive with the reference's model (`normascope score … --model BUNDLE --into ARCHIVE`), or name its reference"
        )
    slots = sorted({title.rsplit(" v", 1)[0] for title in shared})
    if len(slots) > 1:
        raise ValueError(f"archive and reference share the models of several slots: choose one with --slot ({', '.join(slots)})")
    return list(shared.items())[-1]


def _model(store: ScoreStore) -> str:
    return f"model {str(store.attributes['model_digest'])[:12]}"


def _of_archive(archive: Archive, title: str, store: ScoreStore, first: int, stop: int) -> SideReference:
    where = "" if (first, stop) == (0, archive.rows) else f", rows {first} to {stop - 1}"
    return _side("archive", f"{filesystems.name_of(archive.uri)}: {title}{where}", store, archive.uri, archive.digest, first, stop)


def _of_pipeline(store: ScoreStore) -> SideReference:
    title = f"{filesystems.name_of(store.uri)}: normal samples of the validation split"
    return _side("pipeline", title, store, store.attributes["manifest_uri"], store.attributes["manifest_digest"], 0, store.rows)


def _side(
    kind: Literal["archive", "pipeline"], title: str, store: ScoreStore, rows_uri: str, rows_digest: str, first: int, stop: int
) -> SideReference:
    return SideReference(
        kind=kind,
        title=title,
        store_uri=store.uri,
        model_digest=store.attributes["model_digest"],
        rows_uri=rows_uri,
        rows_digest=rows_digest,
        first=first,
        stop=stop,
        finished=digest_of(store.rows, store.pending_shards()),
    )


def _iterate_rows(side: SideReference) -> Iterator[pd.DataFrame]:
    """The rows of a side batch by batch, their numbers as index."""
    if side["kind"] == "archive":
        archive = open_archive(side["rows_uri"], digest=side["rows_digest"])
        for number, part in enumerate(archive.parts):
            if part["first"] < side["stop"] and part["first"] + part["rows"] > side["first"]:
                yield archive.read_part(number, columns=_COLUMNS).loc[side["first"] : side["stop"] - 1]
        return
    if (found := filesystems.sha256_of(side["rows_uri"])) != side["rows_digest"]:
        raise ManifestError(
            f"{side['rows_uri']} is not the manifest that was scored: expected digest {side['rows_digest'][:12]}, found {found[:12]}"
        )
    start = 0
    for batch in iterate_manifest(side["rows_uri"], columns=[*_COLUMNS, "split", "label"]):
        rows = batch.to_pandas().set_index(pd.RangeIndex(start, start + len(batch)))
        start += len(batch)
        yield rows[(rows["split"] == "validation") & (rows["label"] == 0)]


def _hash_subjects(rows: pd.DataFrame) -> np.ndarray:
    named = [f"{dataset}\x1f{subject}" for dataset, subject in zip(rows["dataset"], rows["subject_id"], strict=True)]
    return pd.util.hash_array(np.array(named, object))


def _encode(values: pd.Series, known: dict[str, int]) -> np.ndarray:
    """(n,) int32 numbers of names, -1 where there is none; new names get the next number."""
    codes, names = pd.factorize(values)
    numbers = np.array([known.setdefault(str(name), len(known)) for name in names] + [-1], np.int32)
    return numbers[codes]


def _fit(values: np.ndarray, rows: int, fill: float) -> np.ndarray:
    """The store may lag behind the archive's rows."""
    return np.concatenate([values[:rows], np.full(max(0, rows - len(values)), fill, values.dtype)])
