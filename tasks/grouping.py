"""What must not be torn apart: subjects, lesions, slides and duplicates joined into groups, and groups dealt to splits."""

import logging

import numpy as np
import pandas as pd

from methods.curation.duplicates import join_groups
from methods.curation.leaks import LEAK_KEYS, check_splits
from methods.curation.split_config import SplitConfig
from methods.curation.splits import extend_split, split_groups
from storage import filesystems
from storage.datasets.source import SourceError
from tasks.curation import DuplicateConfig
from tasks.paint import DATASET_SUFFIX
from tasks.text_columns import is_among, places_in

_ISIC = r"^isic-.*$"  # the archive and its challenges share one numbering of persons, lesions and pictures

CONTRADICTORY = "near-duplicate labelled otherwise"

logger = logging.getLogger(__name__)


def list_pictures(rows: pd.DataFrame) -> pd.DataFrame:
    """The usable pictures that have a perceptual hash, one row each, as `find_duplicates` takes them."""
    keys = picture_keys(rows).where(rows["excluded"].isna() & rows["phash"].notna())
    first = (keys.notna() & ~keys.duplicated()).to_numpy(bool)
    return rows.loc[first, ["phash", "phash_turns", "features", "uri", "frame", "sha256"]].assign(key=keys[first])


def picture_keys(rows: pd.DataFrame) -> pd.Series:
    """Which picture or slide each row was cut from: the file's digest, with the frame where a file holds many; null when unreadable."""
    framed = rows["sha256"] + "#" + rows["frame"].fillna("")
    return rows["sha256"].where(rows["frame"].isna(), framed)


def join_rows(rows: pd.DataFrame, pairs: pd.DataFrame, *, config: DuplicateConfig | None) -> pd.DataFrame:
    """Give usable rows their `group_id`, and exclude what is there twice.

    A group is a connected component over subject ∪ lesion ∪ slide ∪ duplicate; names of subjects and lesions count within their data set.
    Files of one content that are labelled both normal and abnormal are excluded, or stop the curation; near-duplicates of different labels
    are flagged.

    Args:
        rows: the tables of all batches.
        pairs: columns `first`, `second`: keys of pictures that are the same.
        config: what is done about contradictory labels.

    Raises:
        SourceError: a subject without an id, or contradictory labels where they are an error.
    """
    rows = rows.copy(deep=False)  # what is assigned below leaves the caller's rows as they are
    usable = rows["excluded"].isna().to_numpy()
    _check_subjects(rows, usable)
    pictures = picture_keys(rows)
    labels = _labels_of_pictures(rows, usable)
    _refuse_contradictions(rows, labels, config)
    _flag_contradictions(rows, labels, pairs)
    _refuse_doubles(rows)
    usable = rows["excluded"].isna().to_numpy()
    dataset = rows["dataset"].str.removesuffix(DATASET_SUFFIX).str.replace(_ISIC, "isic", regex=True)
    known = [_within(usable, dataset + "/" + rows[name]) for name in ("subject_id", "lesion_id", "slide_id")]
    joined = join_groups(len(rows), _row_pairs(pictures, usable, pairs), _within(usable, pictures), *known)
    # named by its first subject and not by content: a picture that is replaced does not deal the splits anew
    rows["group_id"] = (dataset + "/" + rows["subject_id"]).where(usable).groupby(joined).transform("min")
    return rows


def assign_splits(rows: pd.DataFrame, *, config: SplitConfig, previous: pd.DataFrame | None) -> pd.DataFrame:
    """The rows with their split: prescribed by the source, kept from a previous manifest, or dealt by group.

    Groups of which nothing is known (no label, no prescribed split) are archive.

    Raises:
        SourceError: something that must stay together is in two splits.
    """
    rows = rows.copy(deep=False)
    usable = rows["excluded"].isna().to_numpy()
    prescribed = rows["split"].astype(object).where(rows["split"].notna() & usable, None)
    known = (rows["label"].notna() | prescribed.notna()).groupby(rows["group_id"]).transform("any").fillna(False).to_numpy(bool)
    rows["split"] = pd.Series("archive", index=rows.index, dtype="string").where(usable & ~known)
    ours = usable & known
    if ours.any():
        columns = ["sample_id", "group_id", "label", "dataset", "finding"]  # a copy of all others would be as large as the manifest
        rows.loc[ours, "split"] = _deal(rows.loc[ours, columns], prescribed[ours], config, previous)
    if leaks := check_splits(rows):
        raise SourceError("; ".join(str(leak) for leak in leaks[:5]))
    return rows


def describe_leaks(uri: str, *, across_datasets: bool = False) -> tuple[str, list[str]]:
    """What crosses splits in the table at a URI, Parquet or CSV: a summary, and one line for each.

    Raises:
        SourceError: no readable table.
        SplitError: no column split or subject_id, or a row in a split without subject.
    """
    table = _read_any_table(uri)
    leaks = check_splits(table, across_datasets=across_datasets)
    checked = [kind for kind, columns in LEAK_KEYS if columns[0] in table.columns]
    counts = ", ".join(f"{name} {count}" for name, count in table["split"].value_counts().items())
    verdict = f"{len(leaks)} in more than one split" if leaks else "none is in more than one split"
    return f"{len(table)} rows ({counts}); checked: {', '.join(dict.fromkeys(checked))}: {verdict}", [str(leak) for leak in leaks]


def _read_any_table(uri: str) -> pd.DataFrame:
    try:
        if not uri.lower().endswith(".csv"):
            return filesystems.read_table(uri)
        with filesystems.open_for_reading(uri) as file:
            return pd.read_csv(file, dtype=str, keep_default_na=False).replace("", None)
    except ValueError as error:  # pandas' and Arrow's, which do not name the file
        raise SourceError(f"{uri} is no readable table, neither Parquet nor a .csv: {error}") from None


def _deal(rows: pd.DataFrame, prescribed: pd.Series, config: SplitConfig, previous: pd.DataFrame | None) -> np.ndarray:
    groups, abnormal = rows["group_id"].to_numpy(object), rows["label"].astype("Float64").to_numpy(float, na_value=np.nan)
    abnormal = np.array([None if np.isnan(label) else bool(label) for label in abnormal], object)
    sources = rows["dataset"].to_numpy(object)
    if previous is None:
        findings = rows["finding"].astype(object).where(rows["finding"].notna(), None).to_numpy()
        return split_groups(groups, abnormal, config=config, sources=sources, prescribed=prescribed.to_numpy(object), findings=findings)
    before = rows["sample_id"].map(previous.set_index("sample_id")["split"]).astype(object)
    before = before.where(before.notna(), None)
    return extend_split(
        groups, abnormal, previous=before.to_numpy(), config=config, sources=sources, prescribed=prescribed.to_numpy(object)
    )


def _check_subjects(rows: pd.DataFrame, usable: np.ndarray) -> None:
    nobody = usable & (rows["subject_id"].isna() | (rows["subject_id"].str.len() == 0))
    if nobody.any():
        first = rows[nobody].iloc[0]
        raise SourceError(f"{first['uri']} (dataset {first['dataset']}) has no subject_id: without it a person may be in two splits")


def _within(chosen: np.ndarray, names: pd.Series) -> pd.Series:
    """The names; null, which joins nothing, for rows that are not chosen."""
    return names.where(chosen)


def _row_pairs(pictures: pd.Series, usable: np.ndarray, pairs: pd.DataFrame) -> np.ndarray:
    """(m, 2) row numbers: a usable row of each of two pictures that are the same."""
    of_usable = pictures[usable]
    places = np.stack([places_in(pairs[name], of_usable) for name in ("first", "second")], axis=1)
    return np.flatnonzero(usable)[places[(places >= 0).all(axis=1)]]


def _labels_of_pictures(rows: pd.DataFrame, usable: np.ndarray) -> pd.DataFrame:
    """Columns key, uri, label of every listed picture: of one that is cut into samples the highest; a file that is listed twice is two."""
    labelled = usable & rows["label"].notna().to_numpy()
    listed = rows.loc[labelled, ["uri", "label"]].assign(
        key=picture_keys(rows)[labelled], listing=(rows["uri"] + "|" + rows["subject_id"])[labelled]
    )
    return listed.groupby(["key", "listing"], as_index=False).agg(label=("label", "max"), uri=("uri", "first"))


def _refuse_contradictions(rows: pd.DataFrame, labels: pd.DataFrame, config: DuplicateConfig | None) -> None:
    """Exclude files of the same content of which some are labelled normal and others abnormal."""
    by_content = labels.groupby("key")["label"].agg(["min", "max"])
    # and a file that is listed twice as the same person's: the very same sample, labelled otherwise
    labelled = rows.loc[rows["excluded"].isna() & rows["label"].notna(), ["sample_id", "sha256", "frame", "label"]]
    by_sample = labelled.groupby("sample_id")["label"].transform("nunique")
    twice = picture_keys(labelled[by_sample > 1]).unique()
    contradictory = by_content.index[(by_content["min"] != by_content["max"]) | by_content.index.isin(twice)]
    if not len(contradictory):
        return
    examples = sorted(set(labels.loc[labels["key"] == contradictory[0], "uri"]))[:3]
    message = f"{len(contradictory)} picture(s) are there twice and labelled both normal and abnormal, such as {' and '.join(examples)}"
    if config is not None and config.on_contradiction == "error":
        raise SourceError(f"{message}: correct the labels, or set curation.duplicates.on_contradiction to exclude")
    logger.warning("%s; they are excluded", message)
    where = rows["excluded"].isna() & is_among(picture_keys(rows), contradictory)
    rows.loc[where, "excluded"] = "contradictory labels: the same picture is labelled otherwise"


def _flag_contradictions(rows: pd.DataFrame, labels: pd.DataFrame, pairs: pd.DataFrame) -> None:
    """Flag near-duplicates labelled otherwise. They may be right: the same hand with and without a ring is near-duplicate to a hash."""
    label_of = labels.groupby("key")["label"].max()
    first, second = (pairs[name].map(label_of) for name in ("first", "second"))
    doubtful = pairs[first.notna() & second.notna() & (first != second)]
    if doubtful.empty:
        return
    where = rows["excluded"].isna() & is_among(picture_keys(rows), [*doubtful["first"], *doubtful["second"]])
    flags = rows.loc[where, "flags"]
    rows.loc[where, "flags"] = (flags + ";").fillna("") + CONTRADICTORY


def _refuse_doubles(rows: pd.DataFrame) -> None:
    """The same pixels twice: the first row stays, the others are excluded and get an identity of their own."""
    samples = rows["sample_id"].where(rows["excluded"].isna())
    double = samples.notna() & samples.duplicated()
    if double.any():
        of_doubles = rows.loc[is_among(samples, samples[double]), ["sample_id", "uri"]]
        first = of_doubles.drop_duplicates("sample_id").set_index("sample_id")["uri"]
        rows.loc[double, "excluded"] = [f"duplicate of {first[sample]}" for sample in rows.loc[double, "sample_id"]]
    again = rows["sample_id"].duplicated()
    rows.loc[again, "sample_id"] = [f"{sample}-{number}" for number, sample in enumerate(rows.loc[again, "sample_id"], start=1)]
