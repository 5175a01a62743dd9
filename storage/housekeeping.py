"""What lies below a place, half-written files too, and how it is taken away. Local folders and buckets."""

import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from storage import conditional, filesystems, object_stores

_DELETED_AT_ONCE = 1000  # what S3 takes in one request


class StoredFile(NamedTuple):
    """A file: its path below what was listed, its bytes, and when it was last written (seconds since 1970)."""

    path: str
    size_bytes: int
    modified: float


def list_everything(uri: str) -> list[StoredFile]:
    """All files below a folder or prefix, hidden and half-written ones too, in no order; none where nothing is there.

    Links to folders are not followed.

    Raises:
        ValueError: neither a local folder nor s3://.
    """
    if object_stores.is_object_store(uri):
        with object_stores.explained(uri):
            bucket, path = object_stores.open_object(uri.rstrip("/"))
            entries = [entry for batch in bucket.reader.list(path) for entry in batch]
            return [StoredFile(entry["path"][len(path) + 1 :], entry["size"], entry["last_modified"].timestamp()) for entry in entries]
    return list(_list_below(str(_local(uri))))


def remove(uri: str) -> None:
    """Take away a file, or a folder with all that is in it; what is gone already is no error.

    Of a Zarr group its own metadata go first: a removal that is cut short leaves no store that seems whole.

    Raises:
        ValueError: neither local nor s3://, or a link.
    """
    if object_stores.is_object_store(uri):
        with object_stores.explained(uri):
            bucket, path = object_stores.open_object(uri.rstrip("/"))
            below = sorted((f"{path}/{file.path}" for file in list_everything(uri)), key=lambda name: name != f"{path}/zarr.json")
            paths = below or [path]
            for start in range(0, len(paths), _DELETED_AT_ONCE):
                bucket.writer.delete(paths[start : start + _DELETED_AT_ONCE])
        return
    place = _local(uri)
    if place.is_symlink():
        raise ValueError(f"{uri} is a link: remove it by hand")
    if place.is_dir():
        (place / "zarr.json").unlink(missing_ok=True)
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


class Probe(NamedTuple):
    """What a place did with a small file: seconds to write, read and remove it, and whether conditions of writes are kept."""

    seconds: float
    conditional: bool


def probe(uri: str) -> Probe:
    """Write, read and remove a small file in a folder or prefix; in a bucket also whether a file is made only where there is none.

    Local folders keep conditions by locks (`storage.conditional`), which are not tried.

    Raises:
        OSError: it cannot be written, read or removed; ValueError: neither local nor s3://; RuntimeError: another content came back.
    """
    content, place = uuid.uuid4().hex.encode(), filesystems.join(uri, f"probe-of-normascope-{uuid.uuid4().hex}")
    started = time.monotonic()
    filesystems.write_bytes(place, content)
    try:
        if filesystems.read_bytes(place) != content:
            raise RuntimeError(f"{uri} gave back something else than was written")
        kept = True
        if object_stores.is_object_store(uri):
            try:
                conditional.create(place, content)
                kept = False
            except FileExistsError:
                pass
    finally:
        remove(place)
    return Probe(time.monotonic() - started, kept)


def _list_below(folder: str) -> Iterator[StoredFile]:
    for path, entry in filesystems.walk(folder):
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:  # renamed meanwhile
            continue
        yield StoredFile(path, status.st_size, status.st_mtime)


def _local(uri: str) -> Path:
    path = filesystems.local_path(uri)
    if path is None:
        raise ValueError(f"{uri}: only local folders and s3:// are cleaned")
    return path
