"""The space of a search: hyperparameters of one detector by dotted name, the values they may take, and the configurations they make."""

import difflib
import itertools
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from methods.detectors.interface import DetectorError
from methods.detectors.networks.backbones import check_backbones
from methods.detectors.registry import DetectorConfig

_CONFIG: TypeAdapter[DetectorConfig] = TypeAdapter(DetectorConfig)
_PREFIX = "detector."  # may be left out: `detector.learning_rate` is `learning_rate`


class SpaceError(ValueError):
    """A space that cannot be searched, or values that the detector refuses; the message names the key."""


class Range(BaseModel):
    """All numbers from low to high, both included; whole ones where both ends and the step are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: int | float
    high: int | float
    log: bool = Field(default=False, description="as likely between 1 and 10 as between 10 and 100")
    step: int | float | None = Field(default=None, gt=0, description="between neighbouring values; not with log")

    @model_validator(mode="after")
    def _hold_together(self) -> "Range":
        if not self.low < self.high:
            raise ValueError(f"expected low < high, got {self.low} and {self.high}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("a logarithmic range begins above 0 and has no step")
        return self

    @property
    def is_whole(self) -> bool:
        """Whether it holds integers alone."""
        return all(isinstance(number, int) for number in (self.low, self.high, *(() if self.step is None else (self.step,))))


Space = Mapping[str, Range | tuple[Any, ...]]  # dotted name -> a range, or the choices
Values = Mapping[str, Any]  # of one trial


def check_space(base: Any, space: Space) -> None:
    """Refuse what is no space of this detector; values are looked at where trials are made of them.

    Args:
        base: a `DetectorConfig`, of which the space changes parts.
        space: by dotted name within the configuration (`learning_rate`, `unet.widths`), with or without `detector.` before it.

    Raises:
        SpaceError: an empty space, a name that is unknown or given twice, no choice, the same choice twice.
    """
    if not space:
        raise SpaceError("space: it is empty; name at least one of the detector's hyperparameters and its values")
    names = [_strip(name) for name in space]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise SpaceError(f"space.{twice[0]}: given twice, with and without {_PREFIX!r}")
    for name, values in space.items():
        _part_of(base.model_dump(), name, base.kind)
        if isinstance(values, tuple) and not values:
            raise SpaceError(f"space.{name}: no value to choose from")
        if isinstance(values, tuple) and any(value in values[:place] for place, value in enumerate(values)):
            raise SpaceError(f"space.{name}: the same value is given twice")


def configure(base: Any, values: Values) -> Any:
    """The detector's configuration with these values, by dotted name.

    Raises:
        SpaceError: a name that it does not have, with the nearest that it has; values that it refuses; layers that its backbone does not
            have, with those that it has.
    """
    config = _validate(base, values)
    try:
        check_backbones(config)
    except DetectorError as error:
        raise _refused(base, values, str(error)) from None
    return config


def _validate(base: Any, values: Values) -> Any:
    config = base.model_dump()
    for name, value in values.items():
        _part_of(config, name, base.kind)[name.split(".")[-1]] = value
    try:
        return _CONFIG.validate_python(config)
    except ValidationError as error:
        found = error.errors()[0]
        where = ".".join(str(part) for part in found["loc"][1:])  # the first part is the kind
        reason = str(found.get("ctx", {}).get("error", found["msg"]))  # a validator's own words, or pydantic's
        raise _refused(base, values, f"{where}{': ' if where else ''}{reason}") from None


def _refused(base: Any, values: Values, reason: str) -> SpaceError:
    given = ", ".join(f"{name} = {value!r}" for name, value in values.items())
    return SpaceError(f"space: {base.kind} refuses {given}: {reason}")


def check_alone(base: Any, space: Space) -> None:
    """Refuse choices and ends of ranges that the detector does not take beside the base's other values.

    Layers of a backbone of which something else varies too are looked at when a trial is made of both.

    Raises:
        SpaceError: names the key and the value.
    """
    parts = [_strip(name).rpartition(".")[0] for name in space]
    for (name, values), part in zip(space.items(), parts, strict=True):
        make = _validate if part and parts.count(part) > 1 else configure
        for value in values if isinstance(values, tuple) else (values.low, values.high):
            make(base, {name: value})


def expand_grid(base: Any, space: Space) -> list[dict[str, Any]]:
    """Every combination, the last name varying fastest; all are configurations that the detector takes.

    Raises:
        SpaceError: a range, of which a grid has no points; values that are refused together.
    """
    for name, values in space.items():
        if isinstance(values, Range):
            raise SpaceError(f"space.{name}: a grid needs a list of values, not a range; or set `method: tpe` or `method: random`")
    trials = [dict(zip(space, point, strict=True)) for point in itertools.product(*(tuple(values) for values in space.values()))]
    for trial in trials:
        configure(base, trial)
    return trials


def _strip(name: str) -> str:
    return name.removeprefix(_PREFIX)


def _part_of(config: dict[str, Any], name: str, kind: str) -> dict[str, Any]:
    """The part of a configuration that a dotted name's last word is a key of."""
    *path, last = _strip(name).split(".")
    part = config
    for step in path:
        _check_known(part, step, name, kind)
        if not isinstance(part[step], dict):
            raise SpaceError(f"space.{name}: {step} of {kind} is a value and has no parts")
        part = part[step]
    if last == "kind":
        raise SpaceError(f"space.{name}: a search varies one detector; write a search for each")
    _check_known(part, last, name, kind)
    return part


def _check_known(part: dict[str, Any], step: str, name: str, kind: str) -> None:
    if step not in part:
        near = difflib.get_close_matches(step, part, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(part)}"
        raise SpaceError(f"space.{name}: unknown key {step!r} of {kind}; {hint}")
