"""Which model of a store is in use: champion.json, with what was in use before it and why it was chosen.

Read by anyone; replaced only by who has read what it replaces, so that of two who promote at once one is told that it came too late.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from storage import conditional, filesystems
from storage.models import BundleError, read_bundle

_DOCUMENT = "champion.json"
_HISTORY = 20


class ChampionError(ValueError):
    """No champion, one that cannot be used, or none to go back to."""


class ChampionConflictError(RuntimeError):
    """Somebody else has changed the champion since it was read."""


class Champion(BaseModel):
    """A model that is or was in use.

    Attributes:
        uri, digest, kind: of its bundle.
        manifest: what it was trained on, as `tasks.references.ManifestReference`.
        since: when it came into use.
        by: what decided.
        evidence: why, in words (`reason`) and figures; of a rollback also the digest of the model that it replaced (`instead_of`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    uri: str
    digest: str
    kind: str
    manifest: dict[str, Any]
    since: datetime = Field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0))
    by: Literal["evidence", "person", "rollback"]
    evidence: dict[str, Any]


class Pointer(BaseModel):
    """What champion.json says: the model in use, the one before it, and the last ones, newest first."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    champion: Champion
    previous: Champion | None
    history: tuple[Champion, ...]


@dataclass(frozen=True)
class Found:
    """A pointer as it was read, and the version of its file that may be replaced."""

    pointer: Pointer
    version: str


def find_champion(store: str) -> Found | None:
    """What is in use in a store; None while nothing was promoted.

    Raises:
        ChampionError: champion.json is not one.
    """
    uri = filesystems.join(store, _DOCUMENT)
    try:
        content, version = conditional.read(uri)
    except FileNotFoundError:
        return None
    try:
        return Found(Pointer.model_validate_json(content), version)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise ChampionError(f"{uri} does not say which model is in use: {where}: {first['msg']}") from None


def read_champion(store: str) -> Pointer:
    """What is in use in a store.

    Raises:
        ChampionError: nothing is.
    """
    return _require(store).pointer


def promote(store: str, challenger: Champion, *, over: Found | None) -> Pointer:
    """Put a model into use.

    Args:
        store: folder or s3:// prefix.
        challenger: that model.
        over: the champion as it was when the challenger was compared with it; None where there was none.

    Raises:
        ChampionConflictError: it is another one by now; nothing is changed.
    """
    before = None if over is None else over.pointer
    return _write(store, challenger, previous=None if before is None else before.champion, over=over)


def roll_back(store: str) -> Pointer:
    """Put the model before the champion into use again; a second time undoes the first.

    Raises:
        ChampionError: there is no champion or none before it, or that one's bundle is gone or was changed.
        ChampionConflictError: somebody else was faster.
    """
    found = _require(store)
    champion, previous = found.pointer.champion, found.pointer.previous
    if previous is None:
        raise ChampionError(f"{store}: no model was in use before {_name(champion)}; there is nothing to go back to")
    check_bundle(previous)
    evidence = {**previous.evidence, "reason": f"rolled back from {_name(champion)}", "instead_of": champion.digest}
    again = Champion(
        uri=previous.uri, digest=previous.digest, kind=previous.kind, manifest=previous.manifest, by="rollback", evidence=evidence
    )
    return _write(store, again, previous=champion, over=found)


def was_rolled_back(pointer: Pointer, digest: str) -> bool:
    """Whether a model is not in use because somebody went back to the one before it."""
    ours = (each for each in pointer.history if digest in (each.digest, each.evidence.get("instead_of")))
    return next((each.digest != digest for each in ours), False)


def check_bundle(champion: Champion) -> None:
    """Read a model's bundle whole.

    Raises:
        ChampionError: it is gone or was changed.
    """
    try:
        read_bundle(champion.uri, digest=champion.digest)
    except (BundleError, FileNotFoundError) as error:
        raise ChampionError(
            f"the model {_name(champion)}, in use since {champion.since:%Y-%m-%d %H:%M} UTC, is gone or was changed: {error}. Put its "
            "bundle back from a copy, or go back to the model before it with `normascope rollback STORE`"
        ) from None


def describe(pointer: Pointer, *, history: bool = False) -> list[str]:
    """Lines for a person: what is in use, where it is, and why; what was before it, or all that is remembered."""
    champion, previous = pointer.champion, pointer.previous
    lines = [f"in use: {_say(champion)}", f"bundle: {filesystems.local_path(champion.uri) or champion.uri}"]
    if history:
        return lines + [f"before: {_say(each)}" for each in pointer.history[1:]]
    return [*lines, f"before: {_name(previous) if previous else 'none'}"]


def _write(store: str, champion: Champion, *, previous: Champion | None, over: Found | None) -> Pointer:
    history = (champion, *(over.pointer.history if over else ()))[:_HISTORY]
    pointer = Pointer(champion=champion, previous=previous, history=history)
    uri, content = filesystems.join(store, _DOCUMENT), pointer.model_dump_json(indent=2).encode() + b"\n"
    try:
        conditional.create(uri, content) if over is None else conditional.replace(uri, content, over.version)
    except (conditional.ConflictError, FileExistsError):
        now = find_champion(store)
        raise ChampionConflictError(
            f"{uri} was replaced by somebody else meanwhile: in use is {_say(now.pointer.champion) if now else 'nothing'}. "
            f"{_name(champion)} was not put into use; run the same again to compare with what is there"
        ) from None
    return pointer


def _require(store: str) -> Found:
    found = find_champion(store)
    if found is None:
        raise ChampionError(f"no model is in use in {store}: `normascope retrain` promotes the first one")
    return found


def _name(champion: Champion) -> str:
    return f"{champion.kind} {champion.digest[:12]}"


def _say(champion: Champion) -> str:
    reason = champion.evidence.get("reason", "no reason given")
    return f"{_name(champion)} since {champion.since:%Y-%m-%d %H:%M} UTC, by {champion.by}: {reason}"
