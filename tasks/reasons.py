"""Why something was left out, in words that are the same for the same fault: counts of them say more than a list of paths."""

import re

from storage import filesystems

_PATH = re.compile(r"(?:\b[a-z][a-z0-9+.-]*://|(?<![\w./…])/)[^\s'\"():;,]+")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_MOST_LETTERS = 160


def generalise(reason: str, *uris: str | None) -> str:
    """The reason without paths and numbers.

    Args:
        reason: such as "unusable: /data/a.png: image file is truncated (12 bytes not processed)".
        uris: paths that may be in it; others are found by their look, up to the first blank.

    Returns:
        Such as "unusable: image file is truncated (… bytes not processed)".
    """
    if reason.startswith("duplicate of "):
        return "duplicate of another"
    for uri in uris:
        if uri:
            reason = without_path(reason, uri).replace(filesystems.name_of(uri), "…")
    reason = _NUMBER.sub("…", _PATH.sub("…", reason))
    reason = re.sub(r"(^|: )['\"]?…['\"]?: ", r"\1", reason)
    return reason if len(reason) <= _MOST_LETTERS else f"{reason[: _MOST_LETTERS - 1]}…"


def without_path(reason: str, uri: str) -> str:
    """The reason for a line that begins with the path: said again it is left out, or becomes the file's name within a sentence."""
    for said in (f"{uri}: ", f": '{uri}'", f": {uri}", f" '{uri}'"):
        reason = reason.replace(said, "")
    return reason.replace(uri, filesystems.name_of(uri))
