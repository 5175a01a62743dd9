"""A YAML file of keys and values as a model, with errors that name the key."""

import difflib
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

Model = TypeVar("Model", bound=BaseModel)


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the key."""


def read_yaml(path: Path, model: type[Model], *, prepare: Callable[[dict[str, Any]], dict[str, Any]] = lambda values: values) -> Model:
    """Read a YAML file of keys and values as a model.

    Args:
        path: of the file.
        model: what it is read as.
        prepare: changes the values before they are validated.

    Raises:
        ConfigError: no file, no YAML, an unknown key (with the nearest known one), a wrong value.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected keys and values, such as `name: my-run`, got {type(values).__name__}")
    try:
        return model.model_validate(prepare(values))
    except ValidationError as error:
        raise ConfigError(f"{path}:\n" + "\n".join(f"  {_explain(found, model)}" for found in error.errors())) from None


def _explain(found: Any, model: type[BaseModel]) -> str:
    """One line for one of pydantic's findings."""
    location = [str(part) for part in found["loc"]]
    if found["type"] == "extra_forbidden":
        near = difflib.get_close_matches(location[-1], _known_keys(model), n=1)
        return f"{'.'.join(location)}: unknown key" + (f"; did you mean {near[0]}?" if near else "")
    return f"{'.'.join(location) or '(file)'}: {found['msg']}" + (f" (got {found['input']!r})" if found["type"] != "missing" else "")


def _known_keys(model: type[BaseModel]) -> list[str]:
    """The keys of every model that a configuration is made of, found through the annotations."""
    waiting: list[Any] = [model]
    seen: set[Any] = set()
    names: set[str] = set()
    while waiting:
        part = waiting.pop()
        if part in seen or not isinstance(part, Hashable):
            continue
        seen.add(part)
        if isinstance(part, type) and issubclass(part, BaseModel):
            names |= set(part.model_fields)
            waiting += [field.annotation for field in part.model_fields.values()]
        waiting += get_args(part)
    return sorted(names)
