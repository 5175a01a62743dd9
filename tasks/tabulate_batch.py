"""What a worker does to curate: a batch's items → the table of their rows. Knows no Prefect."""

import hashlib
import logging
from collections import Counter

from storage import filesystems
from storage.datasets.source import SourceError
from storage.manifest import write_rows
from storage.slides import is_slide
from tasks.curation import CurationConfig, TilingConfig
from tasks.picture_rows import tabulate_picture
from tasks.references import BatchReference, ItemReference, TableReference
from tasks.rows import NOWHERE, Tabulated, make_row, to_table
from tasks.samples import READ_ERRORS
from tasks.slide_rows import tabulate_slide
from tasks.survey import read_batch

logger = logging.getLogger(__name__)


def tabulate_batch(batch: BatchReference, tiling: TilingConfig, curation: CurationConfig, stain: str | None, store: str) -> TableReference:
    """The rows of a batch as a table named by its content; what cannot be read becomes one excluded row."""
    tabulated = [_tabulate_item(item, tiling, curation, stain) for item in read_batch(batch)]
    table = to_table(tabulated)
    uri = write_rows(filesystems.join(store, "tables"), table)
    preview_uris = [_write_preview(found.preview, store) for found in tabulated if found.preview is not None]
    notes = Counter(found.note for found in tabulated)
    return TableReference(
        uri=uri,
        name=batch["name"],
        items=len(tabulated),
        unusable=sum(found.note.startswith("unusable") for found in tabulated),
        rows=len(table),
        excluded=len(table) - table["excluded"].null_count,
        note="; ".join(note if count == 1 else f"{count} × {note}" for note, count in notes.most_common(5)),
        preview_uri=preview_uris[0] if preview_uris else None,
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
        logger.warning("%s is unusable: %s", item["uri"], error)
        return Tabulated([make_row(item, NOWHERE, excluded=f"unusable: {error}")], f"unusable: {error}")


def _write_preview(preview: bytes, store: str) -> str:
    uri = filesystems.join(store, "previews", f"{hashlib.sha256(preview).hexdigest()[:32]}.jpg")
    filesystems.write_bytes(uri, preview)
    return uri
