"""What must not be torn apart: subjects, lesions, slides and duplicates joined into groups, and groups dealt to splits."""

import logging

import numpy as np
import pandas as pd

from methods.curation.duplicates import join_groups
from methods.curation.leaks import check_splits
from methods.curation.split_config import SplitConfig
from methods.curation.splits import extend_split, split_groups
from methods.curation.text_columns import first_equal, is_among, is_first, places_in
from storage.datasets.source import SourceError
from tasks.curation import DuplicateConfig
from tasks.paint import DATASET_SUFFIX

_ISIC = r"^isic-.*$"  # the archive and its challenges share one numbering of persons, lesions and pictures

CONTRADICTORY = "near-duplicate labelled otherwise"

logger = logging.getLogger(__name__)


def list_pictures(rows: pd.DataFrame) -> pd.DataFrame:
    """The usable pictures that have a perceptual hash, one row each, as `find_duplicates` takes them."""
    keys = _within((rows["excluded"].isna() & rows["phash"].notna()).to_numpy(bool), picture_keys(rows))
    first = is_first(keys)
    asked = rows[["phash", "phash_turns", "features", "uri", "frame", "sha256"]].assign(key=keys)
    return asked if first.all() else asked[first]


def picture_keys(rows: pd.DataFrame) -> pd.Series:
    """Which picture or slide each row was cut from: the file's digest, with the frame where a file holds many; null when unreadable."""
    if rows["frame"].isna().all():
        return rows["sha256"]
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
    usable = rows["excluded"].isna().to_numpy(bool)
    _check_subjects(rows, usable)
    pictures = picture_keys(rows)
    labelled = usable & rows["label"].notna().to_numpy(bool)
    _refuse_contradictions(rows, pictures, labelled, config)
    _flag_contradictions(rows, pictures, labelled, pairs)
    _refuse_doubles(rows)
    usable = rows["excluded"].isna().to_numpy(bool)
    dataset = _plain_datasets(rows["dataset"])
    subjects = _within(usable, dataset + "/" + rows["subject_id"])
    further = [_within(usable, dataset + "/" + rows[name]) for name in ("lesion_id", "slide_id") if rows[name].notna().any()]
    joined = join_groups(len(rows), _row_pairs(pictures, usable, pairs), _within(usable, pictures), subjects, *further)
    # named by its first subject and not by content: a picture that is replaced does not deal the splits anew
    rows["group_id"] = _first_of_group(subjects, joined)
    return rows


def assign_splits(rows: pd.DataFrame, *, config: SplitConfig, previous: pd.DataFrame | None) -> pd.DataFrame:
    """The rows with their split: prescribed by the source, kept from a previous manifest, or dealt by group.

    Groups of which nothing is known (no label, no prescribed split) are archive.

    Raises:
        SourceError: something that must stay together is in two splits.
    """
    rows = rows.copy(deep=False)
    usable = rows["excluded"].isna().to_numpy(bool)
    prescribed = np.where(usable & rows["split"].notna().to_numpy(bool), rows["split"].to_numpy(object), np.array(None, object))
    group = first_equal(rows["group_id"])  # −1: excluded
    told = group[(rows["label"].notna().to_numpy(bool) | (prescribed != None)) & (group >= 0)]  # noqa: E711 — of each
    known = np.append(np.bincount(told, minlength=len(rows)) > 0, False)[group]
    split = np.full(len(rows), None, object)
    split[usable & ~known] = "archive"
    ours = usable & known
    if ours.any():
        columns = ["sample_id", "group_id", "label", "dataset", "finding"]  # a copy of all others would be as large as the manifest
        split[ours] = _deal(rows[columns] if ours.all() else rows.loc[ours, columns], prescribed[ours], config, previous)
    rows["split"] = pd.Series(split, rows.index, "string")
    if leaks := check_splits(rows):
        raise SourceError("; ".join(str(leak) for leak in leaks[:5]))
    return rows


def _deal(rows: pd.DataFrame, prescribed: np.ndarray, config: SplitConfig, previous: pd.DataFrame | None) -> np.ndarray:
    groups, abnormal, sources = rows["group_id"], rows["label"].astype("boolean"), rows["dataset"]
    if previous is None:
        return split_groups(groups, abnormal, config=config, sources=sources, prescribed=prescribed, findings=rows["finding"])
    before = rows["sample_id"].map(previous.set_index("sample_id")["split"]).astype(object)
    before = before.where(before.notna(), None)
    return extend_split(groups, abnormal, previous=before.to_numpy(), config=config, sources=sources, prescribed=prescribed)


def _check_subjects(rows: pd.DataFrame, usable: np.ndarray) -> None:
    nobody = usable & (rows["subject_id"].isna() | (rows["subject_id"].str.len() == 0))
    if nobody.any():
        first = rows[nobody].iloc[0]
        raise SourceError(f"{first['uri']} (dataset {first['dataset']}) has no subject_id: without it a person may be in two splits")


def _within(chosen: np.ndarray, names: pd.Series) -> pd.Series:
    """The names; null, which joins nothing, for rows that are not chosen."""
    return names if chosen.all() else names.where(chosen)


def _plain_datasets(datasets: pd.Series) -> pd.Series:
    """The data set in which each row's names of persons, lesions and slides count."""
    codes, names = pd.factorize(datasets)
    plain = pd.Series(names).str.removesuffix(DATASET_SUFFIX).str.replace(_ISIC, "isic", regex=True)
    return pd.Series(plain.array.take(codes, allow_fill=True), datasets.index)


def _first_of_group(names: pd.Series, joined: np.ndarray) -> pd.Series:
    """The first in alphabetical order of the names in each row's group; null in a group without any."""
    codes, sorted_names = pd.factorize(names, sort=True)
    first = np.full(len(names), len(sorted_names))
    known = codes >= 0
    np.minimum.at(first, joined[known], codes[known])
    of_rows = np.where(first == len(sorted_names), -1, first)[joined]
    return pd.Series(sorted_names.take(of_rows, allow_fill=True), names.index, names.dtype)


def _row_pairs(pictures: pd.Series, usable: np.ndarray, pairs: pd.DataFrame) -> np.ndarray:
    """(m, 2) row numbers: a usable row of each of two pictures that are the same."""
    of_usable = pictures[usable]
    places = np.stack([places_in(pairs[name], of_usable) for name in ("first", "second")], axis=1)
    return np.flatnonzero(usable)[places[(places >= 0).all(axis=1)]]


def _labels_of_pictures(rows: pd.DataFrame, pictures: pd.Series, chosen: np.ndarray) -> pd.DataFrame:
    """Columns key, uri, label of every chosen picture as listed: of one that is cut into samples the highest; listed twice it is two."""
    listed = rows.loc[chosen, ["uri", "label"]].assign(key=pictures[chosen], listing=rows["uri"][chosen] + "|" + rows["subject_id"][chosen])
    return listed.groupby(["key", "listing"], as_index=False).agg(label=("label", "max"), uri=("uri", "first"))


def _of_both_labels(names: pd.Series, rows: pd.DataFrame, labelled: np.ndarray) -> np.ndarray:
    """(n,) bool: labelled rows whose name stands at a normal and at an abnormal one."""
    both = np.zeros(len(rows), bool)
    codes = places_in(names, names)[labelled]
    abnormal = rows["label"].to_numpy(np.float64, na_value=np.nan)[labelled] == 1
    of_name, of_abnormal = (
        np.append(np.bincount(codes[chosen], minlength=len(rows)), 0) for chosen in (codes >= 0, (codes >= 0) & abnormal)
    )
    both[labelled] = ((of_abnormal > 0) & (of_abnormal < of_name))[codes]
    return both


def _refuse_contradictions(rows: pd.DataFrame, pictures: pd.Series, labelled: np.ndarray, config: DuplicateConfig | None) -> None:
    """Exclude files of the same content of which some are labelled normal and others abnormal."""
    # a file that is listed twice as the same person's, too: the very same sample, labelled otherwise
    twice = pictures[_of_both_labels(rows["sample_id"], rows, labelled)].drop_duplicates()
    mixed = _of_both_labels(pictures, rows, labelled) | (labelled & is_among(pictures, twice))
    if not mixed.any():
        return
    labels = _labels_of_pictures(rows, pictures, mixed)
    by_content = labels.groupby("key")["label"].agg(["min", "max"])
    contradictory = by_content.index[(by_content["min"] != by_content["max"]) | by_content.index.isin(twice)]
    if not len(contradictory):
        return
    examples = sorted(set(labels.loc[labels["key"] == contradictory[0], "uri"]))[:3]
    message = f"{len(contradictory)} picture(s) are there twice and labelled both normal and abnormal, such as {' and '.join(examples)}"
    if config is not None and config.on_contradiction == "error":
        raise SourceError(f"{message}: correct the labels, or set curation.duplicates.on_contradiction to exclude")
    logger.warning("%s; they are excluded", message)
    where = rows["excluded"].isna() & is_among(pictures, contradictory)
    rows.loc[where, "excluded"] = "contradictory labels: the same picture is labelled otherwise"


def _flag_contradictions(rows: pd.DataFrame, pictures: pd.Series, labelled: np.ndarray, pairs: pd.DataFrame) -> None:
    """Flag near-duplicates labelled otherwise. They may be right: the same hand with and without a ring is near-duplicate to a hash."""
    paired = labelled & is_among(pictures, [*pairs["first"], *pairs["second"]])
    label_of = rows["label"][paired].groupby(pictures[paired]).max()
    first, second = (pairs[name].map(label_of) for name in ("first", "second"))
    doubtful = pairs[first.notna() & second.notna() & (first != second)]
    if doubtful.empty:
        return
    where = rows["excluded"].isna() & is_among(pictures, [*doubtful["first"], *doubtful["second"]])
    example = doubtful[["first", "second"]].iloc[0]
    named = [
        f"{rows.loc[paired & is_among(pictures, [key]), 'uri'].iloc[0]} ({'abnormal' if label_of[key] else 'normal'})" for key in example
    ]
    logger.warning("%d pair(s) of near-duplicates are labelled otherwise, such as %s; they are flagged", len(doubtful), " and ".join(named))
    flags = rows.loc[where, "flags"]
    rows.loc[where, "flags"] = (flags + ";").fillna("") + CONTRADICTORY


def _refuse_doubles(rows: pd.DataFrame) -> None:
    """The same pixels twice: the first row stays, the others are excluded and get an identity of their own."""
    if is_first(rows["sample_id"]).all():
        return
    samples = rows["sample_id"].where(rows["excluded"].isna())
    double = samples.notna() & samples.duplicated()
    if double.any():
        of_doubles = rows.loc[is_among(samples, samples[double]), ["sample_id", "uri"]]
        first = of_doubles.drop_duplicates("sample_id").set_index("sample_id")["uri"]
        rows.loc[double, "excluded"] = [f"duplicate of {first[sample]}" for sample in rows.loc[double, "sample_id"]]
    again = rows["sample_id"].duplicated()
    rows.loc[again, "sample_id"] = [f"{sample}-{number}" for number, sample in enumerate(rows.loc[again, "sample_id"], start=1)]
