"""A small archive to score: pictures with a known answer, their manifest, and trained-looking bundles in seconds."""

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from methods.detectors.autoencoder import AutoencoderConfig
from methods.detectors.interface import LearnsByMemory
from methods.detectors.patchcore import PatchCoreConfig
from methods.detectors.registry import DetectorConfig, build_detector
from methods.evaluation.bootstrap import BootstrapConfig
from storage import filesystems
from storage.images import picture_size
from storage.manifest import read_manifest, sample_id, write_named
from storage.models import Bundle, write_bundle
from tasks.calibrate import CalibrationConfig, calibrate
from tasks.references import ModelReference
from tasks.samples import read_sample, to_tensor

ABNORMAL_EVERY = 6  # pictures 5, 11, 17…
CONFIGS: dict[str, DetectorConfig] = {
    "ae": AutoencoderConfig(C0=4, d=4, input_size_px=32),
    "patchcore": PatchCoreConfig(input_size_px=64, memory_size=64, candidates=500),
}


def write_archive_pictures(folder: Path, count: int, *, first: int = 0, size_px: int = 64) -> Path:
    """Pictures number first … first + count - 1, by turns JPEG and PNG, each drawn from its number alone and unlike any other.

    Normal ones are stripes; every sixth is abnormal: it has a bright square in it, and "abnormal" in its name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        rng = np.random.default_rng(number)
        stripes = 90 + 30 * np.sin(np.arange(size_px) * 1.5 + rng.uniform(0, 6))
        picture = stripes[None, :, None] + rng.normal(0, 5, (size_px, size_px, 3))
        abnormal = number % ABNORMAL_EVERY == ABNORMAL_EVERY - 1
        if abnormal:
            y, x = rng.integers(0, size_px // 2, 2)
            picture[y : y + size_px // 2, x : x + size_px // 2] = (220, 40, 200)
        name = f"picture-{number:07d}-{'abnormal' if abnormal else 'normal'}.{'png' if number % 2 else 'jpg'}"
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / name, quality=90)
    return folder


def write_manifest_of(folder: Path, *, into: str | None = None) -> tuple[str, str]:
    """The URI and digest of a manifest of all pictures of a folder by name, written beside it or to a folder or prefix `into`.

    Two neighbouring pictures are of one subject; datasets, splits and sites differ, so that there is something to filter by.
    """
    table = pd.DataFrame([_row(path, number) for number, path in enumerate(sorted(folder.iterdir()))])
    return write_named(into or str(folder.parent), table, manifest=slice(None))["manifest"]


def write_small_bundle(folder: Path, kind: str = "ae") -> ModelReference:
    """A detector of small size with weights from seed 0, calibrated as a trained one is, on pictures that no archive of a test holds."""
    config = CONFIGS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        detector = build_detector(config)
    with tempfile.TemporaryDirectory() as place:
        rows = read_manifest(write_manifest_of(write_archive_pictures(Path(place) / "pictures", 72, first=10**6))[0])
        normal = rows[rows["label"] == 0].iloc[:16]
        if isinstance(detector, LearnsByMemory):
            pixels = [read_sample(row, size_px=config.input_size_px) for row in normal.to_dict("records")]
            with torch.inference_mode():
                detector.observe(to_tensor(np.stack(pixels)))
                detector.conclude(torch.Generator().manual_seed(0))
        validation = rows.drop(normal.index)
        calibration = calibrate(
            detector, normal=normal, validation=validation, config=CalibrationConfig(), bootstrap=BootstrapConfig(replicates=20)
        )
    tensors = {name: tensor.numpy() for name, tensor in detector.state_dict().items()}
    trained_on = {"manifest_digest": "0" * 64, "samples": len(normal), "abnormal": 0, "subjects": normal["subject_id"].nunique()}
    card = {"trained_on": trained_on, "training": {"seed": 0}, "calibration": calibration}
    digest = write_bundle(str(folder), Bundle(tensors=tensors, config=config.model_dump(mode="json"), card=card))
    return ModelReference(uri=str(folder), digest=digest, kind=kind)


def _row(path: Path, number: int) -> dict[str, object]:
    width_px, height_px = picture_size(path)
    sha256 = filesystems.sha256_of(str(path))
    box = {"level": 0, "x_px": 0, "y_px": 0, "width_px": width_px, "height_px": height_px}
    subject = f"subject-{number // 2:05d}"
    return {
        "sample_id": sample_id(sha256, **box),  # type: ignore[arg-type]
        "uri": str(path),
        "sha256": sha256,
        "dataset": ("clinic", "ward", "practice")[number % 3],
        "subject_id": subject,
        "group_id": subject,
        "label": int("-abnormal" in path.name),
        "site": ("arm", "back")[number // 2 % 2],
        "split": "archive" if number % 4 else "test",
        **box,
    }
