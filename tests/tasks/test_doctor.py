"""The doctor tells trained weights from weights that only claim to be."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed import LocalCluster
from torchvision.models import ResNet18_Weights, resnet18
from typer.testing import CliRunner

from flows.cli import app
from methods.detectors.autoencoder import AutoencoderConfig
from storage import conditional
from storage.housekeeping import probe
from tasks.doctor import (
    _SHOWN,
    _dask,
    _judge,
    _judge_pool,
    _server,
    _store,
    _workers,
    compare_versions,
    examine_backbone,
    examine_backbones,
)
from tests.servers import s3_server


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A file of a network that never learned anything, and its digest."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = resnet18().state_dict()
    path = tmp_path_factory.mktemp("weights") / "pretrained_resnet18.pth"
    torch.save(state, path)
    return str(path), hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_bundled_network_knows_the_photographs() -> None:
    finding = examine_backbone("efficientnet-lite0")
    assert finding.ok, finding.text
    assert all(f"{shown}: " in finding.text for shown in _SHOWN)


def test_a_file_of_random_weights_is_refused(random_weights: tuple[str, str]) -> None:
    path, sha256 = random_weights
    finding = examine_backbone("torchvision/resnet18", weights=path, weights_sha256=sha256)
    assert not finding.ok
    for said in ("does not know coffee (none of espresso, cup, coffee mug)", "tiger cat", "space shuttle", "not the trained weights"):
        assert said in finding.text


def test_another_digest_no_digest_and_an_unknown_name_are_findings(random_weights: tuple[str, str]) -> None:
    path, _ = random_weights
    other = examine_backbone("torchvision/resnet18", weights=path, weights_sha256="0" * 64)
    none = examine_backbone("torchvision/resnet18", weights=path)
    unknown = examine_backbone("torchvision/resnet19")
    assert not any(finding.ok for finding in (other, none, unknown))
    assert "not the known weight file" in other.text
    assert none.text.startswith("expected weights_sha256")
    assert "torchvision/resnet18" in unknown.text


def likelihood(answers: dict[str, str], *, others: float = 0.0) -> list[list[float]]:
    classes = ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    assert all(classes.count(answer) == 1 for accepted in _SHOWN.values() for answer in accepted)
    return [[1.0 if name == answers[shown] else others * place for place, name in enumerate(classes)] for shown in _SHOWN]


def test_one_photograph_that_is_not_known_is_enough_to_refuse() -> None:
    answers = {"coffee": "cup", "chelsea": "tabby", "rocket": "missile"}
    assert _judge("network", likelihood(answers)).ok
    for shown in answers:
        finding = _judge("network", likelihood(answers | {shown: "tench"}, others=1e-6))
        assert not finding.ok
        assert f"does not know {shown} (none of" in finding.text
        assert f"{shown}: tench (100 %)" in finding.text


def test_a_network_of_other_classes_cannot_be_examined() -> None:
    finding = _judge("network", [[0.5, 0.5]] * len(_SHOWN))
    assert not finding.ok
    assert "tells 2 classes, not ImageNet's 1000" in finding.text


def test_the_command_examines_a_backbone_and_exits_with_1_when_it_fails(random_weights: tuple[str, str], tmp_path: Path) -> None:
    path, sha256 = random_weights
    runner, store = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}), str(tmp_path)
    good = runner.invoke(app, ["doctor", "--store", store, "--backbone", "efficientnet-lite0"])
    bad = runner.invoke(app, ["doctor", "--store", store, "--backbone", "torchvision/resnet18", "--weights", path, "--sha256", sha256])
    nameless = runner.invoke(app, ["doctor", "--store", store, "--weights", path])
    assert (good.exit_code, bad.exit_code, nameless.exit_code) == (0, 1, 2)
    assert "ok    backbone     efficientnet-lite0 knows coffee: espresso" in good.output
    assert "FAIL  backbone     torchvision/resnet18 does not know" in bad.output
    assert "--backbone" in nameless.output


def test_the_command_examines_several_and_all_of_a_run_but_the_same_one_once(random_weights: tuple[str, str], tmp_path: Path) -> None:
    path, sha256 = random_weights
    config = tmp_path / "run.yaml"
    config.write_text(f"""
name: pictures
store: store
source: {{kind: folder, path: pictures}}
detectors:
  - {{kind: ae}}
  - {{kind: patchcore}}
  - {{kind: padim}}
  - {{kind: simplenet, backbone: {{name: torchvision/resnet18, layers: [layer2], weights: {path}, weights_sha256: {sha256}}}}}
""")
    runner, store = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}), str(tmp_path)
    whole = runner.invoke(app, ["doctor", "--store", store, "--backbone", str(config), "--backbone", "torchvision/resnet19"])
    assert whole.exit_code == 1
    said = [line.split()[:3:2] for line in whole.output.splitlines() if " backbone " in line]
    assert said == [["FAIL", "there"], ["ok", "efficientnet-lite0"], ["FAIL", "torchvision/resnet18"]]
    assert "does not know" in whole.output
    ambiguous = ["doctor", "--store", store, "--weights", path]
    for two in (["efficientnet-lite0", "torchvision/resnet18"], [str(config)]):
        refused = runner.invoke(app, [*ambiguous, *(part for name in two for part in ("--backbone", name))])
        assert refused.exit_code == 2
        assert "one --backbone" in " ".join(refused.output.split())
    none = runner.invoke(app, ["doctor", "--store", store, "--backbone", str(tmp_path / "none.yaml")])
    assert none.exit_code == 1
    assert "cannot read" in none.output


def test_a_run_without_pretrained_networks_has_none_to_examine() -> None:
    (finding,) = examine_backbones([AutoencoderConfig()])
    assert finding.ok
    assert "no detector" in finding.text


def test_a_file_of_junk_is_a_finding_that_names_it_and_options_are_called_as_the_command_has_them(
    random_weights: tuple[str, str], tmp_path: Path
) -> None:
    (tmp_path / "junk.pth").write_bytes(b"hello")
    sha256 = hashlib.sha256(b"hello").hexdigest()
    junk = examine_backbone("torchvision/resnet18", weights=str(tmp_path / "junk.pth"), weights_sha256=sha256)
    assert not junk.ok
    assert "junk.pth is no file of weights alone" in junk.text
    none = examine_backbone("torchvision/resnet18", weights=random_weights[0])
    assert none.text.endswith("(of this command: --weights and --sha256)")


NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
WORKER = {"name": "w", "status": "ONLINE", "last_heartbeat_time": "2026-01-01T11:59:48Z"}


def test_a_pool_is_well_when_somebody_begins_its_runs() -> None:
    well = _judge_pool({"name": "main", "status": "READY", "is_paused": False}, [WORKER], now=NOW)
    assert well.ok
    assert well.text == "pool main: 1 of 1 workers online, last heartbeat 12 s ago"
    alone = _judge_pool({"name": "main", "status": "NOT_READY", "is_paused": False}, [{**WORKER, "status": "OFFLINE"}], now=NOW)
    paused = _judge_pool({"name": "main", "status": "PAUSED", "is_paused": True}, [WORKER], now=NOW)
    assert not alone.ok
    assert "prefect worker start --pool main" in alone.text
    assert not paused.ok
    assert "prefect work-pool resume main" in paused.text


@contextmanager
def answering(answers: dict[str, Any]) -> Iterator[str]:
    """A server on loopback that answers by path."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = json.dumps(answers.get(self.path)).encode()
            self.send_response(200 if self.path in answers else 401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}/api"
        http.shutdown()
        thread.join()


def test_the_pools_of_the_server_are_asked_for_their_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: dict[str, Any] = {"/api/health": True, "/api/work_pools/filter": [{"name": "a b", "status": "READY", "is_paused": False}]}
    with answering(answers) as address:
        monkeypatch.setenv("PREFECT_API_URL", address)
        (refused,) = _workers()
        answers["/api/work_pools/a%20b/workers/filter"] = [WORKER]
        (found,) = _workers()
    assert not refused.ok
    assert "PREFECT_API_AUTH_STRING" in refused.text
    assert found.ok
    assert "1 of 1 workers online" in found.text
    assert _workers() == []  # it is gone
    assert not _server().ok
    assert "does not answer: start it" in _server().text


def test_a_dask_cluster_is_well_with_workers_of_our_versions() -> None:
    with LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None, resources={"GPU": 1}) as cluster:
        found = _dask(cluster.scheduler_address)
        assert found.ok, found.text
        assert "1 workers of the same versions, 2 threads, 1 offer GPU=1" in found.text
        cluster.scale(0)
        for worker in list(cluster.workers.values()):
            cluster.sync(worker.close)
        empty = _dask(cluster.scheduler_address)
    assert not empty.ok
    assert "dask worker" in empty.text


def test_versions_that_differ_and_workers_without_normascope_are_named() -> None:
    theirs = {"tcp://a": {"torch": "2"}, "tcp://b": {"torch": "3"}, "tcp://c": ModuleNotFoundError("No module named 'tasks'")}
    assert compare_versions({"torch": "2"}, theirs) == [
        "tcp://b has torch 3 (here 2)",
        "tcp://c cannot import normascope (ModuleNotFoundError: No module named 'tasks')",
    ]


def test_a_folder_is_tried_where_it_will_be_and_nothing_stays(tmp_path: Path) -> None:
    found = _store(str(tmp_path / "not" / "yet"))
    assert found.ok, found.text
    assert "written, read and removed" in found.text
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_bytes(b"")
    assert not _store(str(tmp_path / "file")).ok


@pytest.mark.slow
def test_a_bucket_is_tried_and_one_that_overwrites_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server(tmp_path) as s3:
        assert probe(s3.bucket).conditional
        assert _store(f"{s3.bucket}/store").ok
        monkeypatch.setattr(conditional, "create", lambda uri, content: "version")
        refused = _store(f"{s3.bucket}/store")
        assert not refused.ok
        assert "If-None-Match" in refused.text
        s3.kill()
