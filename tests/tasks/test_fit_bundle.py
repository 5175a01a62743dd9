"""What a worker writes: which bundle stays when there is one already."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from methods.detectors.vae import VAEConfig
from methods.evaluation.bootstrap import BootstrapConfig
from storage.manifest import read_manifest, write_manifest
from storage.models import bundle_digest, read_bundle
from tasks import fit_bundle
from tasks.calibrate import CalibrationConfig
from tasks.fit_bundle import Trained
from tasks.training import TrainingConfig, TrainingJob
from tests.archives import write_archive_pictures, write_manifest_of

SMALL = VAEConfig(input_size_px=16, width=4, latent=4, epochs=1, training_batch_size=4)


Fit = Callable[[], Trained]


@pytest.fixture
def fit(tmp_path: Path) -> Fit:
    """Trains the bundle at `tmp_path / "bundle"`."""
    rows = read_manifest(write_manifest_of(write_archive_pictures(tmp_path / "pictures", 12, size_px=16))[0])
    rows["split"], rows["label"] = ["train"] * 8 + ["validation"] * 4, [0] * 10 + [1] * 2
    manifest = str(tmp_path / "development.parquet")
    options: dict[str, Any] = {"manifest_uri": manifest, "manifest_digest": write_manifest(manifest, rows)}
    job = TrainingJob(**options, detector=SMALL, training=TrainingConfig(threads=1), checkpoints=str(tmp_path / "checkpoints"))
    return partial(fit_bundle.fit_bundle, job, CalibrationConfig(), BootstrapConfig(replicates=10), str(tmp_path / "bundle"))


def test_of_two_runs_that_train_the_same_model_the_first_ones_bundle_is_kept(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faster = []

    def draw(*arguments: Any, **named: Any) -> dict[str, bytes]:
        monkeypatch.undo()
        faster.append(fit().digest)  # the other run goes from its beginning to its end meanwhile
        return fit_bundle.draw_training(*arguments, **named)

    monkeypatch.setattr(fit_bundle, "draw_training", draw)
    assert [fit().digest] == faster == [bundle_digest(str(tmp_path / "bundle"))]


def test_a_bundle_that_another_run_has_written_is_taken_over_and_a_damaged_one_made_again(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fit()
    with monkeypatch.context() as patched:
        patched.setattr(fit_bundle, "build_untrained", None)  # what would train
        assert fit() == first
    (tmp_path / "bundle" / "model.safetensors").write_bytes(b"damaged")
    again = fit()
    assert again.report.curve == first.report.curve
    read_bundle(str(tmp_path / "bundle"), digest=again.digest)
