"""A run through everything that deploy/compose.yaml starts: PostgreSQL, Redis, Prefect's server, services and worker, Dask over TLS, S3."""

import time
from pathlib import Path

import httpx
import pytest

from storage import filesystems
from tests.deploy.deployed import ROOT
from tests.deploy.topology import Topology, missing_programs, topology
from tests.phantoms import write_pictures

LACKING = missing_programs()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),  # eight processes at once, each of which imports for seconds
    pytest.mark.skipif(bool(LACKING), reason=f"not on this machine: {', '.join(LACKING)} (Debian's packages have them)"),
]


def deploy_run(client: httpx.Client, topology: Topology, pictures: Path) -> str:
    """A deployment of `flows.run.run` on a store in the bucket and on the Dask cluster; its id."""
    config = {
        "name": "topology",
        "store": "s3://normascope/store",
        "source": {"kind": "folder", "path": str(pictures)},
        "split": {"train": 0.5, "validation": 0.2, "test": 0.3},
        "detectors": [{"kind": "ae", "C0": 4, "d": 4, "input_size_px": 32, "epochs": 1}],
        "scoring": {"shard_rows": 4},
        "evaluation": {"bootstrap": {"replicates": 50}},
        "execution": {"kind": "address", "address": f"tls://{topology.places['scheduler:8786']}"},
    }
    flow = client.post("/flows/", json={"name": "run"}).raise_for_status().json()
    deployment = {
        "name": "topology",
        "flow_id": flow["id"],
        "entrypoint": "flows.run.run",
        "work_pool_name": "normascope",
        "schedules": [{"schedule": {"cron": "0 3 * * 0"}}],
        "parameters": {"config": config},
        "pull_steps": [{"prefect.deployments.steps.set_working_directory": {"directory": str(ROOT)}}],
    }
    return str(client.post("/deployments/", json=deployment).raise_for_status().json()["id"])


def run_to_its_end(client: httpx.Client, deployment: str) -> dict[str, str]:
    run = client.post(f"/deployments/{deployment}/create_flow_run", json={}).raise_for_status().json()
    deadline = time.monotonic() + 300
    while run["state"]["type"] in ("SCHEDULED", "PENDING", "RUNNING"):
        assert time.monotonic() < deadline, run["state"]
        time.sleep(0.5)
        run = client.get(f"/flow_runs/{run['id']}").raise_for_status().json()
    return dict(run["state"])


def test_a_run_goes_through_the_servers_of_the_compose_file(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "pictures", normal=12, abnormal=6)
    with topology(tmp_path) as running:
        assert httpx.post(f"{running.api}/flow_runs/filter", json={}, trust_env=False).status_code == 401
        with running.client() as client:
            state = run_to_its_end(client, deploy_run(client, running, pictures))
            log = (tmp_path / "worker.log").read_text(errors="replace")
            assert state["type"] == "COMPLETED", f"{state}\n{log[-3000:]}"
            coming = client.post("/flow_runs/filter", json={"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}).json()
            assert len(coming) >= 3, "the services have scheduled nothing"
        found = filesystems.list_files("s3://normascope/store")
        assert {"manifests", "models", "scores", "evaluations", "reports"} <= {name.split("/")[4] for name in found}
        assert filesystems.list_files("s3://normascope/results")  # of steps, which another machine's worker would take
        assert "tls://" in (tmp_path / "scheduler.log").read_text()
