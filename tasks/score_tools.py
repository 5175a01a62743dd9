"""What is done with scores that are there: prove that they are whole, hand them out as a table."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
import pandas as pd
import pyarrow as arrow
from pyarrow import csv, parquet

from methods.evaluation.calibration import Null, null_from_dict
from storage import filesystems
from storage.archives import Archive, ArchiveError, open_archive
from storage.manifest import iterate_manifest
from storage.models import BundleError, bundle_digest, read_card
from storage.score_checks import Problem, verify_store
from storage.scores import FAILED, PENDING, SCORED, ScoreStore, ScoreStoreError, open_store
from tasks.progress import show_progress

_VERSION = re.compile(r"v([1-9]\d*)")
_STATUS = {PENDING: "pending", SCORED: "scored", FAILED: "failed"}
_P_VALUES = {"empirical": "p_conformal", "gamma": "p_gamma", "tail": "p_tail"}
_SAMPLE_COLUMNS = ("sample_id", "subject_id", "slide_id", "dataset", "split", "label")
_EXPORTED = arrow.schema(
    [
        ("slot", arrow.string()),
        ("version", arrow.int32()),
        ("row", arrow.int64()),
        *((name, arrow.string()) for name in _SAMPLE_COLUMNS[:-1]),
        ("label", arrow.int8()),
        ("status", arrow.string()),
        ("reason", arrow.string()),
        ("image_score", arrow.float32()),
        *((name, arrow.float64()) for name in _P_VALUES.values()),
    ]
)


@dataclass
class Verification:
    """What was looked at, in a line each, and what is wrong."""

    summary: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def verify_archive(uri: str, *, slots: tuple[str, ...] = (), quick: bool = False) -> Verification:
    """Prove that every sample is scored once or failed with a reason, and that every value is the one that was written.

    Looked at are the rows of the archive against their digests; of each score store all that `storage.score_checks.verify_store` does, its
    rows and digests against the archive, the bundle where it can be reached, and the failed samples against the rows. Memory does not grow
    with the archive.

    Args:
        uri: an archive, or a single score store.
        slots: of an archive, those to look at; all where none is named.
        quick: files are listed and records read, rows and values are not decoded; the summary says so.

    Raises:
        ArchiveError, ScoreStoreError: neither an archive nor a score store, or no such slot.
    """
    found = Verification()
    if not filesystems.exists(filesystems.join(uri, "archive.json")):
        store = open_store(uri)
        failures = _verify_one(found, filesystems.name_of(uri), store, quick=quick)
        if not quick:
            _verify_manifest(found, store, failures)
        return found
    archive = open_archive(uri)
    failed = {}
    for name, store_uri in _list_stores(archive, slots):
        try:
            store = open_store(store_uri)
        except (ScoreStoreError, ValueError, KeyError) as error:
            found.problems.append(Problem(name, f"cannot be opened ({error})"))
            continue
        failed[name] = _verify_one(found, name, store, quick=quick)
        found.problems += [Problem(name, text) for text in _compare_with(archive, store)]
    if not failed and not found.problems:
        found.problems.append(Problem(uri, "holds no scores yet"))
    _verify_rows(found, archive, failed, quick=quick)
    if filesystems.list_folders(filesystems.join(uri, "slides")):
        found.summary.append("slide maps were not looked at: `score` makes again those that are missing or of other scores")
    return found


def export_archive(uri: str, into: str, *, slots: tuple[str, ...] = ()) -> list[str]:
    """Write the scores of an archive as one table, a row a sample and slot; returns what there is to say of it, in lines.

    Columns: slot, version, row, sample_id, subject_id, slide_id, dataset, split, label, status (scored, failed, pending), reason of a
    failure, image_score, and how often a normal image scores this high: p_conformal, by rank among the normal validation images of the
    model's card, p_gamma and p_tail by the distributions fitted to them; empty where a card lacks them. Of each slot the newest version is
    taken. Rows are streamed: memory does not grow with the archive.

    Args:
        uri: of the archive.
        into: a file ending with .parquet or .csv, local or s3://; it is there whole or not at all.
        slots: those to export; all where none is named.

    Raises:
        ArchiveError: no archive, no scores, no such slot, or one whose store covers other rows.
        ValueError: another suffix.
    """
    archive = open_archive(uri)
    newest = {slot: versions[-1] for slot, versions in archive.slots().items() if not slots or slot in slots}
    _require_slots(archive, slots, list(newest))
    if not newest:
        raise ArchiveError(f"{uri} holds no scores yet")
    lines = []
    with _open_table(into) as write:
        for slot, version in newest.items():
            store = open_store(archive.scores_uri(slot, version))
            if store.rows > archive.rows:
                raise ArchiveError(f"the scores {store.uri} are of {store.rows} rows, the archive holds {archive.rows}")
            nulls, why_none = _read_nulls(store)
            with show_progress(f"export {slot} v{version}", store.rows) as bar:
                for rows in _iterate_scores(archive, store):
                    write(_tabulate(rows, slot, version, nulls))
                    bar.advance(len(rows))
            lines.append(f"{slot} v{version}: {store.rows} rows" + (f"; {why_none}" if why_none else ""))
    return [*lines, f"written to {into}"]


def _verify_one(found: Verification, name: str, store: ScoreStore, *, quick: bool) -> dict[int, str]:
    """Look at a store and its model; returns the samples that failed, by row."""
    with show_progress(f"verify {name}", store.shard_count) as bar:
        findings = verify_store(store, quick=quick, advance=bar.advance)
    found.problems += [Problem(f"{name}, {problem.where}", problem.text) for problem in findings.problems]
    looked_at = "files and records compared, values not decoded" if quick else "every value decoded and its SHA-256 compared"
    found.summary.append(
        f"{name}: {store.rows} rows, {findings.scored} scored, {findings.failed} failed, "
        f"{store.rows - findings.scored - findings.failed} not finished; {store.shard_count} shards, {looked_at}"
    )
    model_uri, digest = store.attributes.get("model_uri"), store.attributes.get("model_digest")
    try:
        if model_uri is not None and bundle_digest(model_uri) != digest:
            found.problems.append(Problem(name, f"the bundle at {model_uri} is not the model {str(digest)[:12]} that scored it"))
    except OSError as error:
        found.summary.append(f"{name}: its model was not compared, {model_uri} cannot be read ({type(error).__name__})")
    return dict(findings.failures)


def _verify_manifest(found: Verification, store: ScoreStore, failed: dict[int, str]) -> None:
    """Compare a single store with the manifest that it names."""
    uri, digest = store.attributes.get("manifest_uri"), store.attributes.get("manifest_digest")
    name, start = filesystems.name_of(store.uri), 0
    try:
        if uri is None or filesystems.sha256_of(uri) != digest:
            found.problems.append(Problem(name, f"the manifest at {uri} is not the one that was scored"))
            return
        for batch in iterate_manifest(uri, columns=["sample_id"]):
            samples = pd.Series(batch["sample_id"].to_pylist(), range(start, start + len(batch)))
            found.problems += [Problem(name, text) for text in _compare_failures(samples, failed)]
            start += len(batch)
        if start != store.rows:
            found.problems.append(Problem(name, f"it has {store.rows} rows, its manifest {start}"))
    except OSError as error:
        found.summary.append(f"{name}: its manifest was not compared, {uri} cannot be read ({type(error).__name__})")


def _compare_with(archive: Archive, store: ScoreStore) -> Iterator[str]:
    if store.rows < archive.rows:
        yield f"covers {store.rows} of the archive's {archive.rows} rows: the others are not scored yet"
    if store.rows > archive.rows:
        yield f"has {store.rows} rows, the archive {archive.rows}"
    digest, found = store.attributes.get("archive_digest"), archive.digest_at(store.rows)
    if store.rows <= archive.rows and digest != found:
        yield f"was made for other rows: it names {str(digest)[:12]}, the archive's first {store.rows} rows are {str(found)[:12]}"


def _verify_rows(found: Verification, archive: Archive, failed: dict[str, dict[int, str]], *, quick: bool) -> None:
    """Look at the files of rows, and at who the failed samples are."""
    stops = [part["first"] + part["rows"] for part in archive.parts]
    if [part["first"] for part in archive.parts] != [0, *stops[:-1]] or stops[-1:] != [archive.rows]:
        found.problems.append(Problem("archive.json", f"its parts do not follow each other up to row {archive.rows - 1}"))
    if quick:
        there = filesystems.list_sizes(filesystems.join(archive.uri, "rows"))
        parts = [archive.part_uri(part) for part in range(len(archive.parts))]
        found.problems += [Problem("rows", f"{uri} is missing") for uri in parts if filesystems.name_of(uri) not in there]
        found.summary.append(f"{archive.rows} rows in {len(parts)} files, which were listed and not read")
        return
    with show_progress("verify rows", len(archive.parts)) as bar:
        for part in range(len(archive.parts)):
            try:
                samples = archive.read_part(part, columns=["sample_id"])["sample_id"]
            except ArchiveError as error:
                found.problems.append(Problem("rows", str(error)))
            else:
                for name, of_store in failed.items():
                    found.problems += [Problem(name, text) for text in _compare_failures(samples, of_store)]
            bar.advance()
    found.summary.append(f"{archive.rows} rows in {len(archive.parts)} files, the SHA-256 of each compared")


def _compare_failures(samples: pd.Series, failed: dict[int, str]) -> Iterator[str]:
    """Whether the failed samples among these rows are who the records say."""
    for row in sorted(failed.keys() & set(samples.index)):
        if samples[row] != failed[row]:
            yield f"its record calls row {row} {failed[row]!r}, the manifest {samples[row]!r}"


def _list_stores(archive: Archive, slots: tuple[str, ...]) -> list[tuple[str, str]]:
    """Name and URI of the stores of some slots, those that cannot be opened among them."""
    folders = filesystems.list_folders(filesystems.join(archive.uri, "scores"))
    _require_slots(archive, slots, [filesystems.name_of(folder) for folder in folders])
    chosen = [folder for folder in folders if not slots or filesystems.name_of(folder) in slots]
    versions = [uri for folder in chosen for uri in filesystems.list_folders(folder) if _VERSION.fullmatch(filesystems.name_of(uri))]
    return [(" ".join(uri.split("/")[-2:]), uri) for uri in versions]


def _require_slots(archive: Archive, wanted: tuple[str, ...], there: list[str]) -> None:
    if missing := sorted(set(wanted) - set(there)):
        raise ArchiveError(f"{archive.uri} holds no scores of {', '.join(missing)}; there are {', '.join(sorted(there)) or 'none'}")


def _read_nulls(store: ScoreStore) -> tuple[dict[str, Null], str]:
    """The distributions of normal scores by column, from the card of the store's model, and why there are none or fewer."""
    uri, digest = store.attributes.get("model_uri"), store.attributes.get("model_digest")
    try:
        calibration = read_card(str(uri), digest=str(digest)).get("calibration", {})
    except (OSError, BundleError) as error:
        return {}, f"no p-values: its model {uri} cannot be read ({error})"
    documents = calibration.get("nulls", [])
    nulls = {_P_VALUES[document["kind"]]: null_from_dict(document) for document in documents if "why_none" not in document}
    lacking = [f"no {_P_VALUES[document['kind']]}: {document['why_none']}" for document in documents if "why_none" in document]
    return nulls, "; ".join(lacking) if documents else f"no p-values: {calibration.get('why_none', 'the card holds no distribution')}"


def _iterate_scores(archive: Archive, store: ScoreStore) -> Iterator[pd.DataFrame]:
    """The archive's rows part by part as far as the store goes, with status, image_score and reason."""
    pending = np.zeros(store.shard_count, bool)
    pending[store.pending_shards()] = True
    for rows in archive.iterate_rows(_SAMPLE_COLUMNS):
        rows = rows.loc[: store.rows - 1]
        if not len(rows):
            return
        first, stop = int(rows.index[0]), int(rows.index[-1]) + 1
        shards = np.arange(first, stop) // store.shard_rows
        status = np.where(pending[shards], PENDING, store.read_range("status", first, stop))
        image = np.where(status == SCORED, store.read_range("image_score", first, stop), np.nan)
        reasons: dict[int, str] = {
            failure["row"]: failure["reason"]
            for shard in np.unique(shards[status == FAILED]).tolist()
            for failure in store.read_record(shard)["failures"]
        }
        yield rows.assign(status=status, image_score=image, reason=pd.Series(reasons, dtype=object))


def _tabulate(rows: pd.DataFrame, slot: str, version: int, nulls: dict[str, Null]) -> arrow.Table:
    """Of rows with their scores (n), what is exported."""
    scored = (rows["status"] == SCORED).to_numpy()
    scores = rows["image_score"].to_numpy(np.float32)
    columns: dict[str, Any] = {
        "slot": [slot] * len(rows),
        "version": [version] * len(rows),
        "row": rows.index,
        **{name: rows[name] for name in (*_SAMPLE_COLUMNS, "reason")},
        "status": rows["status"].map(_STATUS),
        "image_score": arrow.array(scores, mask=~scored),
    }
    for name in _P_VALUES.values():
        values = np.full(len(rows), np.nan)
        if name in nulls:
            values[scored] = nulls[name].p_values(scores[scored])
        columns[name] = arrow.array(values, mask=~scored | (name not in nulls))
    return arrow.table(
        {name: arrow.array(columns[name], _EXPORTED.field(name).type, from_pandas=True) for name in _EXPORTED.names}, _EXPORTED
    )


@contextmanager
def _open_table(uri: str) -> Iterator[Callable[[arrow.Table], None]]:
    """What writes pieces of the exported table to a Parquet or CSV file."""
    writers: dict[str, Callable[[IO[bytes]], Any]] = {
        "parquet": lambda file: parquet.ParquetWriter(file, _EXPORTED, compression="zstd"),
        "csv": lambda file: csv.CSVWriter(file, _EXPORTED),
    }
    suffix = uri.rpartition(".")[2].lower()
    if suffix not in writers:
        raise ValueError(f"{uri}: scores are written as .parquet or .csv")
    with filesystems.open_for_writing(uri) as file, writers[suffix](file) as writer:
        yield writer.write_table if suffix == "parquet" else writer.write
