"""Local folders and object stores behind one URI: a plain path, file://, or anything fsspec opens (s3://…)."""

import errno
import hashlib
import io
import json
import os
import stat
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from itertools import islice
from pathlib import Path
from typing import IO, Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import pandas as pd
import pyarrow as arrow
from fsspec.core import url_to_fs
from pyarrow import compute, parquet

from storage import object_stores

_HASH_BLOCK_BYTES = 1 << 22
_TIMEOUTS = {"connect_timeout": object_stores.CONNECT_TIMEOUT_S, "read_timeout": object_stores.READ_TIMEOUT_S}  # else a stall costs 16 s
_PIECES_AT_ONCE = 4  # of a file on its way to a bucket: see `object_stores`
_BLOCK_FILES, _BLOCK_ROWS = 1 << 13, 1 << 14  # that are looked up at once, and of a book that are written at once
_LISTED_FROM = 20  # files of a folder in an object store that are asked for, from which on the folder is listed instead

P = ParamSpec("P")
R = TypeVar("R")


def _explained(function: Callable[Concatenate[str, P], R]) -> Callable[Concatenate[str, P], R]:
    """Turn what object stores raise into OSErrors that name the place and say what to do; a local disk's do so themselves.

    PermissionError: refused, or no credentials. ConnectionError: no answer.
    """

    @wraps(function)
    def explained(uri: str, *arguments: P.args, **options: P.kwargs) -> R:
        try:
            return function(uri, *arguments, **options)
        except Exception as error:
            if (isinstance(error, PermissionError) and error.errno is None) or type(error).__name__ in _WITHOUT_CREDENTIALS:
                raise PermissionError(f"{uri}: the object store gives no access ({error}); {_CREDENTIALS}") from error
            passing = isinstance(error, OSError) and error.errno in _WITH_TIME and "://" in uri and not uri.startswith("file://")
            if type(error).__module__ == "botocore.exceptions" or passing:
                raise ConnectionError(f"{uri}: the object store does not answer ({error}); {_ENDPOINT}") from error
            raise

    return explained


_WITHOUT_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound")
# how s3fs puts what a server answers that is overloaded or not yet up again (500, 502, 503, 504)
_WITH_TIME = (errno.EBUSY, errno.EREMOTEIO, errno.EIO)
_CREDENTIALS = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE), and what they may read and write"
_ENDPOINT = "check AWS_ENDPOINT_URL and the network"


def local_path(uri: str) -> Path | None:
    """The path behind a local URI, or None for an object store."""
    fs, path = _open_store(uri)
    return Path(path) if "file" in _protocols(fs) else None


def absolute(uri: str) -> str:
    """The same place whatever the working folder is: an absolute path, or the URI of an object store unchanged."""
    path = local_path(uri)
    return str(path.absolute()) if path is not None else uri.rstrip("/")


def join(uri: str, *parts: str) -> str:
    """Append path parts to a URI."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def name_of(uri: str) -> str:
    """The last part of a URI, with its suffix."""
    return uri.rstrip("/").rsplit("/", 1)[-1]


def as_link(uri: str) -> str:
    """What a browser opens: file:// for a local path, the URI itself for anything else."""
    path = local_path(uri)
    return path.as_uri() if path is not None else uri


@_explained
def exists(uri: str) -> bool:
    """Whether something, a file or a folder, is there."""
    fs, path = _open_store(uri)
    return bool(fs.exists(path))


@_explained
def list_files(uri: str) -> list[str]:
    """All files below a folder, sorted, as URIs of the same kind; hidden files and half-written ones are left out."""
    fs, path = _open_store(uri)
    below = [name[len(path) :] for name in (_files_below(path) if "file" in _protocols(fs) else map(str, fs.find(path)))]
    visible = [name for name in below if not any(part.startswith(".") for part in name.split("/")) and not name.endswith(".partial")]
    return sorted(path + name if "file" in _protocols(fs) else join(uri, name) for name in visible)


def list_sizes(uri: str) -> dict[str, int]:
    """Bytes of all files below a folder by their paths in it; half-written ones are left out, and nothing is there where it does not exist.

    A bucket is listed a thousand files an answer, a hundred thousand in a few seconds.
    """
    if object_stores.is_object_store(uri):
        with object_stores.explained(uri):
            bucket, path = object_stores.open_object(uri.rstrip("/"))
            entries = [entry for batch in bucket.reader.list(path) for entry in batch if not entry["path"].endswith(".partial")]
            return {entry["path"][len(path) + 1 :]: entry["size"] for entry in entries}
    fs, path = _open_store(uri)
    if "file" in _protocols(fs):
        return {name: entry.stat().st_size for name, entry in walk(path) if not name.endswith(".partial")}
    found = fs.find(path, detail=True).items()
    return {str(name)[len(path) :].strip("/"): int(entry["size"]) for name, entry in found if not str(name).endswith(".partial")}


def walk(folder: str, below: str = "") -> Iterator[tuple[str, os.DirEntry[str]]]:
    """All files below a local folder, in no order, each with its path in the folder; nothing where there is no folder.

    Links to folders are not followed: they count as files.
    """
    try:
        with os.scandir(folder) as found:
            entries = list(found)
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from walk(entry.path, f"{below}{entry.name}/")
        else:
            yield below + entry.name, entry


@_explained
def list_right_in(uri: str) -> list[str]:
    """The files in a folder and not below it, as URIs of the same kind, in no order; without hidden ones. None of what is no folder."""
    fs, path = _open_store(uri)
    if "file" in _protocols(fs):
        if not Path(path).is_dir():
            return []
        with os.scandir(path) as entries:
            names = [entry.name for entry in entries if entry.is_file()]
    else:
        names = [name_of(entry["name"]) for entry in _list_entries(uri) if entry["type"] == "file"]
    return [join(uri, name) for name in names if not name.startswith(".")]


@_explained
def list_folders(uri: str) -> list[str]:
    """The folders right below a folder, sorted; none where the folder does not exist."""
    fs, path = _open_store(uri)
    if not fs.isdir(path):
        return []
    return sorted(join(uri, name_of(entry["name"])) for entry in fs.ls(path, detail=True) if entry["type"] == "directory")


@_explained
def open_for_reading(uri: str, *, ahead_bytes: int | None = None) -> Any:
    """A binary file object that seeks.

    From an object store every read fetches `ahead_bytes` more than it asks for: s3fs's 50 MiB where not given, which suits what is read
    whole. Who jumps about in a large file gives less.
    """
    if uri.startswith("/"):  # fsspec's way to the same file takes as long as decoding a small picture's header
        return Path(uri).open("rb")
    fs, path = _open_store(uri)
    return fs.open(path, "rb", block_size=ahead_bytes)


def open_whole(uri: str) -> Any:
    """A binary file object of a file that will be read to its end: from a bucket one request, where one that seeks takes two and more."""
    return io.BytesIO(read_bytes(uri)) if object_stores.is_object_store(uri) else open_for_reading(uri)


@_explained
def read_bytes(uri: str) -> bytes:
    """The whole content of a file."""
    if object_stores.is_object_store(uri):
        with object_stores.explained(uri):
            bucket, path = object_stores.open_object(uri)
            return bytes(bucket.reader.get(path).bytes())
    fs, path = _open_store(uri)
    return bytes(fs.cat_file(path))


@_explained
def read_ranges(uri: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Parts of a file by (offset, count), from an object store all at once."""
    fs, path = _open_store(uri)
    starts, ends = [offset for offset, _ in ranges], [offset + count for offset, count in ranges]
    return list(fs.cat_ranges([path] * len(ranges), starts, ends, on_error="raise"))


@_explained
def write_bytes(uri: str, content: bytes) -> None:
    """Write a file whole or not at all: a temporary file renamed locally, one put in an object store."""
    if object_stores.is_object_store(uri):
        # not by s3fs: it asks whether to go on before it sends, and waits for ever for a server that took the connection and is silent
        with object_stores.explained(uri):
            bucket, path = object_stores.open_object(uri)
            bucket.writer.put(path, content)
        return
    fs, path = _open_store(uri)
    if "file" not in _protocols(fs):
        fs.pipe_file(path, content)
        return
    with _partial(Path(path)) as file:
        file.write(content)


@contextmanager
def open_for_writing(uri: str) -> Iterator[IO[bytes]]:
    """A binary file for what is too long for `write_bytes`; it is there when the context ends without an error, else never.

    What goes to an object store is gathered in a temporary file.
    """
    fs, path = _open_store(uri)
    if "file" in _protocols(fs):
        with _partial(Path(path)) as file:
            yield file
        return
    with tempfile.TemporaryDirectory() as folder:
        gathered = Path(folder) / name_of(uri)
        with gathered.open("wb") as file:
            yield file
        _upload(uri, gathered)


@_explained
def settle(uri: str) -> int:
    """The bytes of a file that somebody has just written, once it is sure to outlive a power cut."""
    if object_stores.is_object_store(uri):
        with object_stores.explained(uri):
            bucket, path = object_stores.open_object(uri)
            return int(bucket.reader.head(path)["size"])
    fs, path = _open_store(uri)
    if "file" not in _protocols(fs):
        return int(fs.size(path))
    with Path(path).open("rb") as file:
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size


def read_json(uri: str) -> Any:
    """Parse a JSON file."""
    return json.loads(read_bytes(uri))


def write_json(uri: str, value: Any) -> None:
    """Write JSON with sorted keys, so that equal values are equal files."""
    write_bytes(uri, json.dumps(value, indent=2, sort_keys=True).encode() + b"\n")


def read_table(uri: str) -> pd.DataFrame:
    """Read a Parquet table."""
    with open_for_reading(uri) as file:
        return pd.read_parquet(file)


def write_table(uri: str, table: pd.DataFrame) -> None:
    """Write a Parquet table whole or not at all."""
    write_bytes(uri, table.to_parquet(index=False, compression="zstd"))


def read_book(uri: str, columns: arrow.Schema) -> arrow.Table:
    """What `write_book` wrote there, in these columns; empty where there is nothing."""
    if not exists(uri):
        return columns.empty_table()
    with open_for_reading(uri) as file:
        return parquet.read_table(file, columns=columns.names).cast(columns)


def write_book(uri: str, rows: arrow.Table, *, by: str) -> None:
    """Write a Parquet table whole or not at all, sorted by a column; of a long one there is no sorted or encoded copy in memory."""
    order = compute.sort_indices(rows[by])
    # without dictionaries, which Parquet gathers in memory: of names and digests nearly each is there once
    with open_for_writing(uri) as file, parquet.ParquetWriter(file, rows.schema, compression="zstd", use_dictionary=False) as writer:
        for start in range(0, len(order), _BLOCK_ROWS):
            writer.write_table(rows.take(order[start : start + _BLOCK_ROWS]))


@_explained
def sha256_of(uri: str) -> str:
    """The SHA-256 of a file's content, in hexadecimal, read in blocks."""
    digest = hashlib.sha256()
    with open_for_reading(uri) as file:
        while block := file.read(_HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


class FingerprintBook:
    """Remembers SHA-256 by size and modification stamp, so that an unchanged archive is not read again.

    The stamp is the time of the last change in nanoseconds for local files and the ETag in object stores; where a store has none
    the file is always read. It decides only whether to read; what counts is the content.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._changed = False
        self._known = read_book(uri, _BOOK)

    def fingerprint(self, uri: str) -> str:
        """SHA-256 of the content; raises FileNotFoundError where there is nothing."""
        [found] = self.fingerprint_all([uri])
        if isinstance(found, OSError):
            raise found
        return found

    def fingerprint_all(self, uris: Sequence[str], *, advance: Callable[[int], object] | None = None) -> list[str | OSError]:
        """SHA-256 of the content of each file, or the error that says why there is none.

        Args:
            uris: each once.
            advance: told of how many more files it is known.
        """
        places = compute.index_in(arrow.array(uris, arrow.string()), value_set=self._known["uri"])
        stamps, found, learned = _look_up_each(uris), list[str | OSError](), list[arrow.Table]()
        for start in range(0, len(uris), _BLOCK_FILES):  # what is known of a file besides takes more memory than its digest
            block = uris[start : start + _BLOCK_FILES]
            digests, changed = self._fingerprint_block(block, list(islice(stamps, len(block))), places[start : start + len(block)], advance)
            found += digests
            learned.append(changed)
        self._learn(learned)
        return found

    def _fingerprint_block(
        self, uris: Sequence[str], stamps: Sequence[tuple[int, str] | OSError], places: arrow.Array, advance: Callable[[int], object] | None
    ) -> tuple[list[str | OSError], arrow.Table]:
        """Digests or errors of some files, which stand at these places of the book, and what of them is not in the book as it is."""
        sizes, texts = ([None if isinstance(stamp, OSError) else stamp[part] for stamp in stamps] for part in (0, 1))
        now = arrow.table([list(uris), sizes, texts, [None] * len(stamps)], schema=_BOOK)
        before = self._known.take(places)
        same = [compute.equal(before[name], now[name]) for name in ("size_bytes", "stamp")]
        same = compute.fill_null(compute.and_(compute.and_(*same), compute.not_equal(now["stamp"], "")), False)
        found: list[str | OSError] = compute.if_else(same, before["sha256"], None).to_pylist()
        changed = np.flatnonzero(~same.to_numpy())
        if advance is not None:
            advance(len(found) - len(changed))
        for place in changed.tolist():
            stamp = stamps[place]
            found[place] = stamp if isinstance(stamp, OSError) else _sha256_or_error(uris[place])
            if advance is not None:
                advance(1)
        digests = [None if isinstance(found[place], OSError) else found[place] for place in changed.tolist()]
        rows = now.take(changed).set_column(3, "sha256", arrow.array(digests, arrow.string()))
        return found, rows.filter(compute.is_valid(rows["sha256"]))

    def save(self) -> None:
        """Keep what was learned for the next run."""
        if self._changed:
            write_book(self._uri, self._known, by="uri")
            self._changed = False

    def _learn(self, learned: Sequence[arrow.Table]) -> None:
        rows = arrow.concat_tables(learned) if learned else _BOOK.empty_table()
        if len(rows):
            others = self._known.filter(compute.invert(compute.is_in(self._known["uri"], value_set=rows["uri"])))
            self._known, self._changed = arrow.concat_tables([others, rows]), True


_BOOK = arrow.schema([("uri", arrow.string()), ("size_bytes", arrow.int64()), ("stamp", arrow.string()), ("sha256", arrow.string())])


def _sha256_or_error(uri: str) -> str | OSError:
    try:
        return sha256_of(uri)
    except OSError as error:
        return error


def _look_up_each(uris: Sequence[str]) -> Iterator[tuple[int, str] | OSError]:
    """Of each file its size and stamp, or why there are none.

    A local disk is asked without fsspec, whose answer takes ten times as long as the disk's. Of an object store whole folders are listed
    where many of their files are asked for: a thousand files an answer instead of one.
    """
    asked = Counter(_folder_of(uri) for uri in uris if not uri.startswith("/"))
    listed = {folder: _stamps_in(folder) for folder, count in asked.items() if count >= _LISTED_FROM}
    for uri in uris:
        yield _look_up_local(uri) if uri.startswith("/") else listed.get(_folder_of(uri), {}).get(uri) or _look_up(uri)


def _look_up_local(path: str) -> tuple[int, str] | OSError:
    try:
        status = os.stat(path)  # noqa: PTH116 — a Path of each of a million files takes as long as asking for it
    except OSError as error:
        return error
    if stat.S_ISDIR(status.st_mode):
        return IsADirectoryError(f"expected a file, found a folder: {path}")
    return status.st_size, str(status.st_mtime_ns)


def _look_up(uri: str) -> tuple[int, str] | OSError:
    """Of one file by fsspec; an empty stamp where the store has none."""
    try:
        fs, path = _open_store(uri)
        if "file" in _protocols(fs):
            return _look_up_local(path)
        info = _ask(uri)
    except OSError as error:
        return error
    if info["type"] == "directory":
        return IsADirectoryError(f"expected a file, found a folder: {uri}")
    return _stamp(info)


@_explained
def _ask(uri: str) -> dict[str, Any]:
    fs, path = _open_store(uri)
    return dict(fs.info(path))


def _stamps_in(folder: str) -> dict[str, tuple[int, str]]:
    """Size and stamp of the files right in a folder of an object store; nothing where it cannot be listed: then each file is asked for."""
    try:
        entries = _list_entries(folder)
    except OSError:
        return {}
    return {join(folder, name_of(entry["name"])): _stamp(entry) for entry in entries if entry["type"] == "file"}


@_explained
def _list_entries(folder: str) -> list[dict[str, Any]]:
    fs, path = _open_store(folder)
    return list(fs.ls(path, detail=True))


def _stamp(info: dict[str, Any]) -> tuple[int, str]:
    return int(info["size"]), str(info.get("ETag") or info.get("LastModified") or "")


def _folder_of(uri: str) -> str:
    return uri.rpartition("/")[0]


def _files_below(folder: str) -> Iterator[str]:
    """All files below a local folder, in any order; links to folders are not followed. fsspec's own search takes twenty times as long."""
    try:
        with os.scandir(folder) as found:
            entries = list(found)
    except NotADirectoryError:
        yield folder
        return
    except OSError:  # what cannot be listed is empty, as fsspec has it
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _files_below(entry.path)
        else:
            yield entry.path


@_explained
def _upload(uri: str, file: Path) -> None:
    if object_stores.is_object_store(uri):
        with object_stores.explained(uri):
            bucket, path = object_stores.open_object(uri)
            bucket.writer.put(path, file, max_concurrency=_PIECES_AT_ONCE)
    else:
        fs, path = _open_store(uri)
        fs.put_file(str(file), path)


@contextmanager
def _partial(target: Path) -> Iterator[IO[bytes]]:
    """A temporary file that takes its name when it is on the disk, or goes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # else a power cut can leave the new name with no content
        partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _open_store(uri: str) -> tuple[Any, str]:
    # listings are not remembered: other processes, and Zarr beside us, write to the same places
    options = {"config_kwargs": _TIMEOUTS} if object_stores.is_object_store(uri) else {}
    fs, path = url_to_fs(uri, use_listings_cache=False, **options)
    return fs, str(path)


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)
