"""The doctor tells trained weights from weights that only claim to be."""

import hashlib
from pathlib import Path

import pytest
import torch
from torchvision.models import ResNet18_Weights, resnet18
from typer.testing import CliRunner

from flows.cli import app
from tasks.doctor import _SHOWN, _judge, examine_backbone


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
