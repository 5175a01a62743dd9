"""From items to a manifest: tabulate each batch, find duplicates, join groups, split, validate, write.

What a worker does to a batch is in `tasks.tabulate_batch`.
"""

from typing import Any

import pandas as pd

from methods.curation.split_config import SplitConfig
from storage import filesystems
from storage.datasets.source import SourceError
from storage.manifest import read_manifest, read_parts, write_named
from tasks.assets import tell_made
from tasks.caching import cached_task
from tasks.curation import CurationConfig, TilingConfig
from tasks.duplicates import find_duplicates
from tasks.execution import ExecutionConfig, executor_for, return_freed_memory
from tasks.failures import check_failures
from tasks.grouping import assign_splits, join_rows, list_pictures
from tasks.references import BatchReference, ManifestReference, TableReference
from tasks.rows import SEARCH_COLUMNS
from tasks.tabulate_batch import tabulate_batch
from tasks.transforms import stain_target


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
