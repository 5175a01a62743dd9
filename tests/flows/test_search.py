"""Two widths of a tiny autoencoder on pictures: the report, what is cached, that the test split is not read, what is refused."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.config import ConfigError, load_config
from flows.curate import curate
from flows.search import Selected, load_search, search, select
from storage.manifest import read_manifest
from tasks.caching import steps
from tasks.search import SearchError
from tasks.search_fold import Part
from tests.phantoms import write_pictures

CONFIGS = sorted((Path(__file__).parents[2] / "deploy" / "configs" / "search").glob("*.yaml"))
NORMAL, ABNORMAL = 24, 16

RUN = {
    "name": "squares",
    "store": "store",
    "source": {"kind": "folder", "path": "pictures.csv"},
    "curation": {"duplicates": None},
    "detectors": [{"kind": "ae", "C0": 2, "d": 2, "input_size_px": 16, "epochs": 1, "learning_rate": 0.01}],
    "training": {"threads": 1},
    "evaluation": {"bootstrap": {"replicates": 20}},
    "execution": {"kind": "process"},
}
SEARCH = {
    "run": "run.yaml",
    "space": {"detector.d": [1, 8]},
    "folds": 2,
    "anomalies": {"count": 3, "findings": ["square"]},
}


def write(folder: Path, *, plan: dict[str, Any] | None = None, run: dict[str, Any] | None = None) -> Path:
    """Two pictures a subject; every fourth subject is tested, every fourth validated."""
    if not (folder / "pictures").exists():
        write_pictures(folder / "pictures", normal=NORMAL, abnormal=ABNORMAL, size_px=32)
        with (folder / "pictures.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["uri", "subject_id", "label", "finding", "split"])
            for number in range(NORMAL + ABNORMAL):
                abnormal = number >= NORMAL
                split = ("validation", "test")[number // 2 % 2] if abnormal else ("train", "train", "validation", "test")[number // 2 % 4]
                kind = "abnormal" if abnormal else "normal"
                finding = ("square", "blot")[number % 2] if abnormal else ""
                table.writerow([f"pictures/{kind}/picture-{number:03d}.png", f"p{number // 2}", int(abnormal), finding, split])
    (folder / "run.yaml").write_text(yaml.safe_dump(RUN | (run or {})))
    (folder / "search.yaml").write_text(yaml.safe_dump(SEARCH | (plan or {})))
    return folder / "search.yaml"


def look_at(reference: Any) -> dict[str, Any]:
    return json.loads(Path(reference["json_uri"]).read_text())  # type: ignore[no-any-return]


@pytest.mark.usefixtures("prefect_server")
def test_a_search_ends_in_a_report_and_a_longer_one_does_only_what_is_new(tmp_path: Path) -> None:
    before = steps.done.copy()
    reference = search(*load_search(write(tmp_path, plan={"study": {"counts": [2, 3], "types": [1, 2], "draws": 3}})))
    done = dict(steps.done - before)
    assert (done["trial"], done["train"], done["score"]) == (4, 2, 2)

    result = look_at(reference)
    assert [row["criterion"] for row in result["choices"]] == ["few anomalies", "pseudo-anomalies", "loss"]
    trials = {row["number"]: row for row in result["trials"]}
    assert [row["values"] for row in trials.values()] == [{"detector.d": 1}, {"detector.d": 8}]
    for row in result["choices"]:
        values = [trial["criteria"][row["criterion"]] for trial in trials.values()]
        assert row["value"] == (min(values) if row["criterion"] == "loss" else max(values))
        assert row["test"]["AUROC"][0] == pytest.approx(trials[row["trial"]]["test_auroc"])
    tested = [row["test_auroc"] for row in trials.values()]
    assert (result["study"]["best"], result["study"]["worst"]) == (max(tested), min(tested))
    assert [(point["types"], point["count"]) for point in result["study"]["chosen"]] == [(1, 2), (1, 3), (2, 2), (2, 3)]
    html = Path(reference["html_uri"]).read_text()
    assert 'id="study"' in html
    assert html.count("<svg") == 2
    best = load_config(Path(reference["best_uri"]))
    assert best.detectors[0].d == trials[result["choices"][0]["trial"]]["values"]["detector.d"]  # type: ignore[union-attr]

    before = steps.done.copy()
    longer = search(*load_search(write(tmp_path, plan={"space": {"detector.d": [1, 8, 4]}})))
    done = dict(steps.done - before)
    assert done["trial"] == 2
    assert done.get("train", 0) <= 1
    assert look_at(longer)["trials"][0]["criteria"] == trials[0]["criteria"]


@pytest.mark.usefixtures("prefect_server")
def test_trials_and_trainings_do_not_read_the_test_split(tmp_path: Path) -> None:
    results = []
    for name in ("whole", "deprived"):
        (tmp_path / name).mkdir()
        config, plan = load_search(write(tmp_path / name, plan={"study": {"counts": [2], "types": [1], "draws": 2}}))
        manifest = curate(config)
        rows = read_manifest(manifest["uri"])
        tested = rows[rows["split"] == "test"]
        assert set(tested["label"]) == {0, 1}
        if name == "deprived":
            for uri in tested["uri"]:
                Path(uri).unlink()
            for folder in ("manifests", "tables", "batches"):
                for path in Path(config.store, folder).glob("*"):
                    if not path.name.startswith("development-"):
                        path.unlink()
        results.append(select(config, plan, Part(uri=manifest["development_uri"], digest=manifest["development_digest"])))
        parts = [path for path in Path(config.store).rglob("*.parquet") if path.parent.name == "manifests"]
        told = [path for path in parts if not path.name.startswith("manifest-")]
        assert len(told) == 1 + 2 + 2  # development; two folds, normal samples, anomalies
        for path in told:
            found = read_manifest(str(path))
            assert not (found["split"] == "test").any()
            assert not set(found["sample_id"]) & set(tested["sample_id"])
    assert content_of(results[0]) == content_of(results[1])


def content_of(selected: Selected) -> list[object]:
    """Scores of all folds, what was chosen, and the weights."""
    scores = [Path(fold["uri"]).read_bytes() for trial in selected["trials"] for fold in trial["folds"]]
    weights = [Path(model["uri"], "model.safetensors").read_bytes() for model in selected["models"].values()]
    assert scores
    assert weights
    return [scores, selected["chosen"], weights]


@pytest.mark.usefixtures("prefect_server")
def test_a_trial_whose_training_cannot_go_on_is_listed_and_the_others_are_compared(tmp_path: Path) -> None:
    reference = search(*load_search(write(tmp_path, plan={"space": {"learning_rate": [0.01, 1.0e30]}})))
    good, bad = look_at(reference)["trials"]
    assert good["chosen_by"] == ["few anomalies", "pseudo-anomalies", "loss"]
    assert bad["failed"].startswith("TrainingError: ")
    assert bad["failed"] in Path(reference["html_uri"]).read_text()


@pytest.mark.usefixtures("prefect_server")
def test_optuna_asks_for_the_same_trials_again_and_finds_them_done(tmp_path: Path) -> None:
    plan = {"space": {"learning_rate": {"low": 1.0e-4, "high": 1.0e-1, "log": True}}, "method": "tpe", "trials": 3, "batch": 2}
    first = look_at(search(*load_search(write(tmp_path, plan=plan))))
    assert len(first["trials"]) == 3
    before = steps.done.copy()
    again = look_at(search(*load_search(write(tmp_path, plan=plan))))
    assert not steps.done - before
    assert again == first


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ({"space": {}}, "space: it is empty"),
        ({"space": {"detector.dd": [1]}}, r"space.detector.dd: unknown key 'dd' of ae; did you mean d\?"),
        ({"space": {"detector.d": [0]}}, "ae refuses detector.d = 0"),
        ({"space": {"detector.d": {"low": 1, "high": 4}}}, "a grid needs a list of values"),
        ({"folds": 1}, "folds: .*greater than or equal to 2"),
        ({"fold": 2}, "fold: unknown key; did you mean folds"),
        ({"anomalies": {"findings": ["a"], "types": 3}}, "not both"),
        ({"run": "absent.yaml"}, "absent.yaml"),
    ],
)
def test_what_is_no_search_is_refused_by_its_key(tmp_path: Path, plan: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_search(write(tmp_path, plan=plan))


def test_a_search_varies_one_detector(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a search varies one detector, and `detectors` has 2"):
        load_search(write(tmp_path, run={"detectors": RUN["detectors"] * 2}))  # type: ignore[operator]


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ({"folds": 4}, "fewer anomalies than folds"),
        ({"anomalies": {"count": 40}, "folds": 10}, "fewer groups than folds: 9"),
        ({"anomalies": {"count": 3, "findings": ["wart"]}}, "no anomaly of type 'wart'; there are 4 of 'blot', 4 of 'square'"),
    ],
)
def test_what_the_data_do_not_hold_is_refused_before_anything_is_trained(tmp_path: Path, plan: dict[str, Any], said: str) -> None:
    before = steps.done.copy()
    with pytest.raises(SearchError, match=said):
        search(*load_search(write(tmp_path, plan=plan)))
    assert "trial" not in steps.done - before


@pytest.mark.parametrize("path", [path for path in CONFIGS if not path.stem.endswith("-run")], ids=lambda path: path.name)
def test_every_search_that_is_shipped_can_be_loaded(path: Path) -> None:
    config, plan = load_search(path)
    assert len(config.detectors) == 1
    assert plan.space
