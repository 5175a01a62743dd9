"""Imported by every Python process that has this folder on PYTHONPATH: the command and its workers write down what they do, and break.

NORMASCOPE_FAULTS names a JSON file. What was done goes to the folder `journal`. A sample takes `delay_s` longer to read, so that a small
archive has a middle. A picture whose path contains `poison` breaks who reads it, as `how` says: `segfault`, `hang` (the GIL is free) or
`hang_holding_gil`; `read_s` is then the time limit, in place of the ten minutes of a worker.
"""

import ctypes
import functools
import importlib.abc
import importlib.machinery
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

_FAULTS = json.loads(Path(os.environ["NORMASCOPE_FAULTS"]).read_text()) if "NORMASCOPE_FAULTS" in os.environ else None
_FOR_EVER_S = 100_000


def _note(event: str, what: object) -> None:
    """One line in this process's own file, on disk before the work goes on."""
    with (Path(_FAULTS["journal"]) / f"{os.getpid()}.txt").open("a") as file:
        file.write(f"{time.time():.3f} {event} {what}\n")


def _break(how: str) -> None:
    match how:
        case "segfault":
            ctypes.string_at(0)
        case "hang":
            ctypes.CDLL(None).sleep(_FOR_EVER_S)
        case "hang_holding_gil":
            ctypes.PyDLL(None).sleep(_FOR_EVER_S)


def _watch_reading(read_samples: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(read_samples)
    def read(rows: Any, *arguments: Any, **options: Any) -> Any:
        for row in rows:
            if _FAULTS.get("poison") and _FAULTS["poison"] in row["uri"]:
                _note("break", row["sample_id"])
                _break(_FAULTS["how"])
        time.sleep(_FAULTS["delay_s"] * len(rows))
        pixels = read_samples(rows, *arguments, **options)
        for row in rows:
            _note("read", row["sample_id"])
        return pixels

    return read


def _watch_writing(write_shard: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(write_shard)
    def write(store: Any, shard: int, **content: Any) -> Any:
        _note("write", shard)
        written = write_shard(store, shard, **content)
        _note("wrote", shard)
        return written

    return write


def _patch(module: Any) -> None:
    match module.__name__:
        case "tasks.samples":
            module.read_samples = _watch_reading(module.read_samples)
        case "storage.scores":
            module.ScoreStore.write_shard = _watch_writing(module.ScoreStore.write_shard)
        case "tasks.score_shard" if "read_s" in _FAULTS:
            module.Limits.model_fields["read_s"].default = _FAULTS["read_s"]
            module.Limits.model_rebuild(force=True)


class _Loader(importlib.abc.Loader):
    """The ordinary loader, with the module changed before whoever imports it takes names from it."""

    def __init__(self, ordinary: Any) -> None:
        self._ordinary = ordinary

    def create_module(self, spec: Any) -> Any:
        return self._ordinary.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._ordinary.exec_module(module)
        _patch(module)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name not in ("tasks.samples", "storage.scores", "tasks.score_shard"):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None:
            spec.loader = _Loader(spec.loader)
        return spec


if _FAULTS is not None:
    sys.meta_path.insert(0, _Finder())
