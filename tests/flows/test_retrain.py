"""A store's life under retraining: the first model, nothing new, new pictures, a failure, a rollback, a person's answer."""

import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey, FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import StateType
from prefect.exceptions import FlowPauseTimeout
from prefect.flow_runs import resume_flow_run

import flows.retrain
from flows.config import ConfigError
from flows.retrain import load_retrain, retrain_scheduled
from storage.archives import open_archive
from storage.champions import ChampionError, find_champion, promote, read_champion, roll_back
from storage.manifest import read_manifest
from tasks.assets import asset_key
from tasks.caching import steps
from tasks.retrain_story import RetrainSummary
from tests.archives import write_archive_pictures
from tests.command import Workplace

ROOT = Path(__file__).parents[2]

CONFIG = """
name: weekly
store: store
source: {path: pictures}
curation: {duplicates: null}
split: {train: 0.4, validation: 0.3, test: 0.3}
detectors: [{kind: patchcore, input_size_px: 64, memory_size: 32, candidates: 300}]
scoring: {shard_rows: 16}
evaluation: {bootstrap: {replicates: 50}}
execution: {kind: process}
"""
PLAN = """
retrain:
  promotion: {rule: not worse, margin: 0.2%s}
  archive:
    into: archive
    scoring: {shard_rows: 16, batch_size: 8}
    drift: {replicates: 20, permutations: 20}
"""


def write_config(folder: Path, promotion: str = "") -> str:
    (folder / "weekly.yaml").write_text(CONFIG + PLAN % promotion)
    return str(folder / "weekly.yaml")


def add_pictures(folder: Path, count: int, *, first: int) -> None:
    """Pictures of a folder source, each of a subject of its own."""
    for path in sorted(write_archive_pictures(folder / f"new-{first}", count, first=first).iterdir()):
        place = folder / "pictures" / ("abnormal" if "abnormal" in path.name else "normal")
        place.mkdir(parents=True, exist_ok=True)
        path.rename(place / path.name)


def retrain_counting(config: str) -> tuple[RetrainSummary, dict[str, int]]:
    """What it came to, and how often each step was done."""
    before = steps.done.copy()
    summary = retrain_scheduled(config)
    return summary, dict(steps.done - before)


def fail(*_: Any, **__: Any) -> None:
    """A step that cannot be done."""
    raise OSError("the disk is full")


def answer_when_asked(**answer: Any) -> threading.Thread:
    """A person who looks at the UI until a run is paused there."""

    def wait_and_answer() -> None:
        paused = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.PAUSED])))
        with get_client(sync_client=True) as client:
            while not (runs := client.read_flow_runs(flow_run_filter=paused)):
                time.sleep(0.2)
        resume_flow_run(runs[0].id, run_input=answer)

    thread = threading.Thread(target=wait_and_answer, daemon=True)
    thread.start()
    return thread


def read_lineage() -> dict[str, set[str]]:
    """Of the assets that the server was told of last: what each was made of."""
    made = {"filter": {"event": {"name": ["prefect.asset.materialization.succeeded"]}}, "limit": 50}
    with get_client(sync_client=True) as client:
        events = client._client.post("/events/filter", json=made).raise_for_status().json()["events"]
    return {
        event["resource"]["prefect.resource.id"]: {
            each["prefect.resource.id"] for each in event["related"] if each["prefect.resource.role"] == "asset"
        }
        for event in reversed(events)
    }


def wait_for_lineage(made: str, of: str) -> None:
    """Until the server has written down that something was made of something, in as many steps as it took."""
    deadline = time.monotonic() + 30
    while True:
        lineage = read_lineage()
        ancestors, waiting = set(), [made]
        while waiting:
            new = lineage.get(waiting.pop(), set()) - ancestors
            ancestors |= new
            waiting += new
        if of in ancestors:
            return
        assert time.monotonic() < deadline, lineage
        time.sleep(0.5)


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_a_store_is_retrained_week_by_week(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.retrain_decision._POLL_S", 1)
    config, store = write_config(tmp_path), str(tmp_path / "store")
    add_pictures(tmp_path, 60, first=0)

    with monkeypatch.context() as broken:
        broken.setattr(flows.retrain, "score_archive", fail)
        with pytest.raises(OSError, match="the disk is full"):
            retrain_scheduled(config)
    first = read_champion(store)
    assert first.previous is None
    assert "above chance" in first.champion.evidence["reason"]
    assert first.champion.evidence["data"] == "60 pictures: 60 new, 0 changed, 0 gone"

    summary, done = retrain_counting(config)  # goes on with the archive
    assert not {"tabulate", "train", "score", "evaluate"} & set(done)
    assert "the challenger is the champion" in summary["reason"]
    assert read_champion(store) == first
    assert Path(summary["drift_uri"] or "").exists()

    summary, done = retrain_counting(config)
    assert (summary["outcome"], done) == ("nothing new", {})
    assert read_champion(store) == first

    add_pictures(tmp_path, 24, first=60)
    with monkeypatch.context() as broken:
        broken.setattr(flows.retrain, "score", fail)
        with pytest.raises(OSError, match="the disk is full"):
            retrain_scheduled(config)
    assert read_champion(store) == first

    summary, done = retrain_counting(config)
    assert (summary["outcome"], summary["data"]) == ("promoted", "84 pictures: 24 new, 0 changed, 0 gone")
    assert not {"tabulate", "write manifest", "train"} & set(done)
    second = read_champion(store)
    assert (second.champion.by, second.previous) == ("evidence", first.champion)
    assert second.champion.evidence["difference"]["low"] > -0.2
    assert open_archive(str(tmp_path / "archive")).slots() == {"champion": [1, 2]}
    kept = read_manifest(first.champion.manifest["uri"]).set_index("sample_id")["split"]
    now = read_manifest(second.champion.manifest["uri"]).set_index("sample_id")["split"]
    assert now[kept.index].equals(kept)  # the test set is frozen
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs()
        artifacts = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["champion-against-challenger"])))
    assert {"retrain weekly on 84 pictures: 24 new, 0 changed, 0 gone"} <= {run.name for run in runs if "retrain" in run.tags}
    assert "champion-against-challenger" in {artifact.key for artifact in artifacts}

    manifest = asset_key(second.champion.manifest["uri"])
    wait_for_lineage(asset_key(f"{store}/champion.json"), manifest)
    wait_for_lineage(asset_key(open_archive(str(tmp_path / "archive")).scores_uri("champion", 2)), asset_key(second.champion.uri))

    assert roll_back(store).champion.digest == first.champion.digest
    assert retrain_counting(config)[0]["outcome"] == "nothing new"
    with pytest.raises(FlowPauseTimeout):
        retrain_scheduled(write_config(tmp_path, ", decided_by: person, answer_within_h: 0.0003"))
    assert read_champion(store).champion.by == "rollback"
    asked = write_config(tmp_path, ", decided_by: person")
    person = answer_when_asked(promote=True, note="looked at the worst misses")
    summary, done = retrain_counting(asked)
    person.join(timeout=30)
    with get_client(sync_client=True) as client:
        asking = [run for run in client.read_flow_runs() if run.name.startswith("weekly: put patchcore")]
    # not the run itself pauses: it would lose its slot of the deployment's limit
    assert all(run.parent_task_run_id is not None and "approval" in run.tags for run in asking)
    assert {run.state_name for run in asking} == {"Failed", "Completed"}
    assert "a person approved (looked at the worst misses); the evidence: this model was in use and was rolled back" in summary["reason"]
    assert "train" not in done
    assert (read_champion(store).champion.digest, read_champion(store).champion.by) == (second.champion.digest, "person")

    (Path(second.champion.uri) / "card.json").write_text("{}")
    with pytest.raises(ChampionError, match="gone or was changed"):
        retrain_scheduled(asked)


def test_a_plan_is_read_beside_the_run_and_what_is_wrong_is_named(tmp_path: Path) -> None:
    config, plan = load_retrain(Path(write_config(tmp_path)))
    assert config.store == str(tmp_path / "store")
    assert plan.archive is not None
    assert plan.archive.into == str(tmp_path / "archive")
    with pytest.raises(ConfigError, match="did you mean decided_by"):
        load_retrain(Path(write_config(tmp_path, ", decidedby: person")))
    (tmp_path / "weekly.yaml").write_text(CONFIG.replace("detectors: [", "detectors: [{kind: ae}, "))
    with pytest.raises(ConfigError, match="a store has one champion"):
        load_retrain(tmp_path / "weekly.yaml")


def test_the_shipped_example_is_one() -> None:
    config, plan = load_retrain(ROOT / "deploy" / "configs" / "retrain.yaml")
    assert (config.detectors[0].kind, plan.promotion.rule) == ("patchcore", "better")


@pytest.fixture
def workplace(tmp_path: Path) -> Iterator[Workplace]:
    yield (place := Workplace(tmp_path))
    assert place.call("ui", "--stop").returncode == 0


@pytest.mark.slow
def test_the_commands_of_the_guide_do_what_it_says(workplace: Workplace) -> None:
    guide = (ROOT / "docs" / "guides" / "retrain.md").read_text()
    (configuration,) = re.findall(r"```yaml\n(.+?)```", guide, re.DOTALL)
    first, say, serve, back, history = re.findall(r"^normascope (.+)$", guide, re.MULTILINE)
    assert serve.startswith("serve")  # tests/flows/test_serve.py
    small = configuration.replace("kind: patchcore", "kind: patchcore, input_size_px: 64, memory_size: 32, candidates: 300")
    (workplace.folder / "weekly.yaml").write_text(small + "execution: {kind: process}\n")
    add_pictures(workplace.folder, 48, first=0)

    trained = workplace.call(*first.split())
    assert trained.returncode == 0, trained.stderr
    assert "promoted: the first one: image/AUROC" in trained.stdout
    assert "in use: patchcore" in workplace.call(*say.split()).stdout
    lonely = workplace.call(*back.split())
    assert (lonely.returncode, "there is nothing to go back to" in lonely.stderr) == (1, True)

    store = str(workplace.folder / "store")
    found = find_champion(store)
    assert found is not None
    copied = f"{store}/models/second"
    shutil.copytree(found.pointer.champion.uri, copied)
    promote(store, found.pointer.champion.model_copy(update={"uri": copied}), over=found)
    assert found.pointer.champion.uri in workplace.call(*back.split()).stdout
    assert workplace.call(*history.split()).stdout.count("before:") == 2
