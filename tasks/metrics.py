"""What a run on an archive is doing, for Prometheus: on loopback, and only when a port is given."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_GPU_TIMEOUT_S = 5


class MetricsError(RuntimeError):
    """The port cannot be listened on."""


@dataclass(frozen=True)
class Reading:
    """Images of this run: done (scored or failed), failed, all of them, and done a second since the first."""

    done: int
    failed: int
    total: int
    per_second: float


@contextmanager
def serve_metrics(port: int | None, read: Callable[[], Reading]) -> Iterator[None]:
    """Answer http://127.0.0.1:port/metrics while the context lasts; nothing happens without a port.

    Raises:
        MetricsError: the port is taken.
    """
    if port is None:
        yield
        return
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_OfRun(read))
    try:
        http, thread = start_http_server(port, addr="127.0.0.1", registry=registry)
    except OSError as error:
        raise MetricsError(f"no metrics can be shown on port {port} ({error.strerror}): give another --metrics-port") from None
    try:
        yield
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


class _OfRun(Collector):
    """Reads when it is asked, and keeps nothing."""

    def __init__(self, read: Callable[[], Reading]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """The figures at this moment."""
        now = self._read()
        yield CounterMetricFamily("normascope_images_scored", "images that have a score", value=now.done - now.failed)
        yield CounterMetricFamily(
            "normascope_images_failed", "images that could not be scored, with a reason in the store", value=now.failed
        )
        yield GaugeMetricFamily("normascope_images_queued", "images of this run that are not done", value=now.total - now.done)
        yield GaugeMetricFamily("normascope_images_per_second", "rate of this run since its first shard", value=now.per_second)
        gpus = GaugeMetricFamily("normascope_gpu_use_ratio", "of the GPUs of this machine, 0 to 1", labels=["gpu"])
        for gpu, use in read_gpu_use():
            gpus.add_metric([gpu], use)
        yield gpus


def read_gpu_use() -> list[tuple[str, float]]:
    """Number and use (0 to 1) of this machine's GPUs, as nvidia-smi tells it; none where it does not."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=index,utilization.gpu", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=_GPU_TIMEOUT_S, check=True).stdout
        return [(index.strip(), float(use) / 100) for index, _, use in (line.partition(",") for line in answer.splitlines() if line)]
    except (OSError, subprocess.SubprocessError, ValueError):  # "[N/A]" for parts of a GPU
        return []
