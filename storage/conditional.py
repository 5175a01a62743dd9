"""Small files that several processes replace, each only if it is still what it has read: create, read, replace.

Locally under a lock on a hidden file beside it; in buckets by If-None-Match and If-Match. Anything else is refused.
"""

import fcntl
import hashlib
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from storage import filesystems, object_stores

_MARK = "writer"  # metadata of an object that names the call that wrote it


class ConflictError(RuntimeError):
    """Somebody else has replaced the file since it was read."""


def read(uri: str) -> tuple[bytes, str]:
    """Content, and the version that `replace` asks for.

    Raises:
        FileNotFoundError: nothing is there.
    """
    if not object_stores.is_object_store(uri):
        content = _local(uri).read_bytes()
        return content, _digest(content)
    with object_stores.explained(uri):
        bucket, path = object_stores.open_object(uri)
        answer = bucket.reader.get(path)
        return bytes(answer.bytes()), str(answer.meta["e_tag"])


def create(uri: str, content: bytes) -> str:
    """Write a file that is not there yet; returns its version.

    Raises:
        FileExistsError: one is there.
    """
    if object_stores.is_object_store(uri):
        return _put(uri, content, "create")
    with _locked(uri) as path:
        if path.exists():
            raise FileExistsError(f"{uri} is there already")
        filesystems.write_bytes(uri, content)
    return _digest(content)


def replace(uri: str, content: bytes, version: str) -> str:
    """Write a file if its version is still the one that was read; returns the new version.

    Raises:
        ConflictError: it is another one, or the file is gone.
    """
    if object_stores.is_object_store(uri):
        return _put(uri, content, {"e_tag": version})
    with _locked(uri) as path:
        if not path.exists() or _digest(path.read_bytes()) != version:
            raise ConflictError(f"{uri} was replaced by another process")
        filesystems.write_bytes(uri, content)
    return _digest(content)


def _put(uri: str, content: bytes, mode: Any) -> str:
    from obstore.exceptions import PreconditionError

    mark = uuid.uuid4().hex
    try:
        with object_stores.explained(uri):
            bucket, path = object_stores.open_object(uri)
            return str(bucket.writer.put(path, content, mode=mode, attributes={_MARK: mark})["e_tag"])
    except (PreconditionError, FileExistsError, FileNotFoundError) as error:
        # a request whose answer got lost is sent again, and then meets what it has written itself
        version = _version_marked(uri, mark)
        if version is not None:
            return version
        if isinstance(error, FileExistsError):
            raise
        raise ConflictError(f"{uri} was replaced by another process") from error


def _version_marked(uri: str, mark: str) -> str | None:
    """The version of what is there, if this very call has written it."""
    try:
        with object_stores.explained(uri):
            bucket, path = object_stores.open_object(uri)
            answer = bucket.reader.get(path)
    except FileNotFoundError:
        return None
    return str(answer.meta["e_tag"]) if answer.attributes.get(_MARK) == mark else None


def _local(uri: str) -> Path:
    path = filesystems.local_path(uri)
    if path is None:
        raise ValueError(f"{uri}: only local folders and s3:// can replace a file conditionally; put the archive there")
    return path


@contextmanager
def _locked(uri: str) -> Iterator[Path]:
    path = _local(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # goes with the file, also when the process is killed
        yield path


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
