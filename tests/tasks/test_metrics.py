"""What Prometheus is told, and that other machines are not."""

import os
import socket
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tasks.metrics import MetricsError, Reading, read_gpu_use, serve_metrics
from tests.servers import free_ports


def scrape(port: int) -> dict[str, float]:
    text = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).raise_for_status().text
    return {sample.name: sample.value for family in text_string_to_metric_families(text) for sample in family.samples}


def test_prometheus_is_told_the_figures_of_the_moment_and_nothing_when_the_run_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    readings = [Reading(done=10, failed=1, total=40, per_second=2.5), Reading(done=40, failed=3, total=40, per_second=5)]
    (port,) = free_ports(1)
    with serve_metrics(port, lambda: readings[0]):
        first = scrape(port)
        readings.pop(0)
        second = scrape(port)
    assert first == {
        "normascope_images_scored_total": 9,
        "normascope_images_failed_total": 1,
        "normascope_images_queued": 30,
        "normascope_images_per_second": 2.5,
    }
    assert (second["normascope_images_scored_total"], second["normascope_images_queued"]) == (37, 0)
    with pytest.raises(httpx.ConnectError):
        scrape(port)


def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(MetricsError, match=f"port {port}"), serve_metrics(port, lambda: Reading(0, 0, 0, 0)):
            pass


@pytest.mark.parametrize(("says", "read"), [("0, 37\\n1, 100\\n", [("0", 0.37), ("1", 1.0)]), ("0, [N/A]\\n", [])])
def test_the_use_of_each_gpu_is_what_nvidia_smi_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str, read: list[tuple[str, float]]
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\nprintf '{says}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert read_gpu_use() == read
