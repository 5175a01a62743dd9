"""What the headers of DICOM files say of a source's pictures: the same for every reader that lists such files."""

import io
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from storage import filesystems
from storage.dicom import DicomHeader, read_dicom_header
from storage.images import UnreadableImageError

BurnedIn = Annotated[
    Literal["exclude", "allow"],
    Field(description="DICOM pictures whose header says that text, which may be a name, is part of the pixels"),
]
Salt = Annotated[
    str,
    Field(description="key of the pseudonyms of DICOM patients; without one they can be found out by trying all patient IDs"),
]

_HEADER_BYTES = 1 << 18  # pixels begin before that in all but a few files
_HEADERS_AT_ONCE = 16  # object stores answer slowly, but many at a time


@dataclass(frozen=True, slots=True)
class Said:
    """What a header gives an item; of a file without one nothing.

    Attributes:
        person: the patient's pseudonym.
        spacing_um: µm per pixel.
        site: the part of the body.
        projection: of a radiograph: PA, AP, LL.
        excluded: why the picture must not be used: burned-in annotation, or a damaged file.
        missing: there is no such file, or none that may be read; the survey lists it with its reason.
    """

    person: str | None = None
    spacing_um: float | None = None
    site: str | None = None
    projection: str | None = None
    excluded: str | None = None
    missing: bool = False


NOTHING = Said()


def read_headers(uris: Iterable[str], *, burned_in: BurnedIn, salt: Salt) -> dict[str, Said]:
    """What the header of each of these DICOM files says."""
    files = list(dict.fromkeys(uris))
    with ThreadPoolExecutor(_HEADERS_AT_ONCE) as pool:
        return dict(zip(files, pool.map(lambda uri: _read(uri, burned_in, salt), files), strict=True))


def _read(uri: str, burned_in: BurnedIn, salt: Salt) -> Said:
    try:
        header = _read_header(uri, salt)
    except (FileNotFoundError, PermissionError):
        return Said(missing=True)
    except UnreadableImageError:  # whose message may quote a damaged field, and so a name
        return Said(excluded="unreadable DICOM file")
    return Said(
        person=header.patient_key,
        spacing_um=header.spacing_um,
        site=header.body_part,
        projection=header.projection,
        excluded="burned-in annotation" if header.burned_in_annotation and burned_in == "exclude" else None,
    )


def _read_header(uri: str, salt: str) -> DicomHeader:
    """Read no more of a file than its header, where that is as short as headers are."""
    start = io.BytesIO(filesystems.read_ranges(uri, [(0, _HEADER_BYTES)])[0])
    start.name = uri  # for the error
    try:
        header = read_dicom_header(start, salt=salt)
        if start.tell() < _HEADER_BYTES:  # the pixels, or the file's end, were reached
            return header
    except UnreadableImageError:
        if len(start.getbuffer()) < _HEADER_BYTES:
            raise
    with filesystems.open_for_reading(uri) as file:
        return read_dicom_header(file, salt=salt)
