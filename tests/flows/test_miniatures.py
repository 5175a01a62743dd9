"""The same run at miniature size: every kind of detector is trained in a second, and nothing is downloaded."""

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from flows.config import RunConfig, load_config
from flows.miniatures import NOTICE, SMALL, shrink, shrink_detector
from methods.curation.split_config import CountConfig, SplitConfig
from methods.detectors.deep_svdd import DeepSVDDConfig
from methods.detectors.dpa import DeepPerceptualAutoencoderConfig, GrowingConfig
from methods.detectors.interface import LearnsFromLabels
from methods.detectors.networks.backbones import BUNDLED, BackboneConfig
from methods.detectors.registry import NAMES, DetectorConfig, build_detector
from methods.detectors.simplenet import SimpleNetConfig
from methods.evaluation.bootstrap import BootstrapConfig
from methods.training.fit import fit
from storage.datasets.folder import FolderSource
from tasks.curation import TilingConfig
from tasks.evaluate import EvaluationConfig

PAPERS = sorted((Path(__file__).parents[2] / "deploy" / "configs" / "papers").glob("*.yaml"))
KINDS: dict[str, Any] = {config.model_fields["kind"].default: config for config in get_args(get_args(DetectorConfig)[0])}


def run_of(**parts: Any) -> RunConfig:
    return RunConfig(name="a run", store="store", source=(FolderSource(path="pictures"),), **parts)


def test_every_kind_of_detector_has_a_small_size() -> None:
    assert set(SMALL) == set(KINDS) == set(NAMES)


@pytest.mark.parametrize("kind", KINDS)
def test_a_small_detector_is_trained_and_scores(kind: str) -> None:
    config = shrink_detector(KINDS[kind]())
    assert config.kind == kind
    with torch.random.fork_rng():
        torch.manual_seed(0)
        detector = build_detector(config)
        images = torch.rand(10, 3, config.input_size_px, config.input_size_px)
        labels = np.arange(10) % 2 if isinstance(detector, LearnsFromLabels) else None
        fit(detector, images, labels=labels, validation=None, seed=0, threads=1)  # type: ignore[arg-type]
    with torch.inference_mode():
        assert torch.isfinite(detector.score(images[:2]).image).all()


def test_a_backbone_that_would_be_downloaded_gives_way_to_the_bundled_one_and_a_bundled_one_stays() -> None:
    downloaded = SimpleNetConfig(backbone=BackboneConfig(name="torchvision/wide_resnet50_2", layers=("layer2", "layer3")), noise_std=0.015)
    bundled = SimpleNetConfig(backbone=BackboneConfig(layers=("block2",)))
    small = shrink_detector(downloaded)
    assert isinstance(small, SimpleNetConfig)
    assert (small.backbone, small.noise_std) == (SimpleNetConfig().backbone, 0.015)
    assert shrink_detector(bundled).backbone == bundled.backbone  # type: ignore[union-attr]


def test_growing_keeps_the_stages_that_are_smaller_than_the_small_images() -> None:
    growing = GrowingConfig(layers={8: "features.3", 16: "features.8", 32: "features.13"}, transition_epochs=78, stabilisation_epochs=78)
    backbone = BackboneConfig(name="torchvision/vgg19", layers=("features.13",))
    small = shrink_detector(DeepPerceptualAutoencoderConfig(latent_side_px=1, backbone=backbone, epochs=507, growing=growing))
    assert isinstance(small, DeepPerceptualAutoencoderConfig)
    assert small.growing is not None
    assert (small.input_size_px, small.growing.layers, small.epochs) == (32, {8: "block4", 16: "block4"}, 2)
    assert small.backbone.name == BUNDLED


def test_what_is_smaller_already_stays_and_what_makes_the_method_is_kept() -> None:
    small = shrink_detector(DeepSVDDConfig(input_size_px=8, latent=4, objective="soft-boundary", pretraining_epochs=0))
    assert isinstance(small, DeepSVDDConfig)
    assert (small.input_size_px, small.latent, small.objective, small.pretraining_epochs) == (8, 4, "soft-boundary", 0)


def counts_of(**counts: CountConfig) -> SplitConfig:
    return SplitConfig.model_validate({"counts": counts})


def test_counts_are_divided_by_one_factor_and_what_is_asked_for_stays() -> None:
    train = CountConfig(normal=6369)
    validation, test = CountConfig(normal=86, abnormal_each=10), CountConfig(normal=250, abnormal={"MEL": 100, "DF": 5})
    small = shrink(run_of(split=counts_of(train=train, validation=validation, test=test))).split
    assert small.counts == {
        "train": CountConfig(normal=255),
        "validation": CountConfig(normal=3, abnormal_each=1),
        "test": CountConfig(normal=10, abnormal={"MEL": 4, "DF": 1}),
    }
    total = SplitConfig(train_on="both", counts={"train": CountConfig(total=5000), "test": CountConfig(total=1000)})
    assert shrink(run_of(split=total)).split.counts == {"train": CountConfig(total=250), "test": CountConfig(total=50)}


def test_counts_that_a_miniature_holds_and_shares_stay() -> None:
    split = counts_of(train=CountConfig(normal=250), test=CountConfig(normal=76, abnormal=148))
    assert shrink(run_of(split=split)).split == split
    shares = SplitConfig(train=0.95, validation=0.05, test=0)
    assert shrink(run_of(split=shares)).split == shares


def test_tiles_and_replicates_are_those_of_a_miniature() -> None:
    config = run_of(
        tiling=TilingConfig(size_px=768, spacing_um=0.25, tiles_max=50),
        evaluation=EvaluationConfig(bootstrap=BootstrapConfig(replicates=50)),
        notice="Some are known.",
    )
    small = shrink(config)
    assert (small.tiling.size_px, small.tiling.spacing_um, small.tiling.tiles_max, small.tiling.stride_px) == (128, 0.25, 10, None)
    assert small.evaluation.bootstrap.replicates == 50
    assert shrink(run_of()).evaluation.bootstrap.replicates == 100
    assert small.notice == f"{NOTICE} Some are known."


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.stem)
def test_the_configuration_of_a_paper_is_small_asks_for_no_download_and_says_so(path: Path) -> None:
    config = load_config(path)
    small = shrink(config)
    assert [detector.kind for detector in small.detectors] == [detector.kind for detector in config.detectors]
    assert all(detector.input_size_px <= 64 for detector in small.detectors)
    assert "torchvision" not in (text := small.model_dump_json())
    assert "timm/" not in text
    assert "GENERATED" in (small.notice or "")
    assert RunConfig.model_validate(small.model_dump()) == small  # it travels
