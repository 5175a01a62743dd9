"""Local folders and object stores behind one URI: a plain path, file://, or anything fsspec opens (s3://…)."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import pandas as pd
from fsspec.core import url_to_fs

_HASH_BLOCK_BYTES = 1 << 22

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
            if type(error).__module__ == "botocore.exceptions":
                raise ConnectionError(f"{uri}: the object store does not answer ({error}); {_ENDPOINT}") from error
            raise

    return explained


_WITHOUT_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound")
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
    below = [str(name)[len(path) :] for name in fs.find(path)]
    visible = [name for name in below if not any(part.startswith(".") for part in name.split("/")) and not name.endswith(".partial")]
    return sorted(path + name if "file" in _protocols(fs) else join(uri, name) for name in visible)


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
    fs, path = _open_store(uri)
    return fs.open(path, "rb", block_size=ahead_bytes)


@_explained
def read_bytes(uri: str) -> bytes:
    """The whole content of a file."""
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
    fs, path = _open_store(uri)
    if "file" not in _protocols(fs):
        fs.pipe_file(path, content)
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # else a power cut can leave the new name with no content
        partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


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
        self._known: dict[str, tuple[int, str, str]] = {}
        self._changed = False
        if exists(uri):
            table = read_table(uri)
            self._known = {str(uri): (int(size), str(stamp), str(digest)) for uri, size, stamp, digest in table.to_numpy().tolist()}

    def fingerprint(self, uri: str) -> str:
        """SHA-256 of the content; raises FileNotFoundError where there is nothing."""
        size_bytes, stamp = _look_up(uri)
        known = self._known.get(uri)
        if stamp and known is not None and known[:2] == (size_bytes, stamp):
            return known[2]
        digest = sha256_of(uri)
        self._known[uri] = (size_bytes, stamp, digest)
        self._changed = True
        return digest

    def save(self) -> None:
        """Keep what was learned for the next run."""
        if self._changed:
            rows = [(uri, *entry) for uri, entry in sorted(self._known.items())]
            write_table(self._uri, pd.DataFrame(rows, columns=["uri", "size_bytes", "stamp", "sha256"]))
            self._changed = False


@_explained
def _look_up(uri: str) -> tuple[int, str]:
    """Size in bytes and modification stamp of a file; an empty stamp where the store has none."""
    fs, path = _open_store(uri)
    info = fs.info(path)
    if info["type"] == "directory":
        raise IsADirectoryError(f"expected a file, found a folder: {uri}")
    stamp = str(Path(path).stat().st_mtime_ns) if "file" in _protocols(fs) else str(info.get("ETag") or info.get("LastModified") or "")
    return int(info["size"]), stamp


def _open_store(uri: str) -> tuple[Any, str]:
    # listings are not remembered: other processes, and Zarr beside us, write to the same places
    fs, path = url_to_fs(uri, use_listings_cache=False)
    return fs, str(path)


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)
