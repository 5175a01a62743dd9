"""What crosses splits in a table of a person's own, ours or not: read as it is written, checked, and said so that it can be found."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from pyarrow import parquet

from methods.curation.leaks import FOREIGN_KEYS, Leak, check_splits
from methods.curation.split_config import SplitError
from storage import filesystems
from storage.datasets.source import SourceError, known, read_text_table
from storage.manifest import ManifestError, iterate_manifest

_READ = ("split", "excluded", "sample_id", *dict.fromkeys(name for _, columns in FOREIGN_KEYS for name in columns))
_NOT_EXCLUDED = ("false", "no", "0", "0.0")  # as others' tables may put it; ours has the reason or nothing
_PARQUET = b"PAR1"


def describe_leaks(uri: str, *, across_datasets: bool = False, called: Mapping[str, str] | None = None) -> tuple[str, list[str]]:
    """What crosses splits in the table at a URI, Parquet or text: a summary, and one line for each with a row of every split.

    Of tables that are not ours, blanks around ids, the case of digests and of the splits' names do not count, and what means "unknown" is
    no id.

    Args:
        uri: of the table; text is separated by commas, semicolons or tabs.
        across_datasets: the same subject, lesion or slide id in two data sets is one.
        called: what the table calls the columns `split`, `subject_id`, `lesion_id`, `slide_id` and `uri`, where it is another name.

    Raises:
        SourceError: no readable table, or one without a row.
        SplitError: no column split or subject_id, no row in a split, or a row in a split without subject.
    """
    table, lines = _read_table(uri, called or {})
    _check_rows(uri, table, lines)
    leaks = _each_once(check_splits(table, keys=FOREIGN_KEYS, across_datasets=across_datasets))
    checked = [kind for kind, columns in FOREIGN_KEYS if columns[0] in table.columns]
    counts = ", ".join(f"{name} {count}" for name, count in table["split"].value_counts().items())
    verdict = f"{len(leaks)} in more than one split" if leaks else "none is in more than one split"
    summary = f"{len(table)} rows ({counts}); checked: {', '.join(dict.fromkeys(checked))}: {verdict}"
    return summary, _describe(leaks, table, lines)


def _read_table(uri: str, called: Mapping[str, str]) -> tuple[pd.DataFrame, Sequence[int] | None]:
    """The columns that are checked, under our names, and of text the line of each row."""
    with filesystems.open_for_reading(uri) as file:
        is_parquet = file.read(len(_PARQUET)) == _PARQUET
    wanted = [*(name for name in _READ if name not in called), *called.values()]
    if is_parquet:
        table, columns, lines = *_read_parquet(uri, wanted), None
    else:
        text = read_text_table(uri, only=set(wanted))
        table, columns, lines = (
            pd.DataFrame(text.rows, columns=[n for n in text.columns if n in wanted], dtype=object),
            text.columns,
            text.lines,
        )
    for ours, theirs in called.items():
        if theirs not in columns:
            raise SplitError(f"{uri} has no column {theirs!r} for {ours}; its columns are {', '.join(columns)}")
    if missing := [name for name in ("split", "subject_id") if name not in called and name not in columns]:
        raise SplitError(
            f"{uri}: expected the columns split and subject_id; {', '.join(missing)} is missing among {', '.join(columns)}. "
            "Say which they are with --split and --subject"
        )
    table = table[[name for name in table.columns if name in _READ and name not in called]].assign(
        **{ours: table[theirs] for ours, theirs in called.items()}
    )
    return table if is_parquet and _is_manifest(uri) else _clean(table), lines


def _read_parquet(uri: str, wanted: Sequence[str]) -> tuple[pd.DataFrame, list[str]]:
    try:
        with filesystems.open_for_reading(uri) as file:
            columns = parquet.read_schema(file).names
            file.seek(0)
            table = pd.read_parquet(file, columns=[name for name in columns if name in wanted])
    except ValueError as error:  # Arrow's, which do not name the file
        raise SourceError(f"{uri} is no readable table: {error}") from None
    return table.reset_index(drop=True), columns


def _is_manifest(uri: str) -> bool:
    try:
        next(iterate_manifest(uri, columns=["sample_id"], rows=1), None)
    except ManifestError:
        return False
    return True


def _clean(table: pd.DataFrame) -> pd.DataFrame:
    """A table of others with its cells as ours are."""
    table = table.assign(**{name: _known(table[name]) for name in table.columns})
    for name in {"split", "sha256"} & set(table.columns):
        table[name] = table[name].astype("string").str.lower()
    if "excluded" in table.columns:
        table["excluded"] = table["excluded"].mask(table["excluded"].astype("string").str.lower().isin(_NOT_EXCLUDED).fillna(False), None)
    return table


def _known(column: pd.Series) -> pd.Series:
    """Text without blanks around it, null where it means "unknown"; numbers as they are."""
    if pd.api.types.is_numeric_dtype(column):
        return column.astype(object) if column.dtype == bool else column
    codes, texts = pd.factorize(column)
    cleaned = pd.array([known(text) for text in texts], dtype="string")
    return pd.Series(cleaned.take(codes, allow_fill=True), column.index)


def _check_rows(uri: str, table: pd.DataFrame, lines: Sequence[int] | None) -> None:
    in_split = table["split"].notna().to_numpy(bool)
    if "excluded" in table.columns:
        in_split = in_split & table["excluded"].isna().to_numpy(bool)
    if not in_split.any():
        raise SplitError(f"{uri}: no row is in a split (of {len(table)}), so nothing can be proved; is the column split filled?")
    nobody = np.flatnonzero(in_split & table["subject_id"].isna().to_numpy(bool))
    if len(nobody):
        raise SplitError(
            f"{uri}, {_place(nobody[0], lines)}: no subject_id ({len(nobody)} such row(s)); give each its person, or the most that is "
            "known to belong together (lesion, slide, file)"
        )


def _each_once(leaks: Sequence[Leak]) -> list[Leak]:
    """Without what was found before in the same rows: the same sample is the same file and the same content."""
    first: dict[tuple[str, tuple[int, ...]], Leak] = {}
    for leak in leaks:
        first.setdefault((leak.kind, leak.rows), leak)
    return list(first.values())


def _describe(leaks: Sequence[Leak], table: pd.DataFrame, lines: Sequence[int] | None) -> list[str]:
    names = next((table[name] for name in ("sample_id", "uri") if name in table.columns), None)
    described = []
    for leak in leaks:
        rows, of_each = np.asarray(leak.rows), table["split"].iloc[list(leak.rows)].astype(str).to_numpy(object)
        shown = []
        for split in leak.splits:
            row = int(rows[(of_each == split).argmax()])
            name = "" if names is None or pd.isna(names.iloc[row]) else f"{names.iloc[row]}, "
            shown.append(f"{split}: {name}{_place(row, lines)}")
        described.append(f"{leak.kind} {leak.key!r} is in {' and '.join(leak.splits)} ({len(rows)} rows; {'; '.join(shown)})")
    return described


def _place(row: int, lines: Sequence[int] | None) -> str:
    return f"row {row}" if lines is None else f"line {lines[row]}"
