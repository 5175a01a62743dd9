"""What a run makes, told to Prefect as assets, each with what it was made of: manifest → model → scores → report, and what is in use.

`prefect.assets.materialize` wants the keys of assets where a task is defined, and ours are known when the step has written them. So the
step says it itself, by the events that the decorator would emit: `prefect.asset.referenced` of what it was made of, and
`prefect.asset.materialization.succeeded`. A step that is taken from the cache says nothing, as with Prefect.
"""

import hashlib
import re
from collections.abc import Iterable
from typing import Any

from prefect.assets import Asset, AssetProperties
from prefect.context import AssetContext, get_run_context
from prefect.exceptions import MissingContextError
from prefect.states import Completed

from storage import filesystems

_REFUSED = re.compile(r"""[\s\0#?&%"'<>\[\]{}|\\^`]""")
_LENGTH = 512


def tell_made(uri: str, /, *, name: str, of: Iterable[str], **metadata: Any) -> None:
    """Tell Prefect that the run around has made an asset; nothing happens outside a run.

    Args:
        uri: of what was made.
        name: for people.
        of: URIs of what it was made of.
        metadata: plain JSON about this making.
    """
    try:
        get_run_context()
    except MissingContextError:
        return
    made = Asset(key=asset_key(uri), properties=AssetProperties(name=name, url=filesystems.as_link(uri)))
    context = AssetContext(direct_asset_dependencies={Asset(key=asset_key(each)) for each in of}, downstream_assets={made})
    context.add_asset_metadata(made.key, metadata)
    context.emit_events(Completed())


def asset_key(uri: str) -> str:
    """What Prefect takes as an asset's key: a URI of at most 512 characters, those that it refuses as `_`, of a long one the digest."""
    path = filesystems.local_path(uri)
    key = _REFUSED.sub("_", uri if path is None else f"file://{path.absolute()}")
    return key if len(key) <= _LENGTH else f"{key[: _LENGTH - 17]}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
