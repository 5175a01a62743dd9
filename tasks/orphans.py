"""What a store of runs still holds of models that are gone: evaluations, score stores, reports."""

import re
from collections.abc import Iterable, Iterator, Sequence

from storage import filesystems
from storage.housekeeping import StoredFile
from storage.models import bundle_digest

_MODEL = re.compile(r"model ([0-9a-f]{64})\.")  # as a report's numbers name it: see tasks.report


def find_orphans(uri: str, files: Sequence[StoredFile]) -> dict[str, tuple[int, str]]:
    """What of a store belongs to no model that is there.

    Args:
        uri: of the store.
        files: all that lies below it.

    Returns:
        By the URI of a file or folder: its bytes, and `evaluation`, `score store` or `report`.
    """
    sizes = {file.path: file.size_bytes for file in files}
    found = [("evaluation", path) for path in _lost_evaluations(uri, sizes)]
    found += [("score store", path) for path in _lost_stores(uri, sizes)]
    found += [("report", path) for path in _lost_reports(uri, sizes)]
    return {filesystems.join(uri, path): (_size(path, sizes), what) for what, path in found}


def _lost_evaluations(uri: str, paths: Iterable[str]) -> Iterator[str]:
    """Whose training no card below the store tells of; with their resamples."""
    cards = [filesystems.read_json(filesystems.join(uri, path)) for path in _named(paths, r"models/[^/]+/card\.json")]
    trainings = [(card.get("training"), card.get("trained_on")) for card in cards]
    for path in _named(paths, r"evaluations/[^/]+\.json"):
        found = filesystems.read_json(filesystems.join(uri, path))
        if "training" in found and (found["training"], found.get("trained_on")) not in trainings:
            yield path
            yield from _named(paths, re.escape(path.removesuffix(".json")) + r"\.npz")


def _lost_stores(uri: str, paths: Iterable[str]) -> Iterator[str]:
    """Whose model is not where it was."""
    for path in _named(paths, r"scores/[^/]+/zarr\.json"):
        attributes = filesystems.read_json(filesystems.join(uri, path)).get("attributes", {})
        if "model_uri" in attributes and not filesystems.exists(filesystems.join(attributes["model_uri"], "checksums.json")):
            yield path.removesuffix("/zarr.json")


def _lost_reports(uri: str, paths: Iterable[str]) -> Iterator[str]:
    """Of whose models none is there; one that shows a model that is there stays."""
    places = [path.removesuffix("/checksums.json") for path in _named(paths, r"models/[^/]+/checksums\.json")]
    there = {bundle_digest(filesystems.join(uri, place)) for place in places}
    for path in _named(paths, r"reports/[^/]+/metrics\.json"):
        run = filesystems.read_json(filesystems.join(uri, path)).get("run", {})
        shown = {match[1] for text in run.values() if (match := _MODEL.match(text))}
        if shown and not shown & there:
            yield path.removesuffix("/metrics.json")


def _named(paths: Iterable[str], pattern: str) -> list[str]:
    return sorted(path for path in paths if re.fullmatch(pattern, path))


def _size(path: str, sizes: dict[str, int]) -> int:
    return sum(size for name, size in sizes.items() if name == path or name.startswith(f"{path}/"))
