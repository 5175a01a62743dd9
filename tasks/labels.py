"""What the detectors of a run are called: by their kind and, where a kind comes several times, by what sets them apart."""

from collections.abc import Mapping, Sequence
from typing import Any

from methods.detectors.registry import NAMES
from storage.models import read_bundle
from storage.scores import open_store
from tasks.references import StoreReference

_LONGEST = 40  # characters of what sets a detector apart; numbers are shorter
_UNITS = {"px": "px", "um": "µm"}


def label_detectors(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """One name a detector, all different: "VAE (score iwae)", "Deep perceptual autoencoder (growing)".

    Where a kind comes several times, the values of the keys in which its configurations differ stand behind its name; a key that is off
    (null or false) is not named. Where that is too long, or leaves two with one name, they are numbered.

    Args:
        configs: as `model_dump` gives them, with `kind`.
    """
    labels = [NAMES[config["kind"]] for config in configs]
    for kind in {config["kind"] for config in configs}:
        places = [place for place, config in enumerate(configs) if config["kind"] == kind]
        if len(places) > 1:
            for place, apart in zip(places, _set_apart([configs[place] for place in places]), strict=True):
                labels[place] += apart
    return labels


def label_stores(stores: Sequence[StoreReference]) -> list[str]:
    """As `label_detectors`; bundles are read only of kinds that come several times.

    Raises:
        BundleError: such a bundle is gone or was changed.
    """
    kinds = [store["kind"] for store in stores]
    return label_detectors([_read_config(store) if kinds.count(store["kind"]) > 1 else {"kind": store["kind"]} for store in stores])


def _read_config(store: StoreReference) -> dict[str, Any]:
    return read_bundle(open_store(store["uri"]).attributes["model_uri"], digest=store["model_digest"]).config


def _set_apart(configs: list[Mapping[str, Any]]) -> list[str]:
    """What stands behind the name of each of several detectors of one kind; at most one gets nothing."""
    told = [", ".join(words) for words in _describe_differences(configs)]
    if len(set(told)) < len(told) or max(map(len, told)) > _LONGEST:
        return [f" {number}" for number in range(1, len(configs) + 1)]
    return [f" ({words})" if words else "" for words in told]


def _describe_differences(values: list[Mapping[str, Any]], prefix: str = "") -> list[list[str]]:
    """Of each mapping, words for the keys in which not all are alike."""
    words: list[list[str]] = [[] for _ in values]
    for key in dict.fromkeys(key for one in values for key in one):
        found = [one.get(key) for one in values]
        if all(one == found[0] for one in found):
            continue
        name = f"{prefix} {str(key).replace('_', ' ')}".strip()
        nested = [one for one in found if isinstance(one, Mapping)]
        inner = iter(_describe_differences(nested, name))
        for told, one in zip(words, found, strict=True):
            if isinstance(one, Mapping):
                told += (next(inner) if len(nested) > 1 else []) or ([name] if len(nested) < len(found) else [])
            elif one is not None and one is not False:
                told.append(name if one is True else _say(name, one))
    return words


def _say(name: str, value: Any) -> str:
    name, _, unit = name.rpartition(" ") if name.rpartition(" ")[2] in _UNITS else (name, "", "")
    said = "+".join(map(str, value)) if isinstance(value, list | tuple) else f"{value:g}" if isinstance(value, float) else str(value)
    return f"{name} {said}{' ' + _UNITS[unit] if unit else ''}"
