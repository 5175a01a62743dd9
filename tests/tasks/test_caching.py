from pathlib import Path
from secrets import token_hex

import pytest

from tasks.caching import cached_task, can_pass, steps


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (FileNotFoundError(2, "gone"), False),
        (OSError(28, "No space left on device"), False),
        (ValueError("wrong"), False),
    ],
)
def test_only_errors_that_can_pass_are_tried_again(error: BaseException, expected: bool) -> None:
    assert can_pass(error) is expected


@pytest.mark.usefixtures("prefect_server")
def test_a_result_is_taken_again_only_while_its_outputs_exist(tmp_path: Path) -> None:
    output = tmp_path / "output"
    calls = []

    @cached_task(name=f"make {tmp_path}", run_name="make", outputs_exist=lambda path: Path(path).exists(), ignore=("bar",))
    def make(value: int, bar: object) -> str:
        calls.append(value)
        output.write_text(str(value))
        return str(output)

    done = steps.done.total()
    make(1, bar=object())
    make(1, bar=object())
    assert calls == [1]
    assert steps.done.total() - done == 1
    output.unlink()
    make(1, bar=None)
    assert calls == [1, 1]
    make(1, bar=None)
    assert calls == [1, 1]
    make(2, bar=None)
    assert calls == [1, 1, 2]


@pytest.mark.usefixtures("prefect_server")
def test_of_results_made_twice_only_the_newest_is_taken(tmp_path: Path) -> None:
    output = tmp_path / "output"

    @cached_task(name=f"draw {tmp_path}", run_name="draw", outputs_exist=lambda drawn: Path(drawn["path"]).exists())
    def draw() -> dict[str, str]:
        output.write_text(token_hex(8))  # as a training on several threads: never the same bits
        return {"path": str(output), "content": output.read_text()}

    first = draw()
    output.unlink()
    second = draw()
    assert first != second
    assert draw() == second
