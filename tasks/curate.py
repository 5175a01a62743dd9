"""From items to a manifest: tabulate each batch, find duplicates, join groups, split, validate, write.

What a worker does to a batch is in `tasks.tabulate_batch`.
"""

import logging
from collections import Counter
from collections.abc import Iterable
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
from tasks.reasons import generalise
from tasks.references import BatchReference, ManifestReference, TableReference
from tasks.rows import SEARCH_COLUMNS
from tasks.tabulate_batch import tabulate_batch
from tasks.transforms import stain_target

_TROUBLES_SHOWN = 20

logger = logging.getLogger(__name__)


def is_there(table: TableReference) -> bool:
    """Whether a table and all previews of its files are still where they were written."""
    return all(filesystems.exists(uri) for uri in (table["uri"], *table["preview_uris"]))


@cached_task(
    name="tabulate",
    run_name="tabulate {batch[name]}",
    outputs_exist=is_there,
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
    failed = _general_reasons(rows)[unusable.index[unusable.str.startswith("unusable")]].tolist()
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


def tell_troubles(tables: Iterable[TableReference]) -> None:
    """A warning for each file of which nothing can be used, with the reason; of many for the first."""
    troubles = [trouble for table in tables for trouble in table["troubles"]]
    for trouble in troubles[:_TROUBLES_SHOWN]:
        logger.warning("%s", trouble)
    if len(troubles) > _TROUBLES_SHOWN:
        logger.warning("… and %d more: the manifest's column excluded says why", len(troubles) - _TROUBLES_SHOWN)


def describe_tables(tables: Iterable[TableReference]) -> list[dict[str, Any]]:
    """What became of each slide and each batch of pictures, for a table in the UI; previews are links."""
    return [
        {
            **{"name": table["name"], "items": table["items"], "rows": table["rows"], "excluded": table["excluded"], "note": table["note"]},
            "previews": " ".join(f"[{filesystems.name_of(uri)}]({filesystems.as_link(uri)})" for uri in table["preview_uris"]),
        }
        for table in tables
    ]


def count_rows(manifest: ManifestReference) -> tuple[list[dict[str, Any]], str]:
    """Counts of a manifest for a person: by data set, split and label, and by reason for what is excluded; and a line of all flags."""
    rows = read_manifest(manifest["uri"], digest=manifest["digest"])
    shown = pd.DataFrame(
        {
            "dataset": rows["dataset"],
            "split": rows["split"].fillna("none"),
            "label": rows["label"].map({0: "normal", 1: "abnormal"}).astype("string").fillna("unknown"),
            "excluded": _general_reasons(rows).fillna(""),
            "subject": rows["subject_id"],
        }
    )
    counts = shown.groupby(["dataset", "split", "label", "excluded"]).agg(samples=("subject", "size"), subjects=("subject", "nunique"))
    return [{str(name): value for name, value in row.items()} for row in counts.reset_index().to_dict("records")], _describe_flags(rows)


def _general_reasons(rows: pd.DataFrame) -> pd.Series:
    """The column excluded without paths and numbers, so that the same fault of many files is one reason."""
    different = rows.loc[rows["excluded"].notna(), ["excluded", "uri", "mask_uri"]].drop_duplicates("excluded")
    known = {reason: generalise(reason, *(uri for uri in uris if isinstance(uri, str))) for reason, *uris in different.to_numpy().tolist()}
    return rows["excluded"].map(known).astype("string")


def _describe_flags(rows: pd.DataFrame) -> str:
    counts = Counter[str]()
    for flags, samples in rows["flags"].value_counts().items():  # of each combination
        counts.update(dict.fromkeys(str(flags).split(";"), int(samples)))
    return "flags: " + (", ".join(f"{count} {flag}" for flag, count in counts.most_common()) or "none")
