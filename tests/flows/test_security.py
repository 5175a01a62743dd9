"""What the code must not do, read from the code: load pickles of a store, a bundle or a bucket; listen to other machines unasked."""

import ast
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = {
    str(path.relative_to(ROOT)): ast.parse(path.read_text())
    for room in ("flows", "tasks", "methods", "storage")
    for path in sorted((ROOT / room).rglob("*.py"))
}
PICKLERS = ("pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "jsonpickle")
READS = ("load", "loads", "Unpickler", "open", "decode")
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def calls(tree: ast.AST) -> Iterator[tuple[ast.Call, str]]:
    """Each call, and what is called as it is written."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node, ast.unparse(node.func)


def says(call: ast.Call, name: str, value: bool) -> bool:
    return any(word.arg == name and isinstance(word.value, ast.Constant) and word.value.value is value for word in call.keywords)


def pickle_reads(tree: ast.AST) -> Iterator[str]:
    """Every call that reads a pickle, or that does so unless it is told not to; an unpickler of ours says which classes it admits."""
    for call, called in calls(tree):
        module, _, name = called.rpartition(".")
        guard = {"np.load": ("allow_pickle", False), "numpy.load": ("allow_pickle", False), "torch.load": ("weights_only", True)}.get(
            called
        )
        always = (module in PICKLERS and name in READS) or name == "read_pickle" or says(call, "allow_pickle", True)
        if always or (guard is not None and not says(call, *guard)):
            yield called
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in PICKLERS:
            yield from (f"{node.module}.{alias.name}" for alias in node.names if alias.name in READS)
        if isinstance(node, ast.ClassDef) and any("Unpickler" in ast.unparse(base) for base in node.bases):
            methods = [part.name for part in node.body if isinstance(part, ast.FunctionDef)]
            yield from [] if "find_class" in methods else [node.name]


def open_doors(tree: ast.AST) -> Iterator[str]:
    """Every address that is bound or given to a server and is not this machine's own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value in ("0.0.0.0", "::"):
            yield f"line {node.lineno}: {node.value}"
        if isinstance(node, ast.List | ast.Tuple):
            words = [part.value if isinstance(part, ast.Constant) else None for part in node.elts]
            yield from (
                f"line {node.lineno}: --host {after}" for word, after in pairwise(words) if word == "--host" and after not in LOOPBACK
            )
    for call, called in calls(tree):
        if called.endswith(".bind") and isinstance(call.args[0], ast.Tuple):
            host = call.args[0].elts[0]
            if not (isinstance(host, ast.Constant) and host.value in LOOPBACK):
                yield f"line {call.lineno}: bind to {ast.unparse(host)}"
        for word in call.keywords:
            if word.arg == "host" and isinstance(word.value, ast.Constant) and word.value.value not in LOOPBACK:
                yield f"line {call.lineno}: host={word.value.value}"


def test_no_pickle_is_read() -> None:
    found = {name: reads for name, tree in SOURCES.items() if (reads := list(pickle_reads(tree)))}
    assert not found


def test_nothing_listens_to_other_machines() -> None:
    found = {name: doors for name, tree in SOURCES.items() if (doors := list(open_doors(tree)))}
    assert not found


@pytest.mark.parametrize(
    "line",
    [
        "np.load(file)",
        "np.load(file, allow_pickle=True)",
        "torch.load(file)",
        "torch.load(file, weights_only=False)",
        "pickle.load(file)",
        "pickle.Unpickler(file).load()",
        "from pickle import loads",
        "class Reader(pickle.Unpickler): pass",
        "joblib.load(path)",
        "pd.read_pickle(path)",
    ],
)
def test_the_search_finds_pickles(line: str) -> None:
    assert list(pickle_reads(ast.parse(line)))


@pytest.mark.parametrize(
    "line", ["s.bind(('0.0.0.0', 1))", "s.bind(('', 1))", "s.bind((host, 1))", "run(host='::')", "['--host', '10.0.0.1']"]
)
def test_the_search_finds_open_doors(line: str) -> None:
    assert list(open_doors(ast.parse(line)))


def test_cached_results_are_json_and_not_pickle() -> None:
    (keeps,) = [
        call
        for call, called in calls(SOURCES["tasks/caching.py"])
        if called == "task" and any(word.arg == "persist_result" for word in call.keywords)
    ]
    assert {word.arg: ast.unparse(word.value) for word in keeps.keywords}["result_serializer"] == "'json'"
    others = [
        f"{name}: {called}"
        for name, tree in SOURCES.items()
        for call, called in calls(tree)
        if called.rpartition(".")[2] in ("task", "flow")
        and says(call, "persist_result", True)
        and call is not keeps
        and not any(word.arg == "result_serializer" for word in call.keywords)
    ]
    assert not others
