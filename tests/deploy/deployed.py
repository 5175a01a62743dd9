"""The files of deploy/, read strictly, for the tests about them."""

import json
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"


class _Strict(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML readers silently take the last."""


def _construct_mapping(loader: _Strict, node: yaml.MappingNode) -> dict[Hashable, Any]:
    own = [loader.construct_object(key) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]  # type: ignore[no-untyped-call]
    if twice := {key for key in own if own.count(key) > 1}:
        raise ValueError(f"given twice: {twice}{node.start_mark}")
    loader.flatten_mapping(node)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_Strict.add_constructor("tag:yaml.org,2002:map", _construct_mapping)


def read_yaml(path: Path) -> list[Any]:
    """The documents of a file."""
    return list(yaml.load_all(path.read_text(), _Strict))


def read_schema(name: str) -> Any:
    """One of the schemas beside this file."""
    return json.loads((Path(__file__).parent / "schemas" / name).read_text())


def read_lock(path: Path) -> dict[str, frozenset[str]]:
    """The hashes of a lock's files, by package as `name==version`."""
    joined = path.read_text().replace("\\\n", " ")
    pinned = [line for line in joined.splitlines() if line and not line.lstrip().startswith("#")]
    return {line.split()[0]: frozenset(re.findall(r"--hash=(\S+)", line)) for line in pinned}


def locked(package: str) -> str:
    """The version of a package in requirements.lock."""
    (version,) = re.findall(rf"^{re.escape(package)}==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    return str(version)


def read_dockerfile() -> list[tuple[str, str]]:
    """The instructions of deploy/Dockerfile with their arguments, continued lines joined."""
    lines = [line for line in (DEPLOY / "Dockerfile").read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines()
    return [(word.upper(), rest) for word, _, rest in (line.partition(" ") for line in joined)]


def compose() -> dict[str, Any]:
    """deploy/compose.yaml."""
    (document,) = read_yaml(DEPLOY / "compose.yaml")
    return dict(document)
