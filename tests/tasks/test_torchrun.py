"""Several processes train as one does; a killed one costs its epoch; errors arrive by name; nothing is left behind."""

import hashlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import torch
from distributed import Client, LocalCluster
from pydantic import TypeAdapter
from torch import Tensor

from methods.detectors.registry import DetectorConfig
from methods.training.outcome import FitReport, TrainingError
from methods.training.ranks import Rank
from storage.manifest import write_manifest
from tasks.torchrun import fit_by_torchrun
from tasks.training import TrainingConfig, TrainingJob, build_untrained, count_processes, fit_rows, select_rows
from tests.phantoms import write_pictures

_CONFIG: TypeAdapter[DetectorConfig] = TypeAdapter(DetectorConfig)
AUTOENCODER = {"kind": "ae", "C0": 4, "d": 8, "input_size_px": 32, "epochs": 6, "training_batch_size": 4}
NORMAL, ABNORMAL, TRAIN = 20, 6, 14  # the last batch is of two


@pytest.fixture
def make_job(tmp_path: Path) -> Callable[..., TrainingJob]:
    write_pictures(tmp_path / "pictures", normal=NORMAL, abnormal=ABNORMAL)
    paths = sorted((tmp_path / "pictures" / "normal").iterdir()) + sorted((tmp_path / "pictures" / "abnormal").iterdir())
    rows = [
        {
            "sample_id": f"{number:032x}",
            "uri": str(path),
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "dataset": "d",
            "subject_id": str(number),
            "label": int(number >= NORMAL),
            "split": "train" if number < TRAIN else "validation",
            **dict(zip(("level", "x_px", "y_px", "width_px", "height_px"), (0, 0, 0, 64, 64), strict=True)),
        }
        for number, path in enumerate(paths)
    ]

    def make(detector: dict[str, Any], *, splits: str = "all", **training: Any) -> TrainingJob:
        table = pd.DataFrame([row for row in rows if splits == "all" or row["split"] == splits])
        uri = str(tmp_path / f"{splits}.parquet")
        digest = write_manifest(uri, table)
        return TrainingJob(
            manifest_uri=uri,
            manifest_digest=digest,
            detector=_CONFIG.validate_python(detector),
            training=TrainingConfig(threads=2, **training),
            checkpoints=str(tmp_path / "checkpoints"),
        )

    return make


def fit_alone(job: TrainingJob) -> tuple[dict[str, Tensor], FitReport]:
    normal, validation = select_rows(job)
    model = build_untrained(job)
    report = fit_rows(model, normal, validation, job, rank=Rank(), on_step=lambda count: None)
    return dict(model.state_dict()), report  # type: ignore[arg-type]


def ranks_below(process: psutil.Process) -> list[psutil.Process]:
    found = []
    for child in process.children(recursive=True):
        try:
            if "tasks.train_rank" in child.cmdline() and "torch.distributed.run" not in child.cmdline():
                found.append(child)
        except psutil.Error:
            continue
    return found


def ours() -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if "tasks.train_rank" in " ".join(child.cmdline())]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_train_as_one_does(make_job: Callable[..., TrainingJob]) -> None:
    job, steps = make_job(AUTOENCODER), list[int]()
    weights, report = fit_by_torchrun(job, processes=2, on_step=steps.append)
    expected, alone = fit_alone(job.model_copy(update={"checkpoints": job.checkpoints + "-alone"}))
    assert (report.processes, report.best_epoch, report.selected_by) == (2, alone.best_epoch, alone.selected_by)
    for entry, expected_entry in zip(report.curve, alone.curve, strict=True):
        assert entry == pytest.approx(expected_entry, abs=1e-6)
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-4, atol=1e-6)
    assert sum(steps) == 6 * TRAIN
    assert not ours()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_rank_is_started_again_and_the_result_is_that_of_an_unbroken_training(make_job: Callable[..., TrainingJob]) -> None:
    job = make_job(AUTOENCODER | {"epochs": 60}, checkpoint_every_s=0)
    killed: list[int] = []

    def kill_one() -> None:
        last = Path(job.checkpoints, "last.ckpt")
        while not last.exists():
            time.sleep(0.01)
        victim = ranks_below(psutil.Process())[1]
        killed.append(victim.pid)
        victim.kill()

    thread = threading.Thread(target=kill_one)
    thread.start()
    weights, report = fit_by_torchrun(job, processes=2, on_step=lambda count: None)
    thread.join()
    assert killed
    expected, unbroken = fit_alone(job.model_copy(update={"checkpoints": job.checkpoints + "-unbroken"}))
    assert report.best_epoch == unbroken.best_epoch
    assert [entry["loss"] for entry in report.curve] == pytest.approx([entry["loss"] for entry in unbroken.curve], rel=1e-3)
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_loss_that_is_no_number_arrives_with_the_text_that_one_process_gives(make_job: Callable[..., TrainingJob]) -> None:
    job = make_job(AUTOENCODER | {"learning_rate": 1e25})
    with pytest.raises(TrainingError, match=r"at epoch 1, batch \d") as alone:
        fit_alone(job)
    with pytest.raises(TrainingError) as together:
        fit_by_torchrun(job, processes=2, on_step=lambda count: None)
    assert str(together.value) == str(alone.value)
    assert not ours()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_empty_training_split_is_refused_in_the_same_words(make_job: Callable[..., TrainingJob]) -> None:
    with pytest.raises(TrainingError, match="training split is empty"):
        fit_by_torchrun(make_job(AUTOENCODER, splits="validation"), processes=2, on_step=lambda count: None)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_rank_that_fails_is_named_with_the_end_of_its_traceback(make_job: Callable[..., TrainingJob]) -> None:
    job = make_job(AUTOENCODER)
    normal, _ = select_rows(job)
    Path(normal["uri"].iloc[0]).write_bytes(b"no picture")
    with pytest.raises(TrainingError, match=r"^rank \d of 2: UnreadableImageError: (?s:.)*Error: "):
        fit_by_torchrun(job, processes=2, on_step=lambda count: None)


class _CancelledError(BaseException):
    """Stands for what Prefect raises in a task that is cancelled."""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_dask_worker_may_train_by_several_processes(make_job: Callable[..., TrainingJob]) -> None:
    """Workers are daemonic: what forks or spawns through multiprocessing fails in them."""
    job = make_job(AUTOENCODER | {"epochs": 1})
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        _, report = client.submit(fit_by_torchrun, job, processes=2, on_step=_ignore).result()
    assert (report.processes, len(report.curve)) == (2, 1)


def _ignore(_images: int) -> None:
    """For a worker, to which no local function can be sent."""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_cancelling_leaves_no_process_behind(make_job: Callable[..., TrainingJob]) -> None:
    seen: list[psutil.Process] = []

    def cancel(_count: int) -> None:
        seen.extend(ours())
        raise _CancelledError

    with pytest.raises(_CancelledError):
        fit_by_torchrun(make_job(AUTOENCODER | {"epochs": 2000}), processes=2, on_step=cancel)
    assert len(seen) == 3  # torchrun and two ranks
    assert not any(process.is_running() for process in seen)


def test_a_detector_with_a_memory_trains_in_one_process_and_says_so(
    make_job: Callable[..., TrainingJob], caplog: pytest.LogCaptureFixture
) -> None:
    job = make_job({"kind": "patchcore", "memory_size": 64}, processes=2)
    assert count_processes(build_untrained(job), job.training) == 1
    assert "PatchCore looks at every image once, in one process" in caplog.text
