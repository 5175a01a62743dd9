"""Samples on their way to the model: rows of a manifest or an archive, read by threads that run ahead within a budget of bytes."""

import errno
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import Any, TypeVar

import numpy as np

from storage.archives import Archive, ManifestRows, open_rows
from storage.mounts import is_on_disk
from storage.patience import patiently
from tasks.references import RowsReference
from tasks.samples import READ_ERRORS, is_of_slide, read_samples

T = TypeVar("T")
R = TypeVar("R")

PATIENCE_S = 120.0  # a store that does not answer is asked again for so long; a sample is never failed for it
_COLUMNS = ("sample_id", "uri", "frame", "sha256", "level", "x_px", "y_px", "width_px", "height_px", "transform", "excluded")
_DAMAGED = (errno.EIO, errno.ENAMETOOLONG, errno.ELOOP)  # of a local file, which waiting does not mend
# what a bucket's server or its client says of keys; of one object it says AccessDenied, and that is a failed sample
_KEYS = ("Expired", "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "RequestTimeTooSkewed", "Credential", "ProfileNotFound")
_READERS_FEW, _READERS_MANY = 1, 4
_opening = Lock()

Record = Mapping[Any, Any]  # a row's values by column, None where there is none
Sample = dict[int, np.ndarray] | str  # pixels (size, size, 3) uint8 by size, or why there are none


@dataclass(frozen=True)
class Piece:
    """Neighbouring rows of one picture, which is decoded once for them, or one row of a slide.

    Attributes:
        positions: of the rows among those that were asked for.
        held_bytes: most that is in memory from the beginning of its reading until it is handed over.
    """

    positions: list[int]
    held_bytes: int


def read_records(rows: RowsReference, first: int, stop: int) -> list[Record]:
    """What is needed of the rows first … stop - 1 for reading them.

    Raises:
        ManifestError, ArchiveError: another content than the reference names.
    """
    with _opening:
        source = _open_rows(rows["uri"], rows["digest"])
    table = source.read_rows(first, stop)
    columns = [table[name].astype(object).where(table[name].notna(), None).tolist() for name in _COLUMNS]
    return [dict(zip(_COLUMNS, values, strict=True)) for values in zip(*columns, strict=True)]


def cut_pieces(records: Sequence[Record], positions: Iterable[int], sizes_px: Sequence[int], *, alone: Collection[int] = ()) -> list[Piece]:
    """The rows at some positions as pieces; those in `alone` share theirs with no other."""
    groups: list[list[int]] = []
    last: tuple[Any, ...] | None = None  # the picture that the next row may share
    for position in positions:
        record = records[position]
        picture = record["uri"], record["frame"], record["sha256"], record["excluded"]
        if picture == last and position not in alone:
            groups[-1].append(position)
        else:
            groups.append([position])
        last = None if position in alone or _is_of_slide(record) else picture
    return [Piece(group, _held_bytes([records[position] for position in group], sizes_px)) for group in groups]


def count_readers(records: Sequence[Record], *, on_gpu: bool) -> int:
    """Threads that read for one shard: one where the cores that decode from a disk also compute the model, four where they wait for a
    network or feed a GPU.

    Two shards of a process are under way; with more threads than that, decoding and computing wait for each other and for the interpreter's
    lock: 5 to 10 % of the processor's time with small pictures.
    """
    first = records[0]["uri"]
    return _READERS_FEW if not on_gpu and is_on_disk(first) else _READERS_MANY


def join_pieces(pieces: Iterable[Piece], *, rows: int, held_bytes: int) -> Iterator[list[Piece]]:
    """Pieces that a thread reads one after the other, of so many rows and bytes: handing over each small picture alone costs time."""
    joined: list[Piece] = []
    for piece in pieces:
        together = [*joined, piece]
        if joined and (sum(len(one.positions) for one in together) > rows or sum(one.held_bytes for one in together) > held_bytes):
            yield joined
            together = [piece]
        joined = together
    if joined:
        yield joined


def read_piece(records: Sequence[Record], piece: Piece, sizes_px: Sequence[int]) -> list[Sample]:
    """The samples of a piece, or why there are none.

    Raises:
        PermissionError: keys have expired or are wrong: nothing is known of the samples either.
        OSError: a store did not answer for two minutes: nothing is known of the samples.
    """
    chosen = [records[position] for position in piece.positions]
    first = chosen[0]
    if first["excluded"] is not None:
        return [f"excluded by curation: {first['excluded']}"] * len(chosen)
    try:
        samples = patiently(lambda: read_samples(chosen, sizes_px), patience_s=PATIENCE_S, what=first["uri"])
    except READ_ERRORS as error:
        if isinstance(error, PermissionError) and _refuses_all(error):
            raise
        return [str(error)] * len(chosen)
    except OSError as error:
        if error.errno not in _DAMAGED:
            raise
        return [str(error)] * len(chosen)
    return [sample if isinstance(sample, dict) else str(sample) for sample in samples]


def read_ahead(
    items: Iterable[T], read: Callable[[T], R], *, held_bytes: Callable[[T], int], budget_bytes: int, readers: int
) -> Iterator[tuple[T, R]]:
    """Items with what `read` makes of them, in their order, while threads work on the next ones.

    What is being read or waits to be taken is at most `budget_bytes`, or a single item that is larger alone. An item counts until the one
    after it is asked for.
    """
    waiting: deque[tuple[T, int, Future[R]]] = deque()
    held, source = 0, iter(items)
    coming = next(source, None)
    with ThreadPoolExecutor(readers, thread_name_prefix="reader") as pool:
        try:
            while coming is not None or waiting:
                while coming is not None and (held == 0 or held + held_bytes(coming) <= budget_bytes):
                    held += held_bytes(coming)
                    waiting.append((coming, held_bytes(coming), pool.submit(read, coming)))
                    coming = next(source, None)
                item, size, future = waiting.popleft()
                yield item, future.result()
                held -= size
        finally:
            for _, _, future in waiting:
                future.cancel()


def _refuses_all(error: BaseException | None) -> bool:
    """Whether it is the keys that are refused: s3fs's cause holds the server's code, obstore's its whole answer."""
    while error is not None:
        code = getattr(error, "response", {}).get("Error", {}).get("Code", "")
        answer = str(error) if type(error).__module__.startswith("obstore") else ""
        if any(key in f"{type(error).__name__} {code} {answer}" for key in _KEYS):
            return True
        error = error.__cause__
    return False


def _held_bytes(records: Sequence[Record], sizes_px: Sequence[int]) -> int:
    if _is_of_slide(records[0]):
        pixels = records[0]["width_px"] * records[0]["height_px"]
    else:  # the whole picture, as far as is known
        pixels = max(record["x_px"] + record["width_px"] for record in records) * max(r["y_px"] + r["height_px"] for r in records)
    return 4 * pixels + 3 * len(records) * sum(size_px**2 for size_px in sizes_px)  # Pillow keeps four bytes a pixel


def _is_of_slide(record: Record) -> bool:
    return record["excluded"] is None and is_of_slide(record)


@lru_cache(maxsize=2)
def _open_rows(uri: str, digest: str) -> Archive | ManifestRows:
    return open_rows(uri, digest)
