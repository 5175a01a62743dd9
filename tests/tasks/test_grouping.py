"""Rows of a few pictures with known relations: who is joined, who is excluded, who goes where, and what a leak looks like."""

from typing import Any

import pandas as pd
import pytest

from methods.curation.split_config import SplitConfig, SplitError
from storage.datasets.source import SourceError
from storage.manifest import COLUMNS, TEXT_COLUMNS, validate_manifest
from tasks.curation import DuplicateConfig
from tasks.grouping import assign_splits, join_rows, list_pictures, picture_keys

NO_PAIRS = pd.DataFrame({"first": [], "second": []}, dtype="string")
DEFAULT = DuplicateConfig()


def make_rows(*changes: dict[str, Any]) -> pd.DataFrame:
    """One row a change; without one it is a normal picture of its own content and subject."""
    rows = []
    for number, change in enumerate(changes):
        name = f"{number:02d}"
        plain = {
            "sample_id": f"sample-{name}",
            "uri": f"{name}.png",
            "sha256": f"sha-{name}",
            "dataset": "d",
            "subject_id": f"subject-{name}",
        }
        box = {"level": 0, "x_px": 0, "y_px": 0, "width_px": 64, "height_px": 64}
        rows.append(plain | box | {"label": 0} | change)
    table = pd.DataFrame(rows, columns=[*COLUMNS, "phash_turns", "features"])
    return table.astype(dict.fromkeys((*TEXT_COLUMNS, "phash_turns"), "string") | {"label": "Int8"})


def pairs_of(*pairs: tuple[int, int]) -> pd.DataFrame:
    return pd.DataFrame([(f"sha-{i:02d}", f"sha-{j:02d}") for i, j in pairs], columns=["first", "second"], dtype="string")


def groups_of(rows: pd.DataFrame, pairs: pd.DataFrame = NO_PAIRS) -> set[tuple[int, ...]]:
    """The groups of more than one row, by the rows' numbers."""
    joined = join_rows(rows, pairs, config=DEFAULT).reset_index()
    sizes = joined.groupby("group_id")["index"].agg(tuple)
    return {members for members in sizes if len(members) > 1}


# ---- groups


def test_rows_without_relations_are_groups_of_their_own() -> None:
    joined = join_rows(make_rows({}, {}, {}), NO_PAIRS, config=DEFAULT)
    assert list(joined["group_id"]) == ["d/subject-00", "d/subject-01", "d/subject-02"]


def test_groups_are_connected_over_subject_lesion_slide_and_duplicates_in_turn() -> None:
    rows = make_rows(
        {"subject_id": "a"},
        {"subject_id": "a", "lesion_id": "l"},
        {"lesion_id": "l", "slide_id": "s"},
        {"slide_id": "s"},
        {},  # joined by its pixels to the one before
        {},
        {"lesion_id": "other"},
    )
    assert groups_of(rows, pairs_of((3, 4))) == {(0, 1, 2, 3, 4)}


def test_tiles_of_one_picture_are_one_group_and_so_are_two_files_of_one_content() -> None:
    tile = {"sha256": "same", "uri": "a.png", "subject_id": "a", "width_px": 32}
    rows = make_rows(tile, tile | {"x_px": 32}, {"sha256": "same", "subject_id": "b"}, {})
    assert groups_of(rows) == {(0, 1, 2)}


def test_frames_of_one_file_are_pictures_of_their_own() -> None:
    rows = make_rows(*({"sha256": "file", "uri": "f.npz", "frame": f"images:{index}"} for index in range(3)))
    assert groups_of(rows) == set()
    assert list(picture_keys(rows)) == [f"file#images:{index}" for index in range(3)]


@pytest.mark.parametrize("name", ["subject_id", "lesion_id", "slide_id"])
def test_equal_names_in_two_data_sets_are_two_except_within_isic(name: str) -> None:
    def of(first: str, second: str) -> set[tuple[int, ...]]:
        return groups_of(make_rows({"dataset": first, name: "1"}, {"dataset": second, name: "1"}))

    assert of("hands", "hospital") == set()
    assert of("hands", "isic-2018") == set()
    assert of("hands", "hands") == of("hands", "hands (painted anomalies)") == {(0, 1)}
    assert of("isic-2018", "isic-archive") == of("isic-2020", "isic-2018 (painted anomalies)") == {(0, 1)}


def test_a_group_is_named_by_its_first_subject_whatever_the_order_of_rows() -> None:
    rows = make_rows({"subject_id": "b"}, {"subject_id": "a"}, {"subject_id": "c"})
    for order in ([0, 1, 2], [2, 1, 0]):
        joined = join_rows(rows.iloc[order].reset_index(drop=True), pairs_of((0, 1), (1, 2)), config=DEFAULT)
        assert set(joined["group_id"]) == {"d/a"}


def test_excluded_rows_are_in_no_group_and_join_nobody() -> None:
    rows = make_rows(
        {"subject_id": "a"}, {"subject_id": "b"}, {"subject_id": "a", "lesion_id": "l", "excluded": "blurred"}, {"lesion_id": "l"}
    )
    joined = join_rows(rows, pairs_of((1, 2)), config=DEFAULT)
    assert joined["group_id"].isna().tolist() == [False, False, True, False]
    assert joined["group_id"].dropna().nunique() == 3


@pytest.mark.parametrize("nobody", [None, ""])
def test_a_picture_without_subject_is_refused_by_name_unless_it_is_excluded(nobody: str | None) -> None:
    rows = make_rows({}, {"subject_id": nobody, "uri": "lost.png"})
    with pytest.raises(SourceError, match=r"lost\.png \(dataset d\) has no subject_id: without it a person may be in two splits"):
        join_rows(rows, NO_PAIRS, config=DEFAULT)
    rows.loc[1, "excluded"] = "unusable: damaged"
    assert join_rows(rows, NO_PAIRS, config=DEFAULT)["group_id"].notna().tolist() == [True, False]


def test_pictures_to_compare_are_the_usable_ones_once_each() -> None:
    hashed = {"phash": "0" * 16, "sha256": "one"}
    rows = make_rows(
        hashed, hashed | {"x_px": 64}, {"phash": "1" * 16, "excluded": "flagged blurred"}, {"phash": None}, {"phash": "2" * 16}
    )
    assert list(list_pictures(rows)["key"]) == ["one", "sha-04"]


# ---- twice


def test_the_same_file_twice_keeps_its_first_row_and_names_it_in_the_second() -> None:
    same = {"sample_id": "same", "sha256": "same"}
    rows = join_rows(make_rows(same | {"uri": "a.png"}, same | {"uri": "b.png"}, {}), NO_PAIRS, config=DEFAULT)
    assert rows["excluded"].tolist()[1:2] == ["duplicate of a.png"]
    assert rows["excluded"].isna().tolist() == [True, False, True]
    assert rows["sample_id"].is_unique
    assert rows["group_id"].isna().tolist() == [False, True, False]


CONTRADICTION = (
    {"sample_id": "same", "sha256": "same", "uri": "a.png", "label": 0},
    {"sample_id": "same", "sha256": "same", "uri": "b.png", "label": 1},
)
LISTED_TWICE = tuple(row | {"uri": "a.png", "subject_id": "a"} for row in CONTRADICTION)


@pytest.mark.parametrize("twice", [CONTRADICTION, LISTED_TWICE])
def test_contradictory_labels_of_one_content_exclude_all_its_rows_and_no_others(twice: tuple[dict[str, Any], ...]) -> None:
    rows = join_rows(make_rows(*twice, {}, {"label": 1}), NO_PAIRS, config=DEFAULT)
    assert rows["excluded"].str.startswith("contradictory labels").fillna(False).tolist() == [True, True, False, False]
    validate_manifest(rows[list(COLUMNS)].assign(split=None))


@pytest.mark.parametrize("twice", [CONTRADICTION, LISTED_TWICE])
def test_contradictory_labels_stop_the_curation_where_they_are_an_error(twice: tuple[dict[str, Any], ...]) -> None:
    with pytest.raises(SourceError, match=r"labelled both normal and abnormal, such as a\.png.*: correct the labels, or set"):
        join_rows(make_rows(*twice, {}), NO_PAIRS, config=DuplicateConfig(on_contradiction="error"))
    join_rows(make_rows({}, {}), NO_PAIRS, config=DuplicateConfig(on_contradiction="error"))


def test_an_unknown_label_contradicts_nothing() -> None:
    same = {"sha256": "same", "sample_id": "same"}
    rows = join_rows(make_rows(same | {"label": None}, same | {"label": 1}), NO_PAIRS, config=DEFAULT)
    assert not rows["excluded"].str.startswith("contradictory").fillna(False).any()


def test_normal_and_abnormal_tiles_of_one_slide_contradict_nothing() -> None:
    tile = {"sha256": "slide", "uri": "s.tif", "subject_id": "a", "slide_id": "s"}
    rows = join_rows(make_rows(tile | {"label": 0}, tile | {"label": 1, "x_px": 64}), NO_PAIRS, config=DEFAULT)
    assert rows["excluded"].isna().all()


def test_near_duplicates_of_different_labels_are_flagged_told_kept_and_in_one_group(caplog: pytest.LogCaptureFixture) -> None:
    rows = make_rows({"label": 0, "flags": "blurred"}, {"label": 1}, {"label": 0})
    joined = join_rows(rows, pairs_of((0, 1)), config=DEFAULT)
    [record] = caplog.records
    told = "1 pair(s) of near-duplicates are labelled otherwise, such as 00.png (normal) and 01.png (abnormal); they are flagged"
    assert (record.levelname, record.getMessage()) == ("WARNING", told)
    assert joined["excluded"].isna().all()
    assert joined["flags"].fillna("").tolist() == ["blurred;near-duplicate labelled otherwise", "near-duplicate labelled otherwise", ""]
    assert joined["group_id"].nunique() == 2


def test_near_duplicates_of_one_label_are_nothing_to_tell(caplog: pytest.LogCaptureFixture) -> None:
    join_rows(make_rows({}, {}, {"label": 1}, {"label": None}), pairs_of((0, 1), (2, 3)), config=DEFAULT)
    assert caplog.records == []


# ---- splits


def cohort(subjects: int = 30, *, abnormal: int = 10) -> pd.DataFrame:
    """Two pictures a subject; the last subjects are abnormal."""
    return make_rows(*({"subject_id": f"{i // 2:03d}", "label": int(i // 2 >= subjects - abnormal)} for i in range(2 * subjects)))


def deal(rows: pd.DataFrame, pairs: pd.DataFrame = NO_PAIRS, *, previous: pd.DataFrame | None = None, **config: Any) -> pd.DataFrame:
    return assign_splits(join_rows(rows, pairs, config=DEFAULT), config=SplitConfig(**config), previous=previous)


def test_duplicates_of_different_subjects_are_never_in_two_splits() -> None:
    pairs = pairs_of(*((i, i + 2) for i in range(0, 20, 4)))
    for seed in range(5):
        rows = deal(cohort(), pairs, seed=seed)
        assert rows["split"].notna().all()
        assert rows.groupby("group_id")["split"].nunique().max() == 1
        splits = dict(zip(rows["sha256"], rows["split"], strict=True))
        assert all(splits[first] == splits[second] for first, second in pairs.itertuples(index=False))
    assert set(rows["split"]) == {"train", "validation", "test"}
    assert not (rows["label"][rows["split"] == "train"] == 1).any()


def test_a_prescribed_split_takes_its_group_along() -> None:
    rows = cohort()
    rows.loc[0, "split"] = "test"
    dealt = deal(rows, pairs_of((0, 2)))
    assert set(dealt.loc[[0, 1, 2, 3], "split"]) == {"test"}


def test_one_group_that_is_prescribed_to_two_splits_is_an_error_that_names_it() -> None:
    rows = cohort()
    rows.loc[0, "split"], rows.loc[2, "split"] = "test", "train"
    with pytest.raises(SplitError, match="d/000"):
        deal(rows, pairs_of((0, 2)))
    dealt = deal(rows, pairs_of((0, 2)), on_conflict="exclude")
    assert dealt.loc[0, "split"] == "test"
    assert pd.isna(dealt.loc[2, "split"])


def test_a_group_of_which_nothing_is_known_is_archive_and_one_label_is_enough_to_be_dealt() -> None:
    rows = pd.concat([cohort(), make_rows(*({} for _ in range(62)))[60:].assign(label=pd.array([None, None], "Int8"))], ignore_index=True)
    assert set(deal(rows)["split"][60:]) == {"archive"}
    joined = deal(rows, pairs_of((0, 60)))
    assert joined["split"][60] == joined["split"][0] != "archive"
    assert joined["split"][61] == "archive"


def test_an_archive_without_any_label_is_all_archive() -> None:
    rows = make_rows(*({"label": None} for _ in range(4)))
    assert set(deal(rows)["split"]) == {"archive"}


def test_what_a_previous_manifest_holds_keeps_its_split_under_any_seed() -> None:
    small = deal(cohort(20, abnormal=6))
    more = cohort(20, abnormal=6)
    added = cohort(40, abnormal=6)[40:].reset_index(drop=True)
    grown = pd.concat([more, added], ignore_index=True)
    dealt = deal(grown, previous=small, seed=7)
    assert dealt["split"][:40].tolist() == small["split"].tolist()
    assert set(dealt["split"][40:]) == {"train", "validation", "test"}
    fresh = deal(grown, seed=7)
    assert fresh["split"][:40].tolist() != small["split"].tolist()


def test_a_new_copy_of_an_old_picture_goes_where_that_is() -> None:
    old = deal(cohort(20, abnormal=6))
    grown = pd.concat([cohort(20, abnormal=6), cohort(21, abnormal=0)[40:]], ignore_index=True)
    for place in range(0, 20, 4):
        dealt = deal(grown, pairs_of((place, 40)), previous=old)
        assert dealt["split"][40] == old["split"][place]


def test_excluded_rows_are_in_no_split() -> None:
    rows = cohort()
    rows.loc[[0, 5], "excluded"] = "flagged blurred"
    assert deal(rows)["split"].isna().tolist() == [number in (0, 5) for number in range(60)]
