"""Two widths of a tiny autoencoder on pictures: the report, what is cached, that the test split is not read, what is refused."""

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from flows.config import ConfigError, load_config
from flows.curate import curate
from flows.search import Selected, load_search, search, select
from flows.train import train
from methods.detectors.networks import efficientnet_lite
from storage.manifest import read_manifest
from tasks.caching import steps
from tasks.search import SearchError, StudyConfig
from tasks.search_fold import Part
from tasks.search_report import describe_search
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
    told = describe_search(reference)
    assert told[0].split() == ["anomalies", "3", "of", "'square'"]
    assert told[-1] == f"winner:     normascope run {reference['best_uri']}"
    assert len(told) == 5
    assert not any("failed" in line for line in told)
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
        ({"folds": 4}, r"\(file\): fewer anomalies than folds: 3 for 4 folds; raise anomalies.count or lower folds$"),
        ({"folds": 3, "study": {"counts": [2, 4]}}, "fewer anomalies than folds: study.counts begins at 2, with 3 folds"),
        ({"anomalies": {"findings": [8]}}, r"yaml:\n  anomalies.findings.0: expected text, got 8; in quotes it is text: \"8\"$"),
    ],
)
def test_what_is_no_search_is_refused_by_its_key(tmp_path: Path, plan: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_search(write(tmp_path, plan=plan))


def test_a_search_varies_one_detector(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a search varies one detector, and `detectors` has 2"):
        load_search(write(tmp_path, run={"detectors": RUN["detectors"] * 2}))  # type: ignore[operator]


def test_a_study_that_the_command_asks_for_is_checked_as_one_of_the_file(tmp_path: Path) -> None:
    assert load_search(write(tmp_path), study=True)[1].study == StudyConfig()
    assert load_search(write(tmp_path, plan={"study": {"draws": 2}}), study=True)[1].study == StudyConfig(draws=2)
    assert load_search(write(tmp_path))[1].study is None
    with pytest.raises(ConfigError, match=r"study\.counts begins at 5, with 6 folds"):
        load_search(write(tmp_path, plan={"folds": 6, "anomalies": {"count": 6}}), study=True)


@pytest.mark.parametrize(
    ("kind", "space", "method", "said"),
    [
        ("padim", {"backbone.layers": [["block4"], ["blockX"]]}, "grid", "has no layer blockX; it has block2, block4"),
        ("padim", {"backbone.layers": [["block4"], ["blockX"]]}, "tpe", "has no layer blockX; it has block2, block4"),
        ("simclr", {"learning_rate": [0.1]}, "grid", "learns from labels"),
    ],
)
def test_what_no_data_could_mend_is_refused_as_the_files_are_read(
    tmp_path: Path, kind: str, space: dict[str, Any], method: str, said: str
) -> None:
    path = write(tmp_path, plan={"space": space, "method": method}, run={"detectors": [{"kind": kind}]})
    with pytest.raises(ConfigError, match=said):
        load_search(path)


@pytest.mark.usefixtures("prefect_server")
def test_a_weight_file_that_arrives_later_is_found_by_the_same_command(tmp_path: Path) -> None:
    torch.save(efficientnet_lite.build(None).state_dict(), tmp_path / "away.pth")
    digest = hashlib.sha256((tmp_path / "away.pth").read_bytes()).hexdigest()
    late = {"layers": ["block2"], "weights": str(tmp_path / "late.pth"), "weights_sha256": digest}
    run = {"detectors": [{"kind": "padim", "input_size_px": 32, "dimensions": 4, "backbone": {"layers": ["block2"]}}]}
    path = write(tmp_path, plan={"space": {"backbone": [{"layers": ["block2"]}, late]}}, run=run)
    reference = search(*load_search(path))
    good, bad = look_at(reference)["trials"]
    assert (good["failed"], bad["test_auroc"]) == (None, None)
    assert "late.pth cannot be read" in bad["failed"]
    assert any(line.startswith("1 of 2 trials failed: trial 1: DetectorError: ") for line in describe_search(reference))

    (tmp_path / "away.pth").rename(tmp_path / "late.pth")
    before = steps.done.copy()
    mended = look_at(search(*load_search(path)))["trials"]
    assert [row["failed"] for row in mended] == [None, None]
    assert mended[0]["criteria"] == good["criteria"]
    assert (steps.done - before)["trial"] == 2  # of the other trial nothing is done again


def test_weight_files_of_a_space_are_relative_to_the_searchs_file(tmp_path: Path) -> None:
    digest = "0" * 64
    run = {"detectors": [{"kind": "padim", "input_size_px": 32, "dimensions": 4, "backbone": {"layers": ["block2"]}}]}
    plan = {"space": {"backbone": [{"layers": ["block2"]}, {"layers": ["block2"], "weights": "own.pth", "weights_sha256": digest}]}}
    _, whole = load_search(write(tmp_path, plan=plan, run=run))
    assert whole.space["backbone"][1]["weights"] == str(tmp_path / "own.pth")
    run["detectors"][0]["backbone"] |= {"weights": "a.pth", "weights_sha256": digest}  # type: ignore[index]
    _, part = load_search(write(tmp_path, plan={"space": {"detector.backbone.weights": ["a.pth", "/elsewhere/b.pth"]}}, run=run))
    assert part.space["detector.backbone.weights"] == (str(tmp_path / "a.pth"), "/elsewhere/b.pth")


@pytest.mark.usefixtures("prefect_server")
def test_what_failed_is_not_tried_again_in_the_same_search(tmp_path: Path) -> None:
    plan = {"space": {"learning_rate": [0.01, 1.0e30]}, "method": "random", "trials": 6, "batch": 1}
    before = steps.done.copy()
    trials = look_at(search(*load_search(write(tmp_path, plan=plan))))["trials"]
    failed = [trial["failed"] for trial in trials if trial["values"]["learning_rate"] > 1]
    assert len(failed) > 1
    assert None not in failed
    assert (steps.done - before)["trial"] == 4


@pytest.mark.usefixtures("prefect_server")
def test_a_search_of_which_every_trial_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(SearchError, match="nothing to choose from: 1 of 1 trial failed: trial 0: TrainingError"):
        search(*load_search(write(tmp_path, plan={"space": {"learning_rate": [1.0e30]}})))


@pytest.mark.usefixtures("prefect_server")
def test_the_winners_file_trains_the_model_that_was_compared(tmp_path: Path) -> None:
    ae = RUN["detectors"][0] | {"epochs": 6, "learning_rate": 0.03}  # type: ignore[index]
    run = {"detectors": [ae], "training": {"threads": 1, "selection_samples": 4}}
    config, plan = load_search(write(tmp_path, plan={"space": {"detector.d": [4]}}, run=run))
    reference = search(config, plan)
    (compared,) = Path(config.store, "models").iterdir()
    best = load_config(Path(reference["best_uri"]))
    by_loss = config.training.model_copy(update={"selection": "loss"})
    winner = config.detectors[0].model_copy(update={"d": 4})
    assert best == config.model_copy(update={"detectors": (winner,), "training": by_loss})

    (trained,) = train(best, curate(best))
    assert Path(trained["uri"]) != compared  # on another manifest, with the anomalies of validation in it
    assert Path(trained["uri"], "model.safetensors").read_bytes() == (compared / "model.safetensors").read_bytes()
    (other,) = train(best.model_copy(update={"training": config.training}), curate(best))
    assert Path(other["uri"], "model.safetensors").read_bytes() != (compared / "model.safetensors").read_bytes()  # what null would choose

    text = Path(reference["best_uri"]).read_text()
    head = [line for line in text.splitlines() if line.startswith("#")]
    assert "Chosen by few anomalies" in "".join(head)
    assert "trial 0, d 4; " in " ".join(head)
    assert f"normascope run {reference['best_uri']}" in "".join(head)
    assert set(yaml.safe_load(text)) <= set(RUN)
    assert yaml.safe_load(text)["detectors"] == [ae | {"d": 4}]


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize(
    ("plan", "said"),
    [
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
