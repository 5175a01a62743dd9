"""Proof that a score store is whole: every row scored once or failed with a reason, every value the one that was written."""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np

from storage.patience import can_pass, patiently
from storage.scores import FAILED, PENDING, ScoreStore, digests_of

_TYPES = {"image_score": "float32", "status": "uint8", "anomaly_map": "float16"}
_PATIENCE_S = 60
_Files = dict[str, dict[str, int]]  # bytes of the files by array and path


@dataclass(frozen=True)
class Problem:
    """Something that is not as it should be, and where: a shard with its rows, a file, an array."""

    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


@dataclass
class Findings:
    """What a look at a store found; `failures` are (row, sample_id)."""

    scored: int = 0
    failed: int = 0
    failures: list[tuple[int, str]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def verify_store(store: ScoreStore, *, quick: bool = False, advance: Callable[[int], object] = lambda shards: None) -> Findings:
    """Look at every shard: its files, its record, and its values against the record's SHA-256.

    As many shards as there are cores are in memory at a time, whatever the size of the store.

    Args:
        store: what is pending in it is a problem like any other.
        quick: compare the sizes of files with the records and leave the values undecoded: a byte that has flipped is not seen.
        advance: told of the shards that were looked at.
    """
    files = store.list_files()
    findings = Findings(problems=[*_check_arrays(store), *_find_strays(store, files)])
    recorded = [shard for shard in range(store.shard_count) if store.record_name(shard) in files["records"]]
    findings.problems += _describe_unrecorded(store, files, sorted(set(range(store.shard_count)) - set(recorded)))
    advance(store.shard_count - len(recorded))
    for one in _map_ahead(lambda shard: _check_shard(store, shard, files, quick=quick), recorded):
        findings.scored += one.scored
        findings.failed += one.failed
        findings.failures += one.failures
        findings.problems += one.problems
        advance(1)
    return findings


def _check_arrays(store: ScoreStore) -> Iterator[Problem]:
    for name, array in store.arrays.items():
        inner = (store.map_size_px, store.map_size_px) if name == "anomaly_map" else ()
        cut = array.shards or array.chunks
        if array.shape[0] < store.rows or array.shape[1:] != inner or str(array.dtype) != _TYPES[name] or cut[0] != store.shard_rows:
            expected = f"{(store.rows, *inner)} {_TYPES[name]} in shards of {store.shard_rows}"
            yield Problem(f"array {name}", f"expected {expected} rows, found {array.shape} {array.dtype} in shards of {cut[0]}")


def _find_strays(store: ScoreStore, files: _Files) -> Iterator[Problem]:
    """Files of shards that the store does not have."""
    for name, paths in files.items():
        for path in paths:
            shard = _shard_of(path)
            if shard is not None and shard >= store.shard_count:
                yield Problem(f"{name}/{path}", f"the store has no shard {shard}: it ends with {store.shard_count - 1}")


def _shard_of(path: str) -> int | None:
    """Of a chunk or a record; None for metadata."""
    number = path.split(".")[1] if path.startswith("c.") else path[6:14] if path.startswith("shard-") else ""
    return int(number) if number.isdigit() else None


def _describe_unrecorded(store: ScoreStore, files: _Files, shards: list[int]) -> Iterator[Problem]:
    """Neighbours are one problem."""
    begun = {_shard_of(path) for name, paths in files.items() if name != "records" for path in paths}
    for (_, has_files), run in groupby(enumerate(shards), key=lambda pair: (pair[1] - pair[0], pair[1] in begun)):
        numbers = [shard for _, shard in run]
        first, stop = store.rows_of(numbers[0]).start, store.rows_of(numbers[-1]).stop
        name = f"shard {numbers[0]}" if len(numbers) == 1 else f"shards {numbers[0]} to {numbers[-1]}"
        state = "has files and no record of its rows: cut short, grown since, or its record is lost" if has_files else "pending"
        yield Problem(f"{name} (rows {first} to {stop - 1})", state)


def _check_shard(store: ScoreStore, shard: int, files: _Files, *, quick: bool) -> Findings:
    rows = store.rows_of(shard)
    where = f"shard {shard} (rows {rows.start} to {rows.stop - 1})"
    try:
        record = store.read_record(shard)
        texts = list(_check_record(record, rows))
        failures = [(int(failure["row"]), str(failure["sample_id"])) for failure in record["failures"]]
        for name in store.arrays:
            texts += _check_array(store, shard, name, record, files[name].get(store.chunk_path(name, shard)), quick=quick)
    except (ValueError, KeyError, TypeError, AttributeError, FileNotFoundError) as error:
        return Findings(problems=[Problem(where, f"its record cannot be read ({type(error).__name__}: {error})")])
    problems = [Problem(where, text) for text in texts]
    return Findings(scored=int(record["scored"]), failed=int(record["failed"]), failures=failures, problems=problems)


def _check_record(record: dict[str, Any], rows: range) -> Iterator[str]:
    """Whether the record is of these rows, and agrees with itself."""
    failed = [int(failure["row"]) for failure in record["failures"]]
    if record["rows"] != [rows.start, rows.stop]:
        yield f"its record is of rows {record['rows'][0]} to {record['rows'][1] - 1}"
    if record["failed"] != len(failed) or record["scored"] + record["failed"] != len(rows):
        yield f"its record counts {record['scored']} scored and {record['failed']} failed of {len(rows)}, and names {len(failed)} failures"
    if len(set(failed)) != len(failed) or any(row not in rows for row in failed):
        yield "its record names a failure twice, or one of other rows"
    if any(not failure["reason"] for failure in record["failures"]):
        yield "its record names a failure without a reason"


def _check_array(store: ScoreStore, shard: int, name: str, record: dict[str, Any], size: int | None, *, quick: bool) -> Iterator[str]:
    """The file of one array against the record: there, whole, and with the values that were written."""
    rows, path = store.rows_of(shard), f"{name}/{store.chunk_path(name, shard)}"
    if size is None:
        yield f"{path} is missing"
        return
    if size != record["bytes"][name]:
        yield f"{path} holds {size} bytes where {record['bytes'][name]} were written: torn"
        return
    if quick:
        return
    try:
        values = patiently(lambda: store.read_range(name, rows.start, rows.stop), patience_s=_PATIENCE_S, what=path)
    except Exception as error:  # whatever Zarr and its codecs make of a broken file
        if can_pass(error):
            raise
        yield f"{path} cannot be decoded ({type(error).__name__}: {error}): torn"
        return
    if digests_of({name: values})[name] != record["sha256"][name]:
        yield f"{path} holds other values than were written: its SHA-256 is not the record's"
    elif name == "status":
        failed = {int(failure["row"]) - rows.start for failure in record["failures"]}
        if set(np.flatnonzero(values == FAILED).tolist()) != failed or (values == PENDING).any():
            yield "its status and its record differ in which rows failed"


def _map_ahead(function: Callable[[int], Findings], shards: list[int]) -> Iterator[Findings]:
    """Results in order, of a few threads that run only a little ahead of what is taken."""
    workers = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque[Future[Findings]] = deque()
        for shard in shards:
            ahead.append(pool.submit(function, shard))
            if len(ahead) > 2 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
