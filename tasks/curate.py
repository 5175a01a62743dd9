"""From items to a manifest: tabulate each batch, find duplicates, join groups, split, validate, write."""

import hashlib
import logging
from collections import Counter
from typing import Any

import pandas as pd

from methods.curation.split_config import SplitConfig
from storage import filesystems
from storage.datasets.source import SourceError
from storage.manifest import read_manifest, read_parts, write_named, write_rows
from storage.slides import is_slide
from tasks.assets import tell_made
from tasks.caching import cached_task
from tasks.curation import CurationConfig, TilingConfig
from tasks.duplicates import find_duplicates
from tasks.execution import ExecutionConfig, executor_for, return_freed_memory
from tasks.grouping import assign_splits, join_rows, list_pictures
from tasks.picture_rows import tabulate_picture
from tasks.references import BatchReference, ItemReference, ManifestReference, TableReference
from tasks.rows import NOWHERE, SEARCH_COLUMNS, Tabulated, make_row, to_table
from tasks.samples import READ_ERRORS
from tasks.slide_rows import tabulate_slide
from tasks.survey import read_batch
from tasks.transforms import stain_target

logger = logging.getLogger(__name__)


class TooManyFailuresError(RuntimeError):
    """More samples failed than the configuration allows."""


@cached_task(
    name="tabulate",
    run_name="tabulate {batch[name]}",
    outputs_exist=lambda table: all(filesystems.exists(uri) for uri in (table["uri"], table["preview_uri"]) if uri is not None),
    ignore=("execution",),
)
def tabulate(
    batch: BatchReference, *, tiling: TilingConfig, curation: CurationConfig, stain: str | None, store: str, execution: ExecutionConfig
) -> TableReference:
    """Write the rows of one slide, or of up to a hundred pictures."""
    return executor_for(execution).run(tabulate_batch, batch, tiling, curation, stain, store)


def prepare_stain(curation: CurationConfig) -> str | None:
    """The stains that all samples are given, or None where none are asked for."""
    return None if curation.stain is None else stain_target(curation.stain)


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


@cached_task(
    name="write manifest",
    run_name="write manifest",
    outputs_exist=lambda manifest: filesystems.exists(manifest["uri"]) and filesystems.exists(manifest["development_uri"]),
)
def assemble_manifest(
    tables: list[TableReference],
    *,
    split: SplitConfig,
    curation: CurationConfig,
    previous_manifest: str | None,
    previous_digest: str | None,
    failed_share_max: float,
    store: str,
) -> ManifestReference:
    """Put the tables together, find duplicates, join groups, split by group and write the manifest and its development part.

    Raises:
        TooManyFailuresError: more than `failed_share_max` of the pictures cannot be used.
        SourceError: nothing usable, a subject without an id, contradictory labels where they are an error, or a group in two splits.
    """
    return_freed_memory()  # of the survey
    rows = read_parts([table["uri"] for table in tables], beside=SEARCH_COLUMNS)
    unusable = rows["excluded"].dropna()
    failed = unusable[unusable.str.startswith("unusable")].tolist()
    check_failures(failed=failed, total=sum(table["items"] for table in tables), failed_share_max=failed_share_max, what="pictures")
    if rows["excluded"].notna().all():
        reasons = "; ".join(f"{table['name']}: {table['note']}" for table in tables[:5])
        raise SourceError(f"no sample is left after curation; {reasons}")
    pairs = find_duplicates(list_pictures(rows), config=curation.duplicates, store=store)
    return_freed_memory()
    rows = join_rows(rows.drop(columns=list(SEARCH_COLUMNS)), pairs, config=curation.duplicates)
    previous = read_manifest(previous_manifest, digest=previous_digest) if previous_manifest is not None else None
    rows = assign_splits(rows, config=split, previous=previous)
    return_freed_memory()
    # each named by its own content: a change in the test split alone leaves the development manifest, and so the models, as they are
    development = (rows["excluded"].isna() & rows["split"].isin(["train", "validation"])).to_numpy(bool)
    written = write_named(filesystems.join(store, "manifests"), rows, manifest=slice(None), development=development)
    (uri, digest), (development_uri, development_digest) = written["manifest"], written["development"]
    tell_made(uri, name=f"manifest {digest[:12]}", of=[previous_manifest] if previous_manifest is not None else [], rows=len(rows))
    tell_made(development_uri, name=f"development manifest {development_digest[:12]}", of=[uri], rows=int(development.sum()))
    return ManifestReference(uri=uri, digest=digest, rows=len(rows), development_uri=development_uri, development_digest=development_digest)


def count_rows(manifest: ManifestReference) -> list[dict[str, Any]]:
    """Counts of a manifest for a person: by data set, split and label, and by reason for what is excluded."""
    rows = read_manifest(manifest["uri"], digest=manifest["digest"])
    excluded = rows["excluded"].fillna("")
    reason = excluded.str.split(r"[:;(]", n=1, regex=True).str[0].str.replace(r"\d+(\.\d+)?", "…", regex=True)
    shown = pd.DataFrame(
        {
            "dataset": rows["dataset"],
            "split": rows["split"].fillna("none"),
            "label": rows["label"].map({0: "normal", 1: "abnormal"}).astype("string").fillna("unknown"),
            "excluded": reason,
            "subject": rows["subject_id"],
        }
    )
    counts = shown.groupby(["dataset", "split", "label", "excluded"]).agg(samples=("subject", "size"), subjects=("subject", "nunique"))
    return [{str(name): value for name, value in row.items()} for row in counts.reset_index().to_dict("records")]


def check_failures(*, failed: list[str], total: int, failed_share_max: float, what: str) -> None:
    """Stop when more than the allowed share failed; say how many failed and why otherwise.

    Raises:
        TooManyFailuresError: counts and the most frequent reasons.
    """
    if not failed:
        return
    reasons = "; ".join(f"{count} × {reason}" for reason, count in Counter(failed).most_common(3))
    message = f"{len(failed)} of {total} {what} failed ({reasons})"
    if len(failed) > failed_share_max * total:
        raise TooManyFailuresError(f"{message}; more than failed_share_max = {failed_share_max:.0%}. Mend the source or raise it")
    logger.warning(message)


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
