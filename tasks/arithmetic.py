"""With what arithmetic a store's scores are computed: kept in the store and obeyed by every run on it, so that resumed bits are equal."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from methods.detectors.interface import Detector, Scores
from tasks.models import load_detector
from tasks.references import ModelReference
from tasks.samples import to_tensor

GAIN = 1.05  # a change that makes scoring less than 5 % faster is not taken: it would be within the noise
TOLERANCE = 0.02  # most that a changed score differs, as a share of the standard deviation of the scores
_MOST_AT_ONCE = {"cpu": 64, "cuda": 1024}
_TRIAL_S = 1.0

Precision = Literal["float32", "tf32", "bfloat16"]


class Arithmetic(BaseModel):
    """All that decides, beside model and pixels, about the bits of a score. Bits are equal on machines of one kind."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_size: int = Field(ge=1, description="images scored at once; every batch is full")
    threads: int = Field(default=1, ge=1, description="computing threads")
    device: Literal["cpu", "cuda"] = "cpu"
    precision: Precision = Field(default="float32", description="in which products are computed")
    channels_last: bool = Field(default=False, description="images lie in memory pixel by pixel")
    compiled: bool = Field(default=False, description="through torch.compile")


class Scorer:
    """A detector on its device under an arithmetic."""

    def __init__(self, detector: Detector, arithmetic: Arithmetic) -> None:
        self.arithmetic = arithmetic
        self.input_size_px = detector.input_size_px
        self._format = torch.channels_last if arithmetic.channels_last else torch.contiguous_format
        detector.to(arithmetic.device, memory_format=self._format)  # type: ignore[attr-defined]
        self._score: Callable[[Tensor], Scores] = torch.compile(detector.score) if arithmetic.compiled else detector.score

    def to_device(self, pixels: np.ndarray) -> Tensor:
        """Images for `score`, (B, 3, H, W) float32 in [0, 1], of pixels (B, H, W, 3) uint8; these, not those, travel to a GPU."""
        if self.arithmetic.device == "cpu":
            return to_tensor(pixels).contiguous(memory_format=self._format)
        sent = torch.from_numpy(pixels).pin_memory().to(self.arithmetic.device, non_blocking=True)
        return sent.permute(0, 3, 1, 2).float().div(255).contiguous(memory_format=self._format)

    def score(self, images: Tensor) -> tuple[np.ndarray, np.ndarray | None]:
        """Image scores (B,) float32 and maps (B, H, W) float16 or None."""
        kept = self.arithmetic
        if torch.get_num_threads() != kept.threads:  # each thread of a process has a setting of its own
            torch.set_num_threads(kept.threads)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = kept.precision == "tf32"
        torch.backends.cudnn.deterministic = True
        with torch.inference_mode(), torch.autocast(kept.device, torch.bfloat16, enabled=kept.precision == "bfloat16"):
            scores = self._score(images)
        # halved here: NumPy takes thirty times as long for the same bits
        return scores.image.float().cpu().numpy(), None if scores.pixel is None else scores.pixel.half().cpu().numpy()


@dataclass(frozen=True)
class Trial:
    """What an arithmetic gave on some pictures: seconds for an image, and the image scores (n,)."""

    seconds: float
    image: np.ndarray


def choose_arithmetic(model: ModelReference, pixels: np.ndarray, *, threads: int) -> Arithmetic:
    """The fastest arithmetic for a model here: how many images at once; on a GPU also in which precision and layout, and if compiled.

    On a CPU it is float32, bit for bit what calibration used but for the number of images at once.

    Args:
        model: a bundle.
        pixels: (n, H, W, 3) uint8 at the model's input size, of what is to be scored; some tens.
        threads: computing threads.
    """
    device: Literal["cpu", "cuda"] = "cuda" if torch.cuda.is_available() else "cpu"
    first = Arithmetic(batch_size=load_detector(model).batch_size, threads=threads, device=device)

    def measure(arithmetic: Arithmetic) -> Trial | None:
        try:
            return _try(Scorer(load_detector(model), arithmetic), pixels)
        except (MemoryError, torch.OutOfMemoryError):
            return None

    return search_levers(search_batch_size(first, measure), measure) if device == "cuda" else search_batch_size(first, measure)


def search_batch_size(first: Arithmetic, measure: Callable[[Arithmetic], Trial | None]) -> Arithmetic:
    """The smallest batch, doubled from the first one on, that no larger one beats by GAIN; `measure` gives None where memory is short."""
    best, trial = first, measure(first)
    if trial is None:
        return search_batch_size(_with(first, batch_size=first.batch_size // 2), measure) if first.batch_size > 1 else first
    seconds, batch_size = trial.seconds, first.batch_size
    while (batch_size := 2 * batch_size) <= _MOST_AT_ONCE[first.device]:
        trial = measure(_with(first, batch_size=batch_size))
        if trial is None or trial.seconds > GAIN * seconds:
            break
        if GAIN * trial.seconds < seconds:
            best, seconds = _with(first, batch_size=batch_size), trial.seconds
    return best


def search_levers(best: Arithmetic, measure: Callable[[Arithmetic], Trial | None]) -> Arithmetic:
    """Take one lever after the other that is faster by GAIN and whose image scores differ by at most TOLERANCE from float32's."""
    exact = fastest = measure(best)
    if exact is None or fastest is None:
        return best
    levers: list[dict[str, Any]] = [{"channels_last": True}, {"precision": "tf32"}, {"precision": "bfloat16"}, {"compiled": True}]
    for lever in levers:
        trial = measure(_with(best, **lever))
        if trial is not None and GAIN * trial.seconds < fastest.seconds and agree(trial.image, exact.image):
            best, fastest = _with(best, **lever), trial
    return best


def agree(changed: np.ndarray, exact: np.ndarray) -> bool:
    """Whether scores (n,) differ by at most TOLERANCE standard deviations of the exact ones; scores that are all alike never do."""
    spread = float(exact.std())
    return spread > 0 and bool(np.abs(changed - exact).max() <= TOLERANCE * spread)


def _with(arithmetic: Arithmetic, **changes: Any) -> Arithmetic:
    return arithmetic.model_copy(update=changes)


def _try(scorer: Scorer, pixels: np.ndarray) -> Trial:
    """Score the pictures once for their scores, then full batches of them for about a second."""
    size = scorer.arithmetic.batch_size
    padded = np.resize(pixels, (-(-len(pixels) // size) * size, *pixels.shape[1:]))  # begins again where it ends
    batches = [scorer.to_device(padded[start : start + size]) for start in range(0, len(padded), size)]
    image = np.concatenate([scorer.score(batch)[0] for batch in batches])[: len(pixels)]
    started, count = time.perf_counter(), 0
    while count < 3 or time.perf_counter() - started < _TRIAL_S:
        scorer.score(batches[count % len(batches)])
        count += 1
    return Trial((time.perf_counter() - started) / (count * size), image)
