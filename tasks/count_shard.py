"""What a worker does to evaluate: count the pixels of one shard's maps against its masks. Knows no Prefect."""

from functools import lru_cache

import numpy as np
import pandas as pd
from typing_extensions import TypedDict

from methods.evaluation.histograms import SubjectCounts, count_pixels
from storage.manifest import read_manifest
from storage.scores import open_store
from tasks.references import ManifestReference
from tasks.samples import read_sample_mask


class CountJob(TypedDict):
    """All that a worker needs to count one shard's pixels: under which name each of its rows is counted; None for those that are not."""

    store_uri: str
    manifest: ManifestReference
    shard: int
    names: list[str | None]


def count_shard(job: CountJob) -> SubjectCounts | None:
    """The pixels of a shard's rows by name, class and value; None where no mask is known."""
    store = open_store(job["store_uri"])
    size = store.map_size_px
    if size is None:
        return None
    span = store.rows_of(job["shard"])
    table = _manifest(job["manifest"]["uri"], job["manifest"]["digest"]).iloc[span.start : span.stop]
    masks = np.zeros((len(span), size, size), bool)
    known = np.zeros(len(span), bool)
    for i, (row, name) in enumerate(zip(table.to_dict("records"), job["names"], strict=True)):
        if name is None:
            continue
        known[i] = (mask := read_sample_mask(row, size_px=size)) is not None
        if mask is not None and mask.any():
            masks[i] = mask
    if not known.any():
        return None
    maps, names = store.read_maps(span), np.asarray(job["names"], object)
    return count_pixels(maps, masks, names) if known.all() else count_pixels(maps[known], masks[known], names[known])


@lru_cache(maxsize=2)
def _manifest(uri: str, digest: str) -> pd.DataFrame:
    return read_manifest(uri, digest=digest)
