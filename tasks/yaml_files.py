"""A YAML file of keys and values as a model, with errors that name the key."""

import difflib
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

Model = TypeVar("Model", bound=BaseModel)
_SHOWN = 60  # characters of what came


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
        raise ConfigError(f"{path}:\n" + "\n".join(f"  {line}" for line in _explain_all(error, model))) from None


def without_defaults(config: BaseModel) -> dict[str, Any]:
    """The keys of which a configuration differs from its defaults, as plain values, and every `kind`; all keys where those would not do.

    What comes back, read as the same model, is the same configuration.
    """
    whole = config.model_dump(mode="json")
    values: dict[str, Any] = _thin(config, whole)
    try:
        return values if type(config).model_validate(values) == config else whole
    except ValidationError:
        return whole


def _thin(value: Any, plain: Any) -> Any:
    """A value's plain form without what is a default of the models in it."""
    if isinstance(value, BaseModel):
        fields = type(value).model_fields.items()
        kept = [name for name, field in fields if name == "kind" or getattr(value, name) != field.get_default(call_default_factory=True)]
        return {name: _thin(getattr(value, name), plain[name]) for name in kept}
    if isinstance(value, Mapping):
        return {key: _thin(one, of) for one, (key, of) in zip(value.values(), plain.items(), strict=True)}  # as text, keys too
    if isinstance(value, list | tuple):
        return [_thin(one, of) for one, of in zip(value, plain, strict=True)]
    return plain


def _explain_all(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """One line for each of pydantic's findings; not for a list that it takes to be too short because it has refused what is in it."""
    findings: list[Any] = error.errors()
    holders = {found["loc"][:end] for found in findings for end in range(len(found["loc"]))}
    return [_explain(found, model) for found in findings if found["type"] != "too_short" or found["loc"] not in holders]


def _explain(found: Any, model: type[BaseModel]) -> str:
    location = [str(part) for part in found["loc"]]
    if found["type"] == "extra_forbidden":
        near = difflib.get_close_matches(location[-1], _known_keys(model), n=1)
        return f"{'.'.join(location)}: unknown key" + (f"; did you mean {near[0]}?" if near else "")
    return f"{'.'.join(location) or '(file)'}: {_say(found)}"


def _say(found: Any) -> str:
    """What is wrong, and what came where that is short and not already said."""
    given, context = found["input"], found.get("ctx", {})
    if found["type"] == "union_tag_invalid":
        near = difflib.get_close_matches(context["tag"], expected := context["expected_tags"].replace("'", "").split(", "), n=1)
        return f"there is no kind {context['tag']!r}; " + (f"did you mean {near[0]}?" if near else f"there are {', '.join(expected)}")
    if found["type"] == "union_tag_not_found":
        return "expected keys and values, `kind` among them"
    if found["type"] == "string_type" and isinstance(given, int | float):
        return f'expected text, got {given!r}; in quotes it is text: "{given}"'
    if "error" in context:
        return str(context["error"])  # a validator's own words, which name what came
    shown = repr(given) if len(repr(given)) <= _SHOWN else f"{repr(given)[:_SHOWN]} …"
    if found["type"] in ("model_type", "model_attributes_type", "dict_type"):
        return f"expected keys and values, got {shown}"
    return found["msg"] + ("" if found["type"] == "missing" else f" (got {shown})")


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
