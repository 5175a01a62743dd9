"""What comes out of a training: a report, or an error."""

from dataclasses import dataclass, field


class TrainingError(RuntimeError):
    """Training cannot begin or go on; the message says at which step and why."""


@dataclass(frozen=True)
class FitReport:
    """What happened: goes to the model's card.

    Attributes:
        selected_by: the criterion by which the epoch was chosen.
        best_epoch: 1-based; 1 for detectors that look at the data once.
        images_per_s: training throughput, of all processes together.
        curve: one entry an epoch: epoch, loss and what decides on validation, validation_auroc or validation_loss.
        processes: that trained together.
    """

    selected_by: str
    best_epoch: int
    images_per_s: float
    curve: list[dict[str, float]] = field(default_factory=list)
    processes: int = 1
