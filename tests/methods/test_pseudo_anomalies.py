"""A patch of another image, seen where it was pasted and nowhere else."""

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from methods.pseudo_anomalies import PseudoAnomalies, paste_patch


class Images(TensorDataset):
    def __getitem__(self, index: int) -> torch.Tensor:  # type: ignore[override]
        return super().__getitem__(index)[0]


def test_one_rectangle_holds_another_images_pixels_and_the_rest_is_as_it_was() -> None:
    image, other = torch.zeros(3, 40, 60), torch.linspace(0.1, 1, 3 * 40 * 60).reshape(3, 40, 60)
    for seed in range(50):
        changed = paste_patch(image, other, rng=np.random.default_rng(seed)) != 0
        ys, xs = changed[0].nonzero(as_tuple=True)
        height, width = int(ys.max() - ys.min()) + 1, int(xs.max() - xs.min()) + 1
        assert changed.sum() == 3 * height * width  # a rectangle, in all channels
        assert 0.01 < height * width / (40 * 60) < 0.18
    assert not image.any()


def test_a_patch_changes_something_where_anything_does() -> None:
    image, other = torch.zeros(3, 32, 32), torch.zeros(3, 32, 32)
    other[:, 12:20, 12:20] = 1  # most patches of it are background
    changes = [float(paste_patch(image, other, rng=np.random.default_rng(seed)).mean()) for seed in range(50)]
    assert min(changes) > 0
    assert torch.equal(paste_patch(image, image, rng=np.random.default_rng(0)), image)


def test_they_are_the_same_each_time_and_lie_in_the_same_places_at_another_size() -> None:
    small = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    large = small.repeat_interleave(4, 2).repeat_interleave(4, 3)
    one, same, other = (PseudoAnomalies(Images(small), seed=seed) for seed in (0, 0, 1))
    assert len(one) == 6
    assert all(torch.equal(one[i], same[i]) for i in range(6))
    assert not all(torch.equal(one[i], other[i]) for i in range(6))
    enlarged = PseudoAnomalies(Images(large), seed=0)
    for i in range(6):
        assert centre(one[i] != small[i]) == pytest.approx(centre(enlarged[i] != large[i]), abs=0.1)


def centre(changed: torch.Tensor) -> torch.Tensor:
    """Of what changed, in shares of the sides."""
    return (changed.any(0).nonzero().float().mean(0) + 0.5) / changed.shape[-1]


def test_a_single_image_has_no_other() -> None:
    with pytest.raises(ValueError, match="at least two"):
        PseudoAnomalies(Images(torch.zeros(1, 3, 8, 8)), seed=0)
