"""Digests of values and of code, of which cache keys and the names of files are made; knows no Prefect, because workers name files too."""

import hashlib
import json
import re
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel

_ROOT = Path(__file__).parents[1]
_ROOMS = ("flows", "tasks", "methods", "storage")
# by pattern and not by ast: compiling on several threads at once fails in CPython 3.11 ("recursion depth mismatch")
_FROM = re.compile(r"^\s*from\s+([\w.]+)\s+import\s+(\([^)]*\)|[^\n]*)", re.MULTILINE)
_IMPORT = re.compile(r"^\s*import\s+([\w.]+)", re.MULTILINE)
_NAME = re.compile(r"\w+")


def digest_of(*values: Any) -> str:
    """SHA-256 over the canonical JSON of values (pydantic models included): equal values, equal digest."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=_as_json).encode()).hexdigest()


@cache
def code_fingerprint(module: str) -> str:
    """SHA-256 over the source of a project module and of every project module that it imports, directly or not."""
    sources = {name: source for name in sorted(_imported_modules(module)) if (source := _source_of(name)) is not None}
    return digest_of({name: hashlib.sha256(source.encode()).hexdigest() for name, source in sources.items()})


def describe_code(module: str) -> dict[str, str]:
    """Version and fingerprint of the code of a task's module, for a card."""
    return {"normascope": version("normascope"), "fingerprint": code_fingerprint(module)}


def _imported_modules(module: str) -> set[str]:
    found, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        source = None if name in found else _source_of(name)
        if source is None:
            continue
        found.add(name)
        for module_name, names in _FROM.findall(source):
            waiting += [module_name, *(f"{module_name}.{imported}" for imported in _NAME.findall(names))]
        waiting += _IMPORT.findall(source)
    return found


@cache
def _source_of(module: str) -> str | None:
    """The text of a project module; None for anything else, and for names that are no module."""
    path = _ROOT.joinpath(*module.split("."))
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if module.split(".")[0] in _ROOMS and file.is_file():
            return file.read_text()
    return None


def _as_json(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__name__} is no part of a cache key; pass references and configuration, or name it in `ignore`")
