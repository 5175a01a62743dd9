"""Small detectors without noise, and trainings of them by several processes: `… torch.distributed.run … -m tests.ranked_fits FILE`."""

import os
import sys
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import torch
from torch import Tensor, nn

from methods.detectors.interface import Scores, SelectionRule
from methods.training.fit import fit
from methods.training.outcome import TrainingError
from methods.training.ranks import Rank
from methods.training.selection import Validation

SIZE_PX = 8


class Normalised(nn.Module):
    """Reconstructs through batch normalisation."""

    selected_by: SelectionRule = "auroc"
    input_size_px, batch_size, training_batch_size, epochs = SIZE_PX, 3, 4, 3

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1))

    def loss(self, images: Tensor) -> Tensor:
        return nn.functional.mse_loss(self.layers(images), images)

    def score(self, images: Tensor) -> Scores:
        return Scores(image=(self.layers(images) - images).square().mean((1, 2, 3)), pixel=None)

    def build_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.layers.parameters(), lr=0.1)


class Rivals(Normalised):
    """Whose critic wants large reconstructions of small ones."""

    critic_steps = 2

    def __init__(self) -> None:
        super().__init__()
        self.critic = nn.Linear(3 * SIZE_PX**2, 1)

    def loss(self, images: Tensor) -> Tensor:
        self.critic.requires_grad_(False)
        loss = super().loss(images) - 0.1 * self.critic(self.layers(images).flatten(1)).mean()
        self.critic.requires_grad_(True)
        return loss

    def critic_loss(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            fake = self.layers(images)
        return (self.critic(fake.flatten(1)) - self.critic(images.flatten(1))).mean()

    def build_critic_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.critic.parameters(), lr=0.1)


class Taught(nn.Module):
    """Classifies through batch normalisation; draws both labels alike, and its rate falls."""

    selected_by: SelectionRule = "loss"
    input_size_px, batch_size, training_batch_size, epochs = SIZE_PX, 3, 4, 3

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * SIZE_PX**2, 1))

    def labelled_loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(self.layers(images)[:, 0], labels.float())

    def weigh_samples(self, labels: Tensor) -> Tensor:
        return 1 / torch.bincount(labels).double()[labels]

    def score(self, images: Tensor) -> Scores:
        return Scores(image=self.layers(images)[:, 0].sigmoid(), pixel=None)

    def build_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.layers.parameters(), lr=0.1, momentum=0.9)

    def build_scheduler(self, optimizer: torch.optim.Optimizer, *, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)


class Staged(Normalised):
    """In whose second stage, from the middle of an epoch on, a layer joins."""

    def __init__(self) -> None:
        super().__init__()
        self.late = nn.Conv2d(3, 3, 1)
        self.register_buffer("stage", torch.zeros((), dtype=torch.int64))

    def advance_to(self, epoch: float) -> bool:
        before = int(self.stage)  # type: ignore[arg-type]
        self.stage.fill_(int(epoch > 0.5))  # type: ignore[operator]
        return int(self.stage) != before  # type: ignore[arg-type]

    def is_complete(self) -> bool:
        return int(self.stage) == 1  # type: ignore[arg-type]

    def loss(self, images: Tensor) -> Tensor:
        made = self.layers(images)
        return nn.functional.mse_loss(self.late(made) if self.is_complete() else made, images)

    def build_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Unequal(Normalised):
    """A batch of three is not shared equally by two."""

    training_batch_size = 3


class SelfTaught(Normalised):
    """Keeps the mean of the images that its own process sees."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def loss(self, images: Tensor) -> Tensor:
        self.seen.copy_(images.mean())  # type: ignore[operator]
        return super().loss(images)


class Memory:
    """Takes every image in once."""

    input_size_px, batch_size = SIZE_PX, 3

    def observe(self, images: Tensor) -> None: ...

    def conclude(self, generator: torch.Generator) -> None: ...

    def score(self, images: Tensor) -> Scores:
        return Scores(image=images.mean((1, 2, 3)), pixel=None)

    def state_dict(self) -> dict[str, Tensor]:
        return {}


# name: detector, number of training images (10: a last batch of two; 9: of one, fewer than processes)
TRAININGS: dict[str, tuple[Callable[[], object], int]] = {
    "normalised": (Normalised, 10),
    "odd": (Normalised, 9),
    "rivals": (Rivals, 11),
    "taught": (Taught, 10),
    "staged": (Staged, 10),
    "unequal": (Unequal, 10),
    "memory": (Memory, 10),
    "self-taught": (SelfTaught, 10),
}


def train(name: str, rank: Rank) -> dict[str, object]:
    """One of the trainings: its weights and report, or its error."""
    make, count = TRAININGS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        detector = make()
    images = torch.rand(count + 7, 3, SIZE_PX, SIZE_PX, generator=torch.Generator().manual_seed(1))
    validation = Validation(images=images[count:], labels=np.array([0, 1, 0, 1, 0, 1, 1]))  # type: ignore[arg-type]
    labels = (np.arange(count) % 5 == 0).astype(int)  # of which no other detector is told
    try:
        report = fit(detector, images[:count], labels=labels, validation=validation, seed=3, threads=1, rank=rank)  # type: ignore[arg-type]
    except TrainingError as error:
        return {"error": str(error)}
    return {"weights": detector.state_dict(), "report": asdict(report)}  # type: ignore[attr-defined]


if __name__ == "__main__":
    own = Rank(index=int(os.environ["RANK"]), count=int(os.environ["WORLD_SIZE"]))
    torch.save({name: train(name, own) for name in TRAININGS}, f"{sys.argv[1]}.{own.index}")
