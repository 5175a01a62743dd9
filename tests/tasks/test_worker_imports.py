"""Every worker pays for what its functions import before it does anything."""

import subprocess
import sys

WORKER_MODULES = (
    "tasks.score_shard",
    "tasks.archive_scoring",
    "tasks.search_fold",
    "tasks.fit_bundle",
    "tasks.tabulate_batch",
    "tasks.count_shard",
    "tasks.write_slide_map",
    "tasks.make_slide",
    "methods.training.fit",
)


def test_what_workers_run_is_imported_without_prefect() -> None:
    look = (
        "import importlib, sys\nfor name in sys.argv[1:]:\n    importlib.import_module(name)\n    assert 'prefect' not in sys.modules, name"
    )
    ended = subprocess.run([sys.executable, "-c", look, *WORKER_MODULES], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
