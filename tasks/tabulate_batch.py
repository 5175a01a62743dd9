"""What a worker does to curate: a batch's items → the table of their rows. Knows no Prefect."""

import hashlib
import re
from collections import Counter

from storage import filesystems
from storage.datasets.source import SourceError, stem_of
from storage.manifest import write_rows
from storage.slides import is_slide
from tasks.curation import CurationConfig, TilingConfig
from tasks.picture_rows import tabulate_picture
from tasks.reasons import without_path
from tasks.references import BatchReference, ItemReference, TableReference
from tasks.rows import NOWHERE, Tabulated, make_row, to_table
from tasks.samples import READ_ERRORS
from tasks.slide_rows import tabulate_slide
from tasks.survey import read_batch

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_STEM_LETTERS = 80
_NOTHING_CUT = ("no tile: ", "no skin")


def tabulate_batch(batch: BatchReference, tiling: TilingConfig, curation: CurationConfig, stain: str | None, store: str) -> TableReference:
    """The rows of a batch as a table named by its content; what cannot be read becomes one excluded row."""
    items = read_batch(batch)
    tabulated = [_tabulate_item(item, tiling, curation, stain) for item in items]
    table = to_table(tabulated)
    uri = write_rows(filesystems.join(store, "tables"), table)
    found_of = list(zip(items, tabulated, strict=True))
    notes = Counter(found.note for found in tabulated)
    return TableReference(
        uri=uri,
        name=batch["name"],
        items=len(tabulated),
        unusable=sum(found.note.startswith("unusable") for found in tabulated),
        rows=len(table),
        excluded=len(table) - table["excluded"].null_count,
        note="; ".join(note if count == 1 else f"{count} × {note}" for note, count in notes.most_common(5)),
        preview_uris=[_write_preview(found.preview, item, store) for item, found in found_of if found.preview is not None],
        troubles=[trouble for item, found in found_of if (trouble := _trouble(item, found)) is not None],
    )


def _tabulate_item(item: ItemReference, tiling: TilingConfig, curation: CurationConfig, stain: str | None) -> Tabulated:
    try:
        if item["unreadable"] is not None:
            raise FileNotFoundError(item["unreadable"])
        if item["excluded"] is not None:
            return Tabulated([make_row(item, NOWHERE, label=item["label"], excluded=item["excluded"])], item["excluded"])
        as_slide = item["frame"] is None and is_slide(item["uri"])
        return (tabulate_slide if as_slide else tabulate_picture)(item, tiling, curation, stain=stain)
    except (*READ_ERRORS, SourceError, ValueError) as error:
        return Tabulated([make_row(item, NOWHERE, excluded=f"unusable: {error}")], f"unusable: {without_path(str(error), item['uri'])}")


def _trouble(item: ItemReference, found: Tabulated) -> str | None:
    """A line for a person about a file of which nothing can be used, though its source wanted it."""
    if found.note.startswith("unusable: "):
        return f"{_name(item)} is {found.note}"
    reason = found.rows[0]["excluded"] if isinstance(found.rows, list) and len(found.rows) == 1 else None
    return f"{_name(item)}: {reason}" if reason is not None and reason.startswith(_NOTHING_CUT) else None


def _name(item: ItemReference) -> str:
    return item["uri"] if item["frame"] is None else f"{item['uri']}#{item['frame']}"


def _write_preview(preview: bytes, item: ItemReference, store: str) -> str:
    """Named like its file, and by its content: two files may have one name."""
    frame = "" if item["frame"] is None else f"-{item['frame']}"
    stem = _UNSAFE.sub("-", stem_of(item["uri"]) + frame)[:_STEM_LETTERS].lstrip(".")
    uri = filesystems.join(store, "previews", f"{stem}-{hashlib.sha256(preview).hexdigest()[:12]}.jpg")
    filesystems.write_bytes(uri, preview)
    return uri
