"""The command as a person meets it: what --help says, what check-splits finds, what curate prints."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer.main
import yaml
from skimage import data
from typer.testing import CliRunner

from flows.cli import app
from storage.manifest import write_manifest
from storage.slides import write_pyramid
from tests.command import Workplace
from tests.phantoms import write_pictures

RUNNER = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})

HELP = {
    "demo": ["painted anomalies", "--quick", "--store", "--execution", "Dask", "HTML report"],
    "run": ["curate, train, score, evaluate", "CONFIG.yaml", "--port"],
    "curate": ["find duplicates", "split by group", "the reason", "previews", "CONFIG.yaml"],
    "train": ["model bundle", "CONFIG.yaml"],
    "score": [
        "score store",
        "CONFIG.yaml",
        "MANIFEST.parquet",
        "--model",
        "--into",
        "--new-version",
        "same command again",
        "130",
        "--metrics-port",
    ],
    "evaluate": ["metrics and the report", "cache", "CONFIG.yaml"],
    "benchmark": ["every class in turn is normal", "one table", "not done again", "CONFIG.yaml"],
    "search": ["cross-validation and a few anomalies", "not done again", "on the test split", "--study", "CONFIG.yaml"],
    "drift": ["KS distance", "by source", "--reference", "--rows", "FIRST:STOP", "--fail-above", "exit with 1", "s3://", "--slot"],
    "check-splits": [
        "subject, lesion, slide, duplicate or group",
        "exit with 1",
        "Parquet or CSV",
        "s3://",
        "--across-datasets",
        "--subject",
        "--split",
    ],
    "view": ["by score", "heatmaps", "only reads", "this machine alone", "a reload shows more", "s3://", "--port"],
    "scores": ["are whole", "as a table"],
    "scores verify": ["scored once or failed with a reason", "no byte has changed", "exit with 1", "ARCHIVE", "--slot", "--quick"],
    "scores export": ["image score and p-values", ".parquet or .csv", "ARCHIVE", "TABLE", "s3://", "--slot"],
    "ui": ["Prefect", "--stop", "history"],
    "reproduce": ["a paper's tables", "what is published", "--miniature", "--data", "exit code is 1"],
    "retrain": ["challenger", "paired bootstrap", "champion stays", "CONFIG.yaml"],
    "champion": ["since when and why", "STORE", "--history"],
    "rollback": ["before the champion", "STORE"],
    "serve": ["what is scheduled", "work pool", "outlive a restart", "PREFECT.yaml", "--port"],
    "clean": [
        "nothing refers to",
        "--dry-run",
        "--yes",
        "--older-than",
        "--keep",
        "--orphans",
        "--champion",
        "STORE|ARCHIVE",
        "is refused",
    ],
    "config": ["NORMASCOPE_HOME/config.yaml", "show"],
    "config show": ["where that comes from", "of secrets only whether they are set"],
    "doctor": ["versions, GPU, store, disk, server and its workers, Dask", "Exits with 1", "--backbone", "--execution"],
}


def call(*arguments: str) -> tuple[int, str]:
    """Exit code, and standard output and error as one text without line breaks."""
    result = RUNNER.invoke(app, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, " ".join(result.output.split())


def test_help_names_every_command_and_what_a_run_keeps() -> None:
    code, text = call("--help")
    assert code == 0
    commands = set(typer.main.get_group(app).commands)
    assert set(re.findall(r"│ ([a-z][a-z-]*) ", text)) == {name.split(" ")[0] for name in HELP} == commands
    for said in ("Every step is cached", "interrupted goes on", "Prefect UI", "CONFIG.yaml"):
        assert said in text


@pytest.mark.parametrize("command", HELP)
def test_every_commands_help_says_what_it_does_and_takes(command: str) -> None:
    code, text = call(*command.split(), "--help")
    assert code == 0
    for said in HELP[command]:
        assert said in text


def manifest_rows(splits: dict[str, str]) -> pd.DataFrame:
    """Two samples of each subject, in the split that is given for it."""
    rows = [
        {
            "sample_id": f"{number:032x}",
            "uri": f"pictures/{number}.png",
            "sha256": f"{number:064x}",
            "dataset": "d",
            "subject_id": subject,
            "group_id": f"d/{subject}",
            "label": number % 2,
            "split": split,
            "level": 0,
            **dict(zip(("x_px", "y_px", "width_px", "height_px"), (0, 0, 64, 64), strict=True)),
        }
        for number, (subject, split) in enumerate((subject, split) for subject, split in splits.items() for _ in range(2))
    ]
    return pd.DataFrame(rows)


SOUND = {"ann": "train", "ben": "train", "eve": "validation", "tom": "test"}


def written(path: Path, rows: pd.DataFrame) -> str:
    write_manifest(str(path), rows)
    return str(path)


def test_a_sound_manifest_is_proved_with_its_counts(tmp_path: Path) -> None:
    code, text = call("check-splits", written(tmp_path / "m.parquet", manifest_rows(SOUND)))
    assert code == 0
    assert text.startswith("8 rows (train 4, ")
    assert "checked: subject, lesion, slide, duplicate, group: none is in more than one split" in text


def test_a_subject_in_two_splits_is_named_and_the_exit_code_is_1(tmp_path: Path) -> None:
    rows = manifest_rows(SOUND)
    rows.loc[0, "split"] = "test"
    code, text = call("check-splits", written(tmp_path / "m.parquet", rows))
    assert code == 1
    assert f"subject 'd/ann' is in test and train (2 rows; test: {0:032x}, row 0; train: {1:032x}, row 1)" in text
    assert "group 'd/ann'" in text
    assert "2 in more than one split" in text


def test_the_same_picture_of_two_subjects_in_two_splits_is_a_leak_unless_it_is_excluded(tmp_path: Path) -> None:
    rows = manifest_rows(SOUND)
    rows.loc[7, "sha256"] = rows.loc[0, "sha256"]
    code, text = call("check-splits", written(tmp_path / "m.parquet", rows))
    assert code == 1
    assert "duplicate '0000" in text
    rows.loc[7, "excluded"] = "duplicate of pictures/0.png"
    assert call("check-splits", written(tmp_path / "n.parquet", rows))[0] == 0


def test_somebody_elses_csv_is_checked_by_the_columns_that_it_has(tmp_path: Path) -> None:
    table = tmp_path / "theirs.csv"
    table.write_text("image,subject_id,age,split\na,1,40,train\nb,1,40,train\nc,2,,val\nd,3,51,test\ne,4,51,\n")
    code, text = call("check-splits", str(table))
    assert code == 0
    assert "5 rows" in text
    assert "checked: subject: none is in more than one split" in text
    with table.open("a") as file:
        file.write("f,1,41,test\n")
    code, text = call("check-splits", str(table))
    assert code == 1
    assert "subject '1' is in test and train (3 rows; test: line 7; train: line 2)" in text


def test_somebody_elses_columns_are_named_by_options(tmp_path: Path) -> None:
    table = tmp_path / "theirs.tsv"
    table.write_text("file\tpatient\tspot\tglass\tfold\na.png\t1\tl1\tg1\tTrain\nb.png\t2\tl1\tg2\ttest\na.png\t3\tl3\tg2\ttrain\n")
    code, text = call("check-splits", str(table))
    assert code == 1
    assert "split, subject_id is missing among file, patient, spot, glass, fold. Say which they are with --split and --subject" in text
    options = {"--subject": "patient", "--split": "fold", "--lesion": "spot", "--slide": "glass", "--uri": "file"}
    code, text = call("check-splits", *(word for pair in options.items() for word in pair), str(table))
    assert code == 1
    assert "lesion 'l1' is in test and train (2 rows; test: b.png, line 3; train: a.png, line 2)" in text
    assert "slide 'g2' is in test and train (2 rows; test: b.png, line 3; train: a.png, line 4)" in text
    assert "checked: subject, lesion, slide, duplicate: 2 in more than one split" in text


def test_one_number_in_two_data_sets_is_two_people_unless_said_otherwise(tmp_path: Path) -> None:
    table = tmp_path / "two.csv"
    table.write_text("subject_id,dataset,split\n7,a,train\n7,b,test\n")
    assert call("check-splits", str(table))[0] == 0
    code, text = call("check-splits", "--across-datasets", str(table))
    assert code == 1
    assert "subject '7' is in test and train" in text


def test_of_many_leaks_fifty_are_listed_and_all_are_counted(tmp_path: Path) -> None:
    table = tmp_path / "many.csv"
    table.write_text("subject_id,split\n" + "".join(f"p{number},{split}\n" for number in range(60) for split in ("train", "test")))
    code, text = call("check-splits", str(table))
    assert code == 1
    assert text.count("is in test and train") == 50
    assert "and 10 more" in text
    assert "60 in more than one split" in text


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("no-subject.csv", "image,split\na,train\n", "subject_id is missing"),
        ("nobody.csv", "subject_id,split\n,train\n", "subject_id"),
        ("torn.parquet", "PAR1 and no more", "torn.parquet"),
        ("empty.csv", "", "empty.csv"),
        ("absent.parquet", None, "absent.parquet"),
    ],
)
def test_what_is_no_table_of_splits_is_refused_in_one_line(tmp_path: Path, name: str, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    code, text = call("check-splits", str(tmp_path / name))
    assert code == 1
    assert said in text
    assert "Traceback" not in text


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workplace]:
    """Twelve normal and six abnormal pictures, one of them there twice, one torn, and a slide on glass."""
    folder = tmp_path_factory.mktemp("cli")
    pictures = write_pictures(folder / "pictures", normal=12, abnormal=6)
    (pictures / "normal" / "again.png").write_bytes((pictures / "normal" / "picture-003.png").read_bytes())
    (pictures / "normal" / "torn.png").write_bytes(b"no picture")
    glass = np.full((2304, 2304, 3), 242, np.uint8)
    glass[600:1112, 500:1012] = data.immunohistochemistry()
    write_pyramid(pictures / "normal" / "slide.tif", glass, spacing_um=0.5)
    config = {
        "name": "cli",
        "store": "store",
        "source": {"kind": "folder", "path": "pictures"},
        "tiling": {"size_px": 128},
        "failed_share_max": 0.1,
        "execution": {"kind": "process"},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    made = Workplace(folder)
    yield made
    made.call("ui", "--stop")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_curate_prints_counts_by_split_reasons_and_where_the_previews_are(workplace: Workplace) -> None:
    done = workplace.call("curate", "run.yaml")
    assert done.returncode == 0, done.stderr
    assert re.search(r"Prefect UI: http://127\.0\.0\.1:\d+", done.stderr)
    counts = re.findall(r"^ +(\d+) (normal|abnormal|unknown) +(\w+) +(\w+), (\d+) subjects(?: \((.*)\))?$", done.stdout, re.MULTILINE)
    (rows, uri) = re.search(r"^manifest of (\d+) samples: (.+)$", done.stdout, re.MULTILINE).groups()  # type: ignore[union-attr]
    assert sum(int(samples) for samples, *_ in counts) == int(rows) == len(pd.read_parquet(uri))
    assert {dataset for *_, dataset, _, _ in counts} == {"pictures"}
    usable = {(label, split): int(samples) for samples, label, split, _, _, reason in counts if not reason}
    assert {split for _, split in usable} == {"train", "validation", "test"}
    assert sum(n for (label, _), n in usable.items() if label == "abnormal") == 6
    reasons = {reason: int(samples) for samples, *_, reason in counts if reason}
    assert sum(n for reason, n in reasons.items() if reason.startswith("duplicate of")) == 1
    assert sum(n for reason, n in reasons.items() if reason.startswith("unusable")) == 1
    assert "torn.png" in done.stderr  # which one, and why
    folder = Path(re.search(r"^previews: +(.+)$", done.stdout, re.MULTILINE)[1])  # type: ignore[index]
    assert [re.sub(r"-[0-9a-f]{12}\.jpg$", "", path.name) for path in folder.glob("*")] == ["slide"]
    assert re.search(r"^flags: ", done.stdout, re.MULTILINE)
    assert workplace.call("check-splits", uri).returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_curating_again_does_nothing_and_prints_the_same(workplace: Workplace) -> None:
    first, again = (workplace.call("curate", "run.yaml") for _ in range(2))
    assert "all cached, nothing was done" in again.stderr
    assert again.stdout == first.stdout
