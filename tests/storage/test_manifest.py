"""The manifest's schema at its door, its digest and its round trip."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from storage.manifest import (
    COLUMNS,
    ManifestError,
    count_manifest,
    encode_manifest,
    read_manifest,
    sample_id,
    sample_ids,
    validate_manifest,
    write_manifest,
    write_named,
)


@pytest.fixture
def table() -> pd.DataFrame:
    """Three samples with the required columns and some that may be null."""
    return pd.DataFrame(
        {
            "sample_id": ["a", "b", "c"],
            "uri": ["1.png", "2.png", "3.png"],
            "dataset": "photos",
            "subject_id": ["p1", "p1", "p2"],
            "label": pd.array([0, 1, None], dtype="Int8"),
            "split": ["train", None, "test"],
            "level": 0,
            "x_px": [0, 1 << 33, 2],
            "y_px": 0,
            "width_px": 64,
            "height_px": 32,
            "spacing_um": [0.5, None, 0.25],
        }
    )


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("label", 2),
        ("split", "holdout"),
        ("spacing_um", 0.0),
        ("tissue_share", 1.5),
        ("x_px", -1),
        ("subject_id", ""),
        ("subject_id", None),
        ("uri", None),
    ],
)
def test_a_bad_row_is_refused_naming_row_and_column(table: pd.DataFrame, column: str, value: Any) -> None:
    values = table[column].tolist() if column in table else [0.5, 0.5, 0.5]
    values[1] = value
    with pytest.raises(ManifestError, match=f"row 1, column '{column}'"):
        validate_manifest(table.assign(**{column: pd.Series(values, dtype=object)}))


def test_a_value_of_another_type_is_refused_naming_its_column(table: pd.DataFrame) -> None:
    with pytest.raises(ManifestError, match=r"column 'width_px'.*wide"):
        validate_manifest(table.assign(width_px=[64, "wide", 64]))


def test_an_unknown_column_is_refused_by_name(table: pd.DataFrame) -> None:
    with pytest.raises(ManifestError, match=r"unknown manifest columns \['colour'\]"):
        validate_manifest(table.assign(colour="red"))


@pytest.mark.parametrize("column", ["sample_id", "uri", "level", "height_px"])
def test_a_missing_required_column_is_refused_by_name(table: pd.DataFrame, column: str) -> None:
    with pytest.raises(ManifestError, match=rf"missing: \['{column}'\]"):
        validate_manifest(table.drop(columns=column))


def test_two_samples_of_one_id_are_refused_naming_it(table: pd.DataFrame) -> None:
    with pytest.raises(ManifestError, match=r"column 'sample_id': 'a'"):
        validate_manifest(table.assign(sample_id=["a", "b", "a"]))


def test_columns_that_may_be_null_are_added_and_put_in_order(table: pd.DataFrame) -> None:
    valid = validate_manifest(table[table.columns[::-1]])
    assert tuple(valid.columns) == COLUMNS
    assert valid["mask_uri"].isna().all()


def test_a_manifest_comes_back_with_its_values_and_types(table: pd.DataFrame, tmp_path: Path) -> None:
    uri = str(tmp_path / "manifest.parquet")
    digest = write_manifest(uri, table)
    back = read_manifest(uri, digest=digest)
    pd.testing.assert_frame_equal(back, validate_manifest(table))
    assert back["x_px"].tolist() == [0, 1 << 33, 2]
    assert back["label"].isna().tolist() == [False, False, True]
    assert {name: str(back[name].dtype) for name in ("label", "level", "x_px", "spacing_um")} == {
        "label": "Int8",
        "level": "int32",
        "x_px": "int64",
        "spacing_um": "float64",
    }


@pytest.mark.parametrize("rows", [0, 3, 40_000])  # the last in several pieces
def test_a_part_of_a_table_is_the_file_that_it_would_be_by_itself(tmp_path: Path, rows: int) -> None:
    number = np.arange(rows)
    table = validate_manifest(
        pd.DataFrame(
            {
                "sample_id": [f"{digit:x}" for digit in number],
                "uri": "a.png",
                "dataset": "photos",
                "subject_id": number.astype(str),
                "level": 0,
                **dict.fromkeys(("x_px", "y_px", "width_px", "height_px"), 1),
                "sharpness": np.random.default_rng(0).random(rows),
            }
        )
    )
    chosen = number % 3 > 0
    written = write_named(str(tmp_path), table, whole=slice(None), part=chosen)
    for (uri, digest), expected in zip(written.values(), (table, table[chosen].reset_index(drop=True)), strict=True):
        assert uri.endswith(f"-{digest[:16]}.parquet")
        assert Path(uri).read_bytes() == encode_manifest(expected)
        pd.testing.assert_frame_equal(read_manifest(uri, digest=digest), expected)
        assert count_manifest(uri) == len(expected)


def test_another_content_than_the_digest_says_is_refused(table: pd.DataFrame, tmp_path: Path) -> None:
    uri = str(tmp_path / "manifest.parquet")
    digest = write_manifest(uri, table)
    other = write_manifest(uri, table.assign(label=0))
    with pytest.raises(ManifestError, match=rf"{digest[:12]}.*{other[:12]}"):
        read_manifest(uri, digest=digest)


def test_writing_refuses_a_bad_table_and_leaves_the_old_one(table: pd.DataFrame, tmp_path: Path) -> None:
    uri = str(tmp_path / "manifest.parquet")
    digest = write_manifest(uri, table)
    with pytest.raises(ManifestError):
        write_manifest(uri, table.assign(split="holdout"))
    assert len(read_manifest(uri, digest=digest)) == 3


def test_the_sample_id_depends_on_content_and_on_every_side_of_the_box() -> None:
    box = {"level": 0, "x_px": 1, "y_px": 2, "width_px": 3, "height_px": 4}
    one = sample_id("digest", **box)
    assert one == sample_id("digest", **box)
    assert len(one) == 32
    assert int(one, 16) >= 0
    others = {sample_id("digest", **{**box, name: 9}) for name in box} | {sample_id("other", **box)}
    assert len(others | {one}) == 7


@pytest.mark.parametrize("frame", [None, "images:3"])
def test_ids_of_many_boxes_are_those_of_each(frame: str | None) -> None:
    corners, size = np.array([[0, 0], [256, 0], [0, 512]]), {"level": 1, "width_px": 256, "height_px": 200}
    alone = [sample_id("ab" * 32, frame=frame, x_px=x, y_px=y, **size) for x, y in corners.tolist()]
    assert sample_ids("ab" * 32, corners, frame=frame, **size) == alone
