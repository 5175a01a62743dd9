"""A training holds a slot of the server's limit while it uses a GPU. That there is one is made believe; the server is real."""

from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError

from methods.detectors.patchcore import PatchCoreConfig
from methods.evaluation.bootstrap import BootstrapConfig
from tasks.calibrate import CalibrationConfig
from tasks.execution import ExecutionConfig
from tasks.gpu_slots import LIMIT, goes_to_gpu
from tasks.train import train_detector
from tasks.training import TrainingConfig


def slots_taken() -> int:
    with get_client(sync_client=True) as client:
        return client.read_global_concurrency_limit_by_name(LIMIT).active_slots


@flow
def train(name: str) -> Any:
    options = {"training": TrainingConfig(), "calibration": CalibrationConfig(), "bootstrap": BootstrapConfig()}
    return train_detector(name, name, detector=PatchCoreConfig(), store="store", **options)


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_a_training_on_a_gpu_holds_a_slot_and_a_deployments_insists_on_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    def fit(*_: Any) -> None:
        taken.append(slots_taken())
        raise ValueError("far enough")

    monkeypatch.setattr("tasks.train.fit_bundle", fit)
    monkeypatch.setattr("tasks.gpu_slots.torch.cuda.is_available", lambda: True)
    with monkeypatch.context() as deployed:
        deployed.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "of the schedule")
        with pytest.raises(ConcurrencySlotAcquisitionError, match="gpu"):
            train("no limit there")
        with get_client(sync_client=True) as client:
            client.upsert_global_concurrency_limit_by_name(LIMIT, 1)
        with pytest.raises(ValueError, match="far enough"):
            train("scheduled")
    with pytest.raises(ValueError, match="far enough"):
        train("by a command")
    monkeypatch.setattr("tasks.gpu_slots.torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match="far enough"):
        train("on a CPU")
    assert taken == [1, 1, 0]
    assert slots_taken() == 0


def test_of_a_cluster_at_an_address_the_wanted_resource_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.gpu_slots.torch.cuda.is_available", lambda: True)
    cluster = ExecutionConfig(kind="address", address="tcp://127.0.0.1:8786")
    assert goes_to_gpu(None)
    assert not goes_to_gpu(cluster)
    assert goes_to_gpu(cluster.model_copy(update={"resources": {"GPU": 1}}))
