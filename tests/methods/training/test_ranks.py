"""Several processes do together what one does: the same images a step, the same statistics, the same choice of the epoch."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from methods.training.batches import EpochSampler, SharedBatches
from methods.training.ranks import Rank
from tests.ranked_fits import train

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(("count", "size", "ranks"), [(10, 4, 2), (9, 4, 2), (23, 8, 4), (5, 8, 8), (12, 4, 1)])
def test_ranks_share_every_batch_and_their_weighted_means_make_its_mean(count: int, size: int, ranks: int) -> None:
    def order() -> EpochSampler:
        return EpochSampler(count, seed=1, epoch=lambda: 2)

    whole = list(order())
    shares = [SharedBatches(order(), size=size, rank=Rank(index, ranks)) for index in range(ranks)]
    for number, parts in enumerate(zip(*shares, strict=True)):
        batch = whole[number * size : (number + 1) * size]
        assert all(share.images(number) == len(batch) for share in shares)
        mean = sum(share.weight(number) * sum(part) / len(part) for share, part in zip(shares, parts, strict=True)) / ranks
        assert mean == pytest.approx(sum(batch) / len(batch))
        if len(batch) >= ranks:
            assert sorted(index for part in parts for index in part) == sorted(batch)
        else:
            assert all(part == batch for part in parts)
    assert len(shares[0]) == -(-count // size)


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The trainings of `tests.ranked_fits` as both of two processes have them."""
    out = tmp_path_factory.mktemp("ranks") / "fits"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "tests.ranked_fits", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=500)
    return [torch.load(f"{out}.{rank}") for rank in range(2)]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["normalised", "odd", "rivals", "taught", "staged"])
def test_batch_normalisation_critics_labels_stages_and_short_batches_are_as_in_one_process(by_two: list[dict[str, Any]], name: str) -> None:
    alone = train(name, Rank())
    for fits in by_two:
        weights, report = fits[name]["weights"], fits[name]["report"]
        assert report["best_epoch"] == alone["report"]["best_epoch"]  # type: ignore[index]
        for entry, expected in zip(report["curve"], alone["report"]["curve"], strict=True):  # type: ignore[index]
            assert entry == pytest.approx(expected, abs=1e-6)
        for tensor, value in alone["weights"].items():  # type: ignore[attr-defined]
            # a batch that every rank takes whole counts double in the n / (n - 1) of the running variance
            torch.testing.assert_close(weights[tensor], value, rtol=1e-3 if name == "odd" else 1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("unequal", "a batch of 3 cannot be shared equally by 2 processes"),
        ("memory", "Memory looks at every image once, in one process"),
        ("self-taught", "SelfTaught cannot be trained by several processes: its seen follows"),
    ],
)
def test_what_cannot_be_shared_is_refused_by_name(by_two: list[dict[str, Any]], name: str, said: str) -> None:
    for fits in by_two:
        assert said in fits[name]["error"]
