"""A process that takes too long is killed, whether or not it lets Python run; one that does not is left alone."""

import subprocess
import sys
import time

import pytest

from tasks.watchdog import EXIT_STATUS, time_limit

HANGS = {"free": "ctypes.CDLL(None).sleep(60)", "holding the lock": "ctypes.PyDLL(None).sleep(60)"}


def run(code: str) -> subprocess.CompletedProcess[str]:
    start = "import ctypes, time\nfrom tasks.watchdog import time_limit\n"
    return subprocess.run([sys.executable, "-c", start + code], capture_output=True, text=True, timeout=60)


@pytest.mark.slow
@pytest.mark.parametrize(("hang", "status"), [("free", EXIT_STATUS), ("holding the lock", 1)])
def test_a_step_that_hangs_has_its_process_killed_and_it_is_said_where(hang: str, status: int) -> None:
    done = run(f"with time_limit(30, 'a long one'):\n with time_limit(1, 'reading a.jpg'):\n  {HANGS[hang]}")
    assert done.returncode == status
    assert 'File "<string>", line 5' in done.stderr
    assert ("reading a.jpg takes longer than 1 s" in done.stderr) == (hang == "free")


@pytest.mark.slow
def test_what_ends_in_time_is_left_alone_and_so_is_a_process_that_rests_with_the_lock_held() -> None:
    step = "with time_limit(1, 'a step'):\n time.sleep(0.3)\n"
    done = run(5 * step + "time.sleep(2.5)\nctypes.PyDLL(None).sleep(8)\nprint('done')")
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_a_limit_of_none_is_none_and_errors_pass_through() -> None:
    with time_limit(None, "anything"):
        time.sleep(0.01)
    with pytest.raises(ZeroDivisionError), time_limit(60, "a division"):
        _ = 1 / 0
