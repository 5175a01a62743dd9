"""Whole slides in DICOM: a series of files in one folder, one or more a level, besides pictures of the label and of the whole glass.

OpenSlide is given any one of the files and finds the others by itself (PS3.3 A.32.8; OpenSlide's "DICOM" format).
"""

import io
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from storage import filesystems
from storage.dicom import DicomSlideHeader, read_slide_header
from storage.pictures import is_dicom

_HEADER_BYTES = 1 << 16  # what is looked for stands before optical paths (with their colour profiles) and frames
_HEADERS_AT_ONCE = 16  # object stores answer slowly, but many at a time


def slide_header_of(uri: str) -> DicomSlideHeader | None:
    """What a DICOM file says of the whole slide that it belongs to; None of any other file.

    Raises:
        OSError: The file is not there or does not answer.
    """
    if not is_dicom(uri):
        return None
    return read_slide_header(io.BytesIO(filesystems.read_ranges(uri, [(0, _HEADER_BYTES)])[0]))


def keep_one_file_a_slide(uris: Sequence[str], *, named: Iterable[str] = ()) -> list[str]:
    """The files in their order without those that belong to a slide of which another file stands for the whole.

    Of the files of one series in one folder that is the one of the largest level, the first by name where a level has several; or the
    one that is `named` by a table. A series without a level keeps one file too, so that it is reported and not lost.
    """
    chosen = set(named)
    best: dict[tuple[str, str], tuple[bool, int]] = {}
    kept: dict[tuple[str, str], str] = {}
    dicom = [uri for uri in uris if is_dicom(uri)]
    with ThreadPoolExecutor(_HEADERS_AT_ONCE) as pool:
        headers = dict(zip(dicom, pool.map(_header_or_none, dicom), strict=True))
    for uri, header in headers.items():
        if header is None:
            continue
        slide, rank = (uri.rsplit("/", 1)[0], header.series), (uri in chosen, header.level_pixels)
        if slide not in best or rank > best[slide]:
            best[slide], kept[slide] = rank, uri
    standing = set(kept.values())
    return [uri for uri in dict.fromkeys(uris) if headers.get(uri) is None or uri in standing]


def _header_or_none(uri: str) -> DicomSlideHeader | None:
    try:
        return slide_header_of(uri)
    except (FileNotFoundError, PermissionError):  # the survey lists it with its reason
        return None
