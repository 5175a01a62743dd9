"""Which trials a search makes: all of a grid, or those that Optuna suggests, learning from what it is told."""

from collections.abc import Sequence
from typing import Any, Literal, Protocol

from methods.training.space import Range, Space, check_alone, check_space, expand_grid

Method = Literal["grid", "tpe", "random"]


class Suggestions(Protocol):
    """Trials in batches: what the next ones are may depend on what was told of those before, never on which ended first."""

    def ask(self) -> list[dict[str, Any]]:
        """The values of the next trials; none when the search is over."""
        ...

    def tell(self, qualities: Sequence[float | None]) -> None:
        """What the trials of the last batch came to, in its order, higher is better; None for one that failed."""
        ...


def suggest(base: Any, space: Space, *, method: Method, trials: int, batch: int, seed: int) -> Suggestions:
    """The trials of a space.

    Args:
        base: the detector's configuration.
        space: by dotted name.
        method: "grid", "tpe" (Bergstra et al. 2011) or "random".
        trials: how many; a grid makes all of its points.
        batch: how many are asked for before any of them is told of; with the seed it decides which trials there are.
        seed: of what is drawn.

    Raises:
        SpaceError: no space of this detector, a grid with a range, values that the detector refuses.
    """
    check_space(base, space)
    if method == "grid":
        return _Grid(expand_grid(base, space))
    check_alone(base, space)
    return _Optuna(space, method=method, trials=trials, batch=batch, seed=seed)


class _Grid:
    def __init__(self, trials: list[dict[str, Any]]) -> None:
        self._left = trials

    def ask(self) -> list[dict[str, Any]]:
        asked, self._left = self._left, []
        return asked

    def tell(self, qualities: Sequence[float | None]) -> None:
        """A grid learns nothing."""


class _Optuna:
    def __init__(self, space: Space, *, method: Method, trials: int, batch: int, seed: int) -> None:
        import optuna  # here, because only its searches need it

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = (
            optuna.samplers.RandomSampler(seed=seed)
            if method == "random"
            else optuna.samplers.TPESampler(seed=seed, n_startup_trials=min(10, -(-trials // 3)), multivariate=False)
        )
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._space, self._left, self._batch = space, trials, batch
        self._asked: list[optuna.trial.Trial] = []

    def ask(self) -> list[dict[str, Any]]:
        count = min(self._batch, self._left)
        self._left -= count
        self._asked = [self._study.ask() for _ in range(count)]
        return [{name: self._draw(trial, name, values) for name, values in self._space.items()} for trial in self._asked]

    def tell(self, qualities: Sequence[float | None]) -> None:
        import optuna

        for trial, quality in zip(self._asked, qualities, strict=True):
            if quality is None:
                self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
            else:
                self._study.tell(trial, quality)

    @staticmethod
    def _draw(trial: Any, name: str, values: Range | tuple[Any, ...]) -> Any:
        if isinstance(values, tuple):  # by position, because Optuna's choices are numbers and text alone
            return values[trial.suggest_categorical(name, tuple(range(len(values))))]
        if values.is_whole:
            return trial.suggest_int(name, int(values.low), int(values.high), step=int(values.step or 1), log=values.log)
        return trial.suggest_float(name, values.low, values.high, step=values.step, log=values.log)
