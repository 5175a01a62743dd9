"""Housekeeping: what nothing refers to any more, why it may go, and taking it away.

What is there is gathered into plain facts, the plan is made from facts alone, and only `remove_items` takes anything away.
"""

import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from storage import conditional, filesystems, heatmaps, leases
from storage.archives import Archive, open_archive
from storage.housekeeping import StoredFile, list_everything, remove
from storage.scores import open_store
from tasks import server
from tasks.orphans import find_orphans

DAY_S = 86400.0
CHECKPOINT_DAYS = 30.0
KEPT_VERSIONS = 2  # the newest and the one to go back to
_STRAY_S = 3600.0  # files are written in seconds, and a training's progress is touched in each of them
_KEY = re.compile(r"(.+-[0-9a-f]{40})(?:-(\d+))?")  # of a cached result: see tasks.caching
_VERSION = re.compile(r"v([1-9]\d*)")
_PARTIAL = re.compile(r"\.(\d+|[0-9a-f]{32})\.partial$")  # by process (storage.filesystems), by number (Zarr)
_MINIATURE = re.compile(r"(^|/)\.[^/]+\.(old|new)(/|$)")  # see storage.datasets.miniatures
_FOLDERS = (
    "batches",
    "benchmarks",
    "duplicates",
    "evaluations",
    "manifests",
    "models",
    "reports",
    "reproductions",
    "scores",
    "search",
    "tables",
)


@dataclass(frozen=True)
class Item:
    """Something that may go, or (`goes` False) that a person should know of; `uri` is a file or a folder."""

    uri: str
    size_bytes: int
    why: str
    goes: bool = True


@dataclass(frozen=True)
class Result:
    """A cached result: its file, and how many of the outputs that it names below the place are lost."""

    name: str
    size_bytes: int
    modified: float
    lost: tuple[str, ...]


@dataclass(frozen=True)
class Version:
    """A version of an archive's slot: its folders, whether every row of it is done, and the model that filled it.

    `readable` is False for a store of another schema, which is not ours to judge.
    """

    slot: str
    number: int
    uris: tuple[str, ...]
    size_bytes: int
    complete: bool
    model_digest: str
    model_uri: str = ""
    readable: bool = True


@dataclass(frozen=True)
class Rules:
    """What counts as old.

    Attributes:
        older_than_days: cached results of any age above go; checkpoints from `CHECKPOINT_DAYS` where it is None.
        keep: finished versions of each slot that stay, the newest ones.
        orphans: evaluations, score stores and reports of models that are gone go too, and are not only listed.
        champions: digests and places of models in use, and of those before them; versions of scores that they made stay.
    """

    older_than_days: float | None = None
    keep: int = KEPT_VERSIONS
    orphans: bool = False
    champions: frozenset[str] = frozenset()


def plan_results(folder: str, results: Iterable[Result], rules: Rules, *, now: float) -> list[Item]:
    """Cached results that can never be taken again, or are old. All generations of a key go or none: the newest one answers for them."""
    keys: dict[str, list[tuple[int, Result]]] = {}
    for result in results:
        if match := _KEY.fullmatch(result.name):
            keys.setdefault(match[1], []).append((int(match[2] or 0), result))
    items = []
    for generations in keys.values():
        newest = max(generations, key=lambda pair: pair[0])[1]
        if newest.lost:
            why = f"cached result, whose output is gone: {newest.lost[0]}"
        elif rules.older_than_days is not None and now - newest.modified > rules.older_than_days * DAY_S:
            why = f"cached result of {_days(now - newest.modified)} days ago; its step is done again when it is asked for"
        else:
            continue
        items += [Item(filesystems.join(folder, result.name), result.size_bytes, why) for _, result in generations]
    return items


def plan_checkpoints(folder: str, files: Iterable[StoredFile], rules: Rules, *, now: float) -> list[Item]:
    """Folders of trainings that were killed long ago and never gone on with; a finished training removes its own."""
    trainings: dict[str, list[StoredFile]] = {}
    for file in files:
        trainings.setdefault(file.path.partition("/")[0], []).append(file)
    most_s = (CHECKPOINT_DAYS if rules.older_than_days is None else max(rules.older_than_days, _STRAY_S / DAY_S)) * DAY_S
    items = []
    for name, held in sorted(trainings.items()):
        age_s = now - max(file.modified for file in held)
        if age_s > most_s:
            size = sum(file.size_bytes for file in held)
            items.append(Item(filesystems.join(folder, name), size, f"checkpoints of a training that stopped {_days(age_s)} days ago"))
    return items


def plan_strays(uri: str, files: Iterable[StoredFile], *, now: float, folders: bool = False) -> list[Item]:
    """Temporary files of writes that were killed, when nobody has written to them for an hour; `folders`: those beside miniatures too."""
    strays: dict[str, list[StoredFile]] = {}
    for file in files:
        if folders and (found := _MINIATURE.search(file.path)):
            strays.setdefault(file.path[: found.end()].rstrip("/"), []).append(file)
        elif _PARTIAL.search(file.path):
            strays.setdefault(file.path, []).append(file)
    return [
        Item(filesystems.join(uri, path), sum(file.size_bytes for file in held), "left by a write that was killed")
        for path, held in sorted(strays.items())
        if now - max(file.modified for file in held) > _STRAY_S
    ]


def plan_versions(versions: Sequence[Version], rules: Rules) -> list[Item]:
    """Versions of slots that were replaced: older than the newest `keep` finished ones, and not a champion's.

    What is newer than the newest finished version is being filled and stays; where none is finished all stay. Since the newest one
    always stays, no number is given twice.

    Raises:
        ValueError: `keep` below 1.
    """
    if rules.keep < 1:
        raise ValueError(f"expected to keep at least 1 finished version of each slot, got {rules.keep}")
    items = []
    for slot in sorted({version.slot for version in versions}):
        of_slot = sorted((version for version in versions if version.slot == slot), key=lambda version: -version.number)
        finished = [version.number for version in of_slot if version.complete]
        if not finished:
            continue
        kept = set(finished[: rules.keep])
        for version in of_slot:
            if version.number > finished[0] or version.number in kept or _is_named(version, rules.champions):
                continue
            which = f"{slot} v{version.number}"
            if not version.readable:
                items.append(Item(version.uris[0], version.size_bytes, f"{which} is of another schema: look yourself", goes=False))
                continue
            why = f"{which} is older than v{min(kept)}" if version.complete else f"{which} was never finished, and v{finished[0]} was"
            items += [Item(uri, version.size_bytes if place == 0 else 0, why) for place, uri in enumerate(version.uris)]
    return items


def plan_parts(uri: str, files: Iterable[StoredFile], named: Iterable[str], *, now: float) -> list[Item]:
    """Files of rows that archive.json does not name: an append was killed before it could say so."""
    known = set(named)
    return [
        Item(filesystems.join(uri, file.path), file.size_bytes, "rows of an append that was killed")
        for file in files
        if file.path.startswith("rows/part-")
        and file.path.endswith(".parquet")
        and file.path not in known
        and now - file.modified > _STRAY_S
    ]


def plan_orphans(orphans: Mapping[str, tuple[int, str]], rules: Rules) -> list[Item]:
    """Evaluations, score stores and reports, by URI their bytes and what they are, of models that are gone."""
    return [Item(uri, size, f"{what} of a model that is gone", goes=rules.orphans) for uri, (size, what) in sorted(orphans.items())]


def plan_cleaning(uri: str, rules: Rules, *, champion: str | None = None, now: float | None = None) -> list[Item]:
    """What may go from a store or an archive, and from normascope's home of what belongs to it. Only reads.

    Args:
        uri: of a store of runs or of an archive; it may be gone, then the results that refer to it are left over.
        rules: what counts as old.
        champion: a champion file whose model's versions stay, beside those of the stores that an archive's models lie in.
        now: seconds since 1970, for tests.

    Raises:
        ValueError: something else is there.
    """
    now = time.time() if now is None else now
    files, home = list_everything(uri), server.home()
    if files and not any(file.path == "archive.json" or file.path.partition("/")[0] in _FOLDERS for file in files):
        raise ValueError(
            f"{uri} is neither an archive (it lacks archive.json) nor a store of runs (it lacks manifests/): nothing is cleaned there"
        )
    results = home / "prefect" / "storage"
    items = [
        *plan_results(str(results), _read_results(results, uri, files), rules, now=now),
        *plan_checkpoints(str(home / "training"), list_everything(str(home / "training")), rules, now=now),
        *plan_strays(str(home / "miniatures"), list_everything(str(home / "miniatures")), now=now, folders=True),
        *plan_strays(uri, files, now=now),
    ]
    if any(file.path == "archive.json" for file in files):
        archive = open_archive(uri)
        versions = list(_read_versions(archive, files))
        places = {*_find_champions(versions), *([champion] if champion else [])}
        named = frozenset(text for place in places for text in _read_champions(place))
        replaced = plan_versions(versions, replace(rules, champions=rules.champions | named))
        parts = [archive.part_uri(part)[len(uri) + 1 :] for part in range(len(archive.parts))]
        items += [*replaced, *plan_parts(uri, files, parts, now=now), *_find_cut_heatmaps(uri, files, now=now), *_find_lease(uri, files)]
    else:
        items += plan_orphans(find_orphans(uri, files), rules)
    return _without_nested(items)


def remove_items(uri: str, rules: Rules, *, champion: str | None = None) -> list[Item]:
    """Take away what `plan_cleaning` says now; returns what went. An archive's lease is held meanwhile: no run can begin.

    Raises:
        storage.leases.LeaseHeldError: a run works on the archive.
    """
    is_archive = filesystems.exists(filesystems.join(uri, "archive.json"))
    held = leases.hold_lease(filesystems.join(uri, "lease.json"), {"run": "normascope clean"}) if is_archive else nullcontext()
    with held as lease:
        items = [item for item in plan_cleaning(uri, rules, champion=champion) if item.goes]
        for item in items:
            if lease is not None:
                lease.check()
            remove(item.uri)
    return items


def describe_items(items: Sequence[Item], *, removed: bool) -> Iterator[str]:
    """Lines for the terminal: each item, then the sum."""
    for item in items:
        yield f"{_size(item.size_bytes):>10}  {item.uri}  ({item.why}{'' if item.goes else '; stays'})"
    going = [item for item in items if item.goes]
    total = f"{len(going)} things, {_size(sum(item.size_bytes for item in going))}"
    if not going:
        yield "nothing to clean"
    else:
        yield f"removed: {total}" if removed else f"would go: {total}; `--yes` removes them"


def _read_results(folder: Path, uri: str, files: Sequence[StoredFile]) -> Iterator[Result]:
    """The cached results under home, each with the outputs below `uri` that it names and that are not there."""
    there = {file.path for file in files} | {parent for file in files for parent in _parents(file.path)}
    for file in list_everything(str(folder)):
        if "/" in file.path or not _KEY.fullmatch(file.path):
            continue
        try:
            content = json.loads(json.loads((folder / file.path).read_bytes())["result"])
        except (OSError, ValueError, KeyError, TypeError):  # another serializer's: not ours
            continue
        outputs = [output for output in _outputs(content) if output.startswith(f"{uri}/")]
        yield Result(file.path, file.size_bytes, file.modified, tuple(output for output in outputs if output[len(uri) + 1 :] not in there))


def _outputs(value: Any) -> Iterator[str]:
    """Every `uri` and `…_uri` of a result."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if isinstance(inner, str) and (name == "uri" or name.endswith("_uri")):
                yield inner.rstrip("/")
            else:
                yield from _outputs(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _outputs(inner)


def _read_versions(archive: Archive, files: Sequence[StoredFile]) -> Iterator[Version]:
    sizes: dict[tuple[str, int], dict[str, int]] = {}
    for file in files:
        kind, slot, version, *rest = [*file.path.split("/"), "", ""]
        if kind in ("scores", "slides") and rest and (match := _VERSION.fullmatch(version)):
            folders = sizes.setdefault((slot, int(match[1])), {})
            folders[kind] = folders.get(kind, 0) + file.size_bytes
    readable = archive.slots()
    paths = {file.path for file in files}
    for (slot, number), folders in sizes.items():
        places = {"scores": archive.scores_uri(slot, number), "slides": archive.slides_uri(slot, number)}
        uris = tuple(places[kind] for kind in ("scores", "slides") if kind in folders)
        is_ours = number in readable.get(slot, [])
        store = open_store(places["scores"]) if is_ours else None
        yield Version(
            slot,
            number,
            uris,
            sum(folders.values()),
            complete=store is not None and not store.pending_shards(),
            model_digest="" if store is None else str(store.attributes["model_digest"]),
            model_uri="" if store is None else str(store.attributes.get("model_uri", "")),
            readable=is_ours or f"scores/{slot}/v{number}/zarr.json" not in paths,
        )


def _find_cut_heatmaps(uri: str, files: Sequence[StoredFile], *, now: float) -> Iterator[Item]:
    """Slide maps that were not finished; the next run draws them anew."""
    maps: dict[str, list[StoredFile]] = {}
    for file in files:
        folder, mark, _ = file.path.partition(".ome.zarr/")
        if mark and folder.startswith("slides/"):
            maps.setdefault(f"{folder}.ome.zarr", []).append(file)
    for path, held in sorted(maps.items()):
        place = filesystems.join(uri, path)
        if now - max(file.modified for file in held) > _STRAY_S and heatmaps.read_attributes(place) is None:
            yield Item(place, sum(file.size_bytes for file in held), "a slide's map that was not finished; the next run draws it")


def _find_lease(uri: str, files: Sequence[StoredFile]) -> Iterator[Item]:
    """The archive's lease is told and stays: it is taken over by itself, and a bucket cannot remove it only if nobody has just done so."""
    size = next((file.size_bytes for file in files if file.path == "lease.json"), None)
    if size is not None:
        place = filesystems.join(uri, "lease.json")
        held = json.loads(conditional.read(place)[0])["expires_at"] > time.time()
        yield Item(place, size, "lease, held by a run" if held else "lease that has expired, which the next run takes over", goes=False)


def _without_nested(items: Sequence[Item]) -> list[Item]:
    """What lies in a folder that goes is not told again."""
    going = {item.uri for item in items if item.goes}
    return [item for item in items if not any(parent in going for parent in _parents(item.uri))]


def _is_named(version: Version, champions: frozenset[str]) -> bool:
    return (bool(version.model_digest) and version.model_digest in champions) or any(uri in champions for uri in version.uris)


def _find_champions(versions: Iterable[Version]) -> Iterator[str]:
    """The champion files of the stores in which the models lie: STORE/models/NAME."""
    stores = {version.model_uri.rpartition("/models/")[0] for version in versions}
    return (place for store in stores if store and filesystems.exists(place := filesystems.join(store, "champion.json")))


def _read_champions(uri: str) -> Iterator[str]:
    """What a champion file says of the model in use and of the one to go back to, but not of its history."""
    document = filesystems.read_json(uri)
    yield from _texts({name: value for name, value in document.items() if name != "history"})


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


def _parents(path: str) -> Iterator[str]:
    parts = path.split("/")
    for count in range(1, len(parts)):
        yield "/".join(parts[:count])


def _days(seconds: float) -> str:
    return f"{seconds / DAY_S:.0f}"


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
