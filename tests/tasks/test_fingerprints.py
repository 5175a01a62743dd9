"""Digests of values and of code."""

from pathlib import Path

import pytest

from tasks import fingerprints
from tasks.fingerprints import code_fingerprint, digest_of


def test_digest_depends_on_values_and_not_on_the_order_of_keys() -> None:
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": 2})


def test_digest_refuses_what_is_no_reference_or_configuration() -> None:
    with pytest.raises(TypeError, match="no part of a cache key"):
        digest_of(object())


def test_code_fingerprint_changes_with_a_module_that_is_imported_indirectly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in {"a": "from tasks.b import f\n", "b": "from methods import (\n    c,\n)\n"}.items():
        (tmp_path / "tasks").mkdir(exist_ok=True)
        (tmp_path / "tasks" / f"{name}.py").write_text(text)
    (tmp_path / "methods").mkdir()
    deep = tmp_path / "methods" / "c.py"

    def fingerprint(text: str) -> str:
        deep.write_text(text)
        fingerprints._source_of.cache_clear()
        code_fingerprint.cache_clear()
        return code_fingerprint("tasks.a")

    monkeypatch.setattr(fingerprints, "_ROOT", tmp_path)
    first, second = fingerprint("x = 1\n"), fingerprint("x = 2\n")
    fingerprints._source_of.cache_clear()
    code_fingerprint.cache_clear()
    assert first != second
