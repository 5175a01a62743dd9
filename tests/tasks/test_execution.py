import pytest

from tasks.execution import ExecutionConfig, executor_for


def double(value: int) -> int:
    return 2 * value


def fail(value: int) -> int:
    raise ValueError(f"no {value}")


def test_address_is_given_exactly_with_its_kind() -> None:
    for wrong in ({"kind": "address"}, {"kind": "local", "address": "tcp://127.0.0.1:1"}):
        with pytest.raises(ValueError, match=r"execution.address"):
            ExecutionConfig.model_validate(wrong)


def test_process_executor_gives_all_results_and_raises_the_first_error() -> None:
    executor = executor_for(ExecutionConfig(kind="process"))
    assert sorted(executor.map(double, [1, 2, 3])) == [2, 4, 6]
    with pytest.raises(ValueError, match=r"no 1"):
        list(executor.map(fail, [1, 2]))


def test_an_unreachable_scheduler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.dask_executor._CONNECT_TIMEOUT_S", 1)
    executor = executor_for(ExecutionConfig(kind="address", address="tcp://127.0.0.1:9"))
    with pytest.raises(ConnectionError, match=r"tcp://127.0.0.1:9"):
        executor.run(double, 1)
