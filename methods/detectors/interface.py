"""What every detector is: trained in the training room, then a function from images to scores."""

from collections.abc import Iterable
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

CHANNELS = 3

SelectionRule = Literal["auroc", "loss"]  # highest image AUROC of both classes, lowest loss of normal images


class Scores(NamedTuple):
    """Anomaly scores of a batch; higher is more anomalous, comparable between images of one detector.

    Attributes:
        image: (N,) float32.
        pixel: (N, H, W) float32 at the detector's input size, or None for a detector that has no map.
    """

    image: Tensor
    pixel: Tensor | None


class DetectorError(ValueError):
    """An input, a configuration or a state that a detector cannot work with."""


@runtime_checkable
class Detector(Protocol):
    """A detector owns its normalisation; the score of an image does not depend on what else is in its batch.

    Attributes:
        input_size_px: height and width of its square input.
        batch_size: images that are scored at once; part of what makes results equal to the bit.
    """

    input_size_px: int
    batch_size: int

    def score(self, images: Tensor) -> Scores:
        """Scores of images (N, 3, H, W) float32 in [0, 1], RGB, at `input_size_px`."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Every tensor that scoring needs, by name."""
        ...


@runtime_checkable
class LearnsByGradient(Detector, Protocol):
    """A detector whose weights follow a loss; the training room drives it with Lightning.

    Attributes:
        selected_by: by what its paper chooses the epoch on validation.
    """

    selected_by: SelectionRule
    epochs: int
    training_batch_size: int

    def loss(self, images: Tensor) -> Tensor:
        """The mean training loss of a batch, a scalar."""
        ...

    def build_optimizer(self) -> torch.optim.Optimizer:
        """A fresh optimiser over the weights that learn."""
        ...


@runtime_checkable
class LearnsAgainstCritic(LearnsByGradient, Protocol):
    """A detector whose generator learns by `loss` in turns with a critic.

    Attributes:
        critic_steps: batches that the critic learns from for each that the generator learns from.
    """

    critic_steps: int

    def critic_loss(self, images: Tensor) -> Tensor:
        """The critic's mean loss of a batch, a scalar."""
        ...

    def build_critic_optimizer(self) -> torch.optim.Optimizer:
        """A fresh optimiser over the critic's weights; `build_optimizer` is over all others."""
        ...


@runtime_checkable
class LearnsFromLabels(Detector, Protocol):
    """A detector that learns by gradient from normal and abnormal images: a classifier; its score is that of the abnormal class."""

    selected_by: SelectionRule
    epochs: int
    training_batch_size: int

    def labelled_loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """The mean training loss of a batch and its labels (N,) int64, 0 normal, 1 abnormal; a scalar."""
        ...

    def weigh_samples(self, labels: Tensor) -> Tensor:
        """How often, in proportion, each of the training samples is drawn, (n,) float64 above 0 for labels (n,) int64.

        All equal: each once an epoch. Otherwise as many draws an epoch as there are samples, with replacement.
        """
        ...

    def build_optimizer(self) -> torch.optim.Optimizer:
        """A fresh optimiser over the weights that learn."""
        ...


Learner = LearnsByGradient | LearnsFromLabels  # what the training room drives with Lightning


@runtime_checkable
class LearnsInStages(LearnsByGradient, Protocol):
    """A detector whose network or loss changes while it learns, as by progressive growing; where it stands is part of its state.

    It has all its weights from the beginning, and they require gradients in every stage: only then can several processes share a training.
    """

    def advance_to(self, epoch: float) -> bool:
        """Called before each step with the epochs done so far, in fractions. True: a stage begins.

        The optimiser is then what `build_optimizer` gives; so it is at the start, whatever the first call says.
        """
        ...

    def is_complete(self) -> bool:
        """Whether it has reached its last form; only epochs that end so are measured on validation, compared and kept."""
        ...


@runtime_checkable
class SchedulesRate(Protocol):
    """A detector that learns by one optimiser in one stage and whose learning rate follows a schedule."""

    def build_scheduler(self, optimizer: torch.optim.Optimizer, *, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
        """A schedule over all `steps` of the training, advanced after each."""
        ...


@runtime_checkable
class PreparesOnTraining(Detector, Protocol):
    """A detector that takes something from the training images before it learns by gradient, as the centre of their features."""

    def prepare(self, batches: Iterable[Tensor]) -> None:
        """Called before the first step, and again where a stage begins (`LearnsInStages`), without gradients; what it takes is state.

        A training that is taken up does not call it again.

        Args:
            batches: all training images in their order, (N, 3, H, W) on the detector's device, as often as they are iterated over;
                every process sees all of them.
        """
        ...


@runtime_checkable
class LearnsByMemory(Detector, Protocol):
    """A detector that looks at every training image once and keeps something of it."""

    def observe(self, images: Tensor) -> None:
        """Take in a batch."""
        ...

    def conclude(self, generator: torch.Generator) -> None:
        """Make the memory out of what was observed."""
        ...


@runtime_checkable
class Reconstructs(Detector, Protocol):
    """A detector that shows what it takes an image for."""

    def reconstruct(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] of images of the same shape and range."""
        ...


@runtime_checkable
class TunedOnValidation(Detector, Protocol):
    """A detector with a number at inference that is chosen on validation, after training.

    Attributes:
        tuned: the configuration's name of that number.
    """

    tuned: str

    def candidates(self) -> tuple[float, ...]:
        """The values to choose from, in the order in which equal ones are preferred."""
        ...

    def use(self, value: float) -> None:
        """Score with this value from now on; it is kept with the state."""
        ...


@runtime_checkable
class ThresholdsOnTraining(Detector, Protocol):
    """A detector whose paper takes the pixel threshold from training images alone."""

    def training_threshold(self, batches: Iterable[Tensor], *, deviations: float) -> float:
        """The threshold on `Scores.pixel` after `deviations` standard deviations of what was found on batches of normal images."""
        ...


def check_images(images: Tensor, *, input_size_px: int) -> None:
    """Refuse what is no batch of RGB images at the detector's size, with values in [0, 1].

    Raises:
        DetectorError: says what was expected and what came.
    """
    expected = (CHANNELS, input_size_px, input_size_px)
    if images.ndim != 4 or tuple(images.shape[1:]) != expected or images.dtype != torch.float32:
        raise DetectorError(f"expected images (N, {', '.join(map(str, expected))}) float32, got {tuple(images.shape)} {images.dtype}")
    if images.numel() and not (images.min() >= 0 and images.max() <= 1):
        raise DetectorError(f"expected values in [0, 1], got {images.min():.3g} to {images.max():.3g} (NaN counts as outside)")
