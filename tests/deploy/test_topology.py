"""A retraining through everything that deploy/compose.yaml starts: PostgreSQL, Redis, Prefect's server, services and worker, Dask, S3."""

import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
import yaml

from storage import filesystems
from storage.champions import read_champion
from tests.deploy.deployed import DEPLOY, read_yaml
from tests.deploy.topology import Topology, missing_programs, topology
from tests.phantoms import write_pictures

LACKING = missing_programs()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),  # eight processes at once, each of which imports for seconds
    pytest.mark.skipif(bool(LACKING), reason=f"not on this machine: {', '.join(LACKING)} (Debian's packages have them)"),
]
BUCKET = "s3://normascope"
PROMOTED = "normascope.champion.promoted"
_PATIENCE_S = 400


def write_work_folder(folder: Path, topology: Topology) -> Path:
    """The folder with deploy/prefect.yaml, the retraining due every 20 s and drift an hour after a promotion, and the retraining's file."""
    config = {
        "name": "weekly",
        "store": f"{BUCKET}/store",
        "source": {"path": f"{BUCKET}/pictures"},
        "curation": {"duplicates": None},
        "split": {"train": 0.4, "validation": 0.3, "test": 0.3},
        "detectors": [{"kind": "patchcore", "input_size_px": 64, "memory_size": 32, "candidates": 300}],
        "scoring": {"shard_rows": 16},
        "evaluation": {"bootstrap": {"replicates": 50}},
        "execution": {"kind": "address", "address": f"tls://{topology.places['scheduler:8786']}"},
        "retrain": {
            "archive": {
                "into": f"{BUCKET}/archive",
                "scoring": {"shard_rows": 16, "batch_size": 8},
                "drift": {"replicates": 20, "permutations": 20},
            }
        },
    }
    (file,) = read_yaml(DEPLOY / "prefect.yaml")
    deployments = {deployment["name"]: deployment for deployment in file["deployments"]}
    deployments["retrain"]["schedules"] = [{"interval": 20}]
    deployments["drift"]["triggers"] = [{"type": "event", "enabled": True, "match": {}, "expect": [PROMOTED], "schedule_after": 3600}]
    folder.mkdir()
    (folder / "prefect.yaml").write_text(yaml.safe_dump(file))
    (folder / "retrain.yaml").write_text(yaml.safe_dump(config))
    return folder


def upload_pictures(folder: Path) -> None:
    for path in write_pictures(folder, normal=30, abnormal=10).glob("*normal/*"):
        filesystems.write_bytes(f"{BUCKET}/pictures/{path.parent.name}/{path.name}", path.read_bytes())


def refuse_without_certificate(address: str, authority: Path) -> None:
    """Dask's scheduler knows itself, and lets nobody in who does not: TLS 1.3 says so at the first byte that is read."""
    host, port = address.split(":")
    context = ssl.create_default_context(cafile=authority)
    context.check_hostname = False
    plain = socket.create_connection((host, int(port)), timeout=10)
    with context.wrap_socket(plain) as encrypted, pytest.raises(ssl.SSLError, match="certificate required"):
        encrypted.recv(1)


def until(found: Callable[[], Any], log: Path) -> Any:
    """What is found, asked for again and again."""
    deadline = time.monotonic() + _PATIENCE_S
    while not (answer := found()):
        assert time.monotonic() < deadline, log.read_text(errors="replace")[-3000:]
        time.sleep(0.5)
    return answer


def test_a_retraining_that_is_due_goes_through_the_servers_of_the_compose_file(tmp_path: Path) -> None:
    with topology(tmp_path) as running, running.client() as client:
        assert httpx.post(f"{running.api}/flow_runs/filter", json={}, trust_env=False).status_code == 401
        refuse_without_certificate(running.places["scheduler:8786"], tmp_path / "tls" / "ca.pem")
        upload_pictures(tmp_path / "pictures")
        running.start("worker", cwd=write_work_folder(tmp_path / "work", running))
        log = tmp_path / "worker" / "prefect" / "worker.log"

        def runs(deployment: str, state: str) -> list[dict[str, Any]]:
            query = {"deployments": {"name": {"any_": [deployment]}}, "flow_runs": {"state": {"type": {"any_": [state]}}}}
            found = list(client.post("/flow_runs/filter", json=query).raise_for_status().json())
            assert not client.post("/flow_runs/filter", json={"flow_runs": {"state": {"name": {"any_": ["Failed", "Crashed"]}}}}).json()
            return found

        def events(name: str) -> list[dict[str, Any]]:
            answer = client.post("/events/filter", json={"filter": {"event": {"name": [name]}}}).raise_for_status()
            return list(answer.json()["events"])

        (name,) = until(lambda: {run["name"] for run in runs("retrain", "COMPLETED") if run["auto_scheduled"]}, log)
        assert name == "retrain weekly on 40 pictures: 40 new, 0 changed, 0 gone"
        champion = read_champion(f"{BUCKET}/store").champion
        assert champion.uri.startswith(f"{BUCKET}/store/models/")
        stored = {name.split("/")[3] for name in filesystems.list_files(BUCKET)}
        assert stored >= {"store", "archive", "results"}  # results of steps, which another machine's worker would take

        (promoted,) = until(lambda: events(PROMOTED), log)  # over Redis: who takes an event and who writes it down are two processes
        assert promoted["payload"]["digest"] == champion.digest
        (coming,) = until(lambda: runs("drift", "SCHEDULED"), log)  # an automation has seen it
        assert not coming["auto_scheduled"]
        until(lambda: events("normascope.retrain.nothing-new"), log)  # the next one that was due
        assert read_champion(f"{BUCKET}/store").champion == champion
        with redis.Redis.from_url(running.environment("server")["PREFECT_REDIS_MESSAGING_URL"]) as messages:
            assert messages.exists("events")
        assert "tls://" in (tmp_path / "scheduler.log").read_text()
