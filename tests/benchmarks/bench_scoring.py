"""Scoring an archive against a bare loop: `pytest -m benchmark -s tests/benchmarks/bench_scoring.py`, or run it as a script.

Ratios of one run, medians with their range; what is compared takes turns. The bare loop is what one would write without any of this: open,
decode, resize, stack, score, throw away, in as many processes as the engine has, each with its half of the files; the engine reads, scores
and writes a store. Both are warm: models are loaded, processes there. Seconds of the clock say how fast it is, on a machine that does
nothing else; seconds of the processors, of all processes together, what it costs. A quarter of an hour.
"""

import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from PIL import Image

from methods.detectors.autoencoder import Autoencoder, AutoencoderConfig
from storage.archives import append_manifest, open_archive
from storage.manifest import sample_id, write_named
from storage.models import Bundle, write_bundle
from storage.scores import create_store, default_shard_rows
from tasks import readers, score_shard
from tasks.arithmetic import Arithmetic
from tasks.execution import ExecutionConfig, keep_freed_memory
from tasks.models import load_detector
from tasks.references import ModelReference, RowsReference
from tasks.samples import to_tensor
from tasks.score import map_shards
from tasks.score_shard import Limits, ShardJob, Target, fill_shard

PICTURES, SIZE_PX, TURNS = 20_000, 96, 3
MODEL = AutoencoderConfig(input_size_px=64, batch_size=16)
BARE_TARGET, TWO_TARGET, ORCHESTRATION_TARGET, MEMORY_TARGET = 0.95, 1.8, 1.03, 1.1
ROWS = (10_000, 1_000_000)

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(3600)]


# ---- measuring


def show(
    title: str, over: Sequence[float], under: Sequence[float], *, verdict: Callable[[float], str] = lambda ratio: "", unit: str = "s"
) -> None:
    """Print the ratio of neighbouring measurements, median and range, and the median of what stands below."""
    ratios = sorted(one / other for one, other in zip(over, under, strict=True))
    low, high = ratios[0], ratios[-1]
    print(f"  {title:<64} {median(ratios):6.3f} ({low:.3f} to {high:.3f})  {median(under):7.1f} {unit}  {verdict(median(ratios))}")  # noqa: T201
    numbers = {"ratio": round(median(ratios), 4), "low": round(low, 4), "high": round(high, 4), unit: round(median(under), 2)}
    print(json.dumps({"benchmark": f"scoring: {title}", "load": os.getloadavg()[0], **numbers}))  # noqa: T201


def at_least(target: float) -> Callable[[float], str]:
    return lambda ratio: f"target at least {target}: {'met' if ratio >= target else 'NOT MET'}"


def at_most(target: float) -> Callable[[float], str]:
    return lambda ratio: f"target at most {target}: {'met' if ratio <= target else 'NOT MET'}"


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the clock, and of the processors in all processes below this one."""
    cpu_s, start = processor_seconds(), time.perf_counter()
    work()
    return time.perf_counter() - start, processor_seconds() - cpu_s


def processor_seconds() -> float:
    total = time.process_time()
    for process in psutil.Process().children(recursive=True):
        times = process.cpu_times()
        total += times.user + times.system
    return total


# ---- what is scored


def write_model(folder: Path, *, seed: int = 0) -> ModelReference:
    torch.manual_seed(seed)
    tensors = {name: tensor.numpy() for name, tensor in Autoencoder(MODEL).state_dict().items()}
    digest = write_bundle(str(folder), Bundle(tensors=tensors, config=MODEL.model_dump(mode="json"), card={}))
    return ModelReference(uri=str(folder), digest=digest, kind=MODEL.kind)


def write_jpegs(folder: Path, count: int, size_px: int) -> Path:
    """Files of 64 different pictures, each with a few bytes of its own behind the last marker, which no decoder reads."""
    (folder / "pictures").mkdir(parents=True)
    rng = np.random.default_rng(0)
    contents = []
    for _ in range(64):
        coarse = Image.fromarray(rng.integers(0, 256, (size_px // 8, size_px // 8, 3), np.uint8))
        coarse.resize((size_px, size_px), Image.Resampling.BICUBIC).save(folder / "drawn.jpg", quality=90)
        contents.append((folder / "drawn.jpg").read_bytes())
    for number in range(count):
        (folder / "pictures" / f"{number:07d}.jpg").write_bytes(contents[number % 64] + number.to_bytes(4, "big"))
    return folder / "pictures"


def write_rows(folder: Path, uris: Sequence[str], size_px: int) -> RowsReference:
    """A manifest; the digests are made of the numbers, which costs less than reading the files."""
    box = {"level": 0, "x_px": 0, "y_px": 0, "width_px": size_px, "height_px": size_px}
    digests = [f"{number:064x}" for number in range(len(uris))]
    table = pd.DataFrame({"sample_id": [sample_id(digest, **box) for digest in digests], "uri": uris, "sha256": digests})
    table = table.assign(dataset="bench", subject_id="one", split="archive", **box)
    uri, digest = write_named(str(folder), table, manifest=slice(None))["manifest"]
    return RowsReference(uri=uri, digest=digest)


class Place:
    """Pictures, their manifest and a model; stores as asked for."""

    def __init__(self, folder: Path, count: int, size_px: int) -> None:
        self.folder = folder
        self.files = sorted(str(path) for path in write_jpegs(folder, count, size_px).iterdir())
        self.rows = write_rows(folder, self.files, size_px)
        self.model = write_model(folder / "model")
        self._numbers = itertools.count()

    def jobs(self, *models: ModelReference, count: int | None = None) -> list[ShardJob]:
        """All shards of new stores for the first rows."""
        attributes = {"arithmetic": Arithmetic(batch_size=MODEL.batch_size).model_dump()}
        rows, size_px = count or len(self.files), MODEL.map_size_px
        stores, targets = [], []
        for model in models:
            uri = str(self.folder / f"store-{next(self._numbers)}")
            stores.append(create_store(uri, rows=rows, map_size_px=size_px, shard_rows=default_shard_rows(size_px), attributes=attributes))
            targets.append(Target(store_uri=uri, model=model, donors=[]))
        shards = range(stores[0].shard_count)
        return [ShardJob(rows=self.rows, shard=shard, targets=targets, isolate=False, limits=Limits()) for shard in shards]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("small"), PICTURES, SIZE_PX)


# ---- the engine against the bare loop


class BareLoop:
    """Processes that wait for a part of the files to score."""

    def __init__(self, place: Place, count: int) -> None:
        listed = place.folder / "files.json"
        listed.write_text(json.dumps({"files": place.files, "model": place.model}))
        command = [sys.executable, __file__, "bare", str(listed)]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
        self._processes = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(count)
        ]
        self._files = len(place.files)
        self.run(64)

    def run(self, count: int | None = None) -> None:
        """Score all files, or the first ones, each process its share."""
        edges = np.linspace(0, count or self._files, len(self._processes) + 1).astype(int).tolist()
        for process, first, stop in zip(self._processes, edges[:-1], edges[1:], strict=True):
            process.stdin.write(f"{first} {stop}\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
        for process in self._processes:
            assert process.stdout.readline() == "done\n"  # type: ignore[union-attr]

    def close(self) -> None:
        for process in self._processes:
            process.communicate()


def serve_bare_loop(listed: str) -> None:
    """The other side: decode, score, throw away."""
    keep_freed_memory()
    torch.set_num_threads(1)
    given = json.loads(Path(listed).read_text())
    detector = load_detector(given["model"])
    size = (detector.input_size_px, detector.input_size_px)
    for line in sys.stdin:
        first, stop = map(int, line.split())
        for start in range(first, stop, MODEL.batch_size):
            pixels = []
            for file in given["files"][start : min(start + MODEL.batch_size, stop)]:
                with Image.open(file) as image:
                    pixels.append(np.asarray(image.convert("RGB").resize(size, Image.Resampling.BILINEAR)))
            with torch.inference_mode():
                detector.score(to_tensor(np.stack(pixels)))
        print("done", flush=True)  # noqa: T201


def run_engine(place: Place, workers: int, *, count: int | None = None) -> None:
    jobs = place.jobs(place.model, count=count)
    done = sum(outcome["rows"] for outcome in map_shards(jobs, execution=ExecutionConfig(kind="local", workers=workers)))
    assert done == (count or len(place.files))


def test_print_the_engine_against_a_bare_loop_and_two_workers_against_one(place: Place) -> None:
    loops = {workers: BareLoop(place, workers) for workers in (1, 2)}
    works: dict[tuple[str, int], Callable[[], object]] = {}
    for workers, loop in loops.items():
        run_engine(place, workers, count=64 * workers)
        works["bare", workers] = loop.run
        works["engine", workers] = lambda workers=workers: run_engine(place, workers)  # type: ignore[misc]
    measured: dict[tuple[str, int], list[tuple[float, float]]] = {name: [] for name in works}
    for turn in range(TURNS):
        for name in list(works)[:: 1 if turn % 2 else -1]:
            measured[name].append(timed(works[name]))
    for loop in loops.values():
        loop.close()
    clock, cpu = ({name: [pair[which] for pair in pairs] for name, pairs in measured.items()} for which in (0, 1))
    print(f"\n{PICTURES} JPEGs of {SIZE_PX} px, {MODEL.kind} at {MODEL.input_size_px} px; rates")  # noqa: T201
    for workers in (1, 2):
        bare, engine = ("bare", workers), ("engine", workers)
        show(f"engine over bare loop, {workers} processes", clock[bare], clock[engine], verdict=at_least(BARE_TARGET))
        show(f"engine over bare loop, {workers} processes, by processor seconds", cpu[bare], cpu[engine])
    show("engine: two workers over one", clock["engine", 1], clock["engine", 2], verdict=at_least(TWO_TARGET))
    show("bare loop: two processes over one", clock["bare", 1], clock["bare", 2])


# ---- several models over one reading


def test_print_two_models_over_one_reading_against_one_after_the_other(tmp_path: Path) -> None:
    keep_freed_memory()
    place = Place(tmp_path, 512, 512)
    models = [place.model, write_model(tmp_path / "other", seed=1)]

    def score(*jobs: ShardJob) -> float:
        start = time.process_time()
        for job in jobs:
            fill_shard(job)
        return time.process_time() - start

    score(*place.jobs(*models, count=32))
    measured: tuple[list[float], list[float]] = ([], [])
    for _ in range(TURNS):
        measured[0].append(score(*place.jobs(*models)))
        measured[1].append(sum(score(*place.jobs(model)) for model in models))
    print("\n512 JPEGs of 512 px, two models; seconds of the processor")  # noqa: T201
    show("two models at once over one after the other", *measured)


# ---- Prefect and Dask over the workers' own time


@pytest.mark.usefixtures("prefect_server")
def test_print_what_orchestration_adds(place: Place) -> None:
    from flows.score_archive import score_archive
    from tasks.archive_scoring import ArchiveScoringConfig

    execution = ExecutionConfig(kind="local", workers=2)
    run_engine(place, 2, count=128)
    measured: tuple[list[float], list[float]] = ([], [])

    def score(turn: int) -> None:
        config = ArchiveScoringConfig(batch_size=MODEL.batch_size)
        score_archive(str(place.folder / f"archive-{turn}"), place.rows, {"ae": place.model}, scoring=config, execution=execution)

    for turn in range(TURNS):
        measured[0].append(timed(lambda turn=turn: score(turn))[0])  # type: ignore[misc]
        measured[1].append(timed(lambda: run_engine(place, 2))[0])
    print(f"\n{PICTURES} JPEGs; seconds of the clock")  # noqa: T201
    show("the flow over its shards alone", *measured, verdict=at_most(ORCHESTRATION_TARGET))


# ---- memory


class SimulatedModel:
    """Scores that cost nothing."""

    input_size_px, arithmetic = 16, Arithmetic(batch_size=16)

    def to_device(self, pixels: np.ndarray) -> np.ndarray:
        return pixels

    def score(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return images[:, 0, 0, 0].astype(np.float32), images[..., 0].astype(np.float16)


def measure_worker(folder: str) -> None:
    """Peak memory in MiB of a worker that scores a whole archive of simulated pictures with a simulated model."""
    archive = open_archive(folder)
    store = create_store(
        f"{folder}/scores/simulated/v1",
        rows=archive.rows,
        map_size_px=16,
        shard_rows=default_shard_rows(16),
        attributes={"arithmetic": SimulatedModel.arithmetic.model_dump()},
    )
    pixels = np.zeros((16, 16, 3), np.uint8)
    readers.read_samples = lambda rows, sizes_px: [{16: pixels}] * len(rows)
    score_shard._scorer = lambda *_: SimulatedModel()  # type: ignore[assignment]
    rows = RowsReference(uri=folder, digest=archive.digest)
    target = Target(store_uri=store.uri, model=ModelReference(uri="", digest="", kind=""), donors=[])
    for shard in store.pending_shards():
        score_shard.score_shard(ShardJob(rows=rows, shard=shard, targets=[target], isolate=False, limits=Limits()))
    assert not store.pending_shards()
    # not getrusage, whose maximum a process takes over from the one that started it
    print(int(re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[0]) >> 10)  # noqa: T201


def test_print_a_workers_memory_at_ten_thousand_and_at_a_million_rows(tmp_path: Path) -> None:
    peaks = []
    for count in ROWS:
        manifest = write_rows(tmp_path / str(count), [f"/nowhere/{number:07d}.jpg" for number in range(count)], SIZE_PX)
        archive = append_manifest(str(tmp_path / str(count) / "archive"), manifest["uri"], manifest["digest"])
        command = [sys.executable, __file__, "worker", archive.uri]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
        start = time.perf_counter()
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        peaks.append(float(done.stdout.splitlines()[-1]))
        print(f"\n{count} rows: {peaks[-1]:.0f} MiB, {1e6 * (time.perf_counter() - start) / count:.0f} µs a row")  # noqa: T201
    show("a worker's peak memory at a million rows over ten thousand", peaks[1:], peaks[:1], verdict=at_most(MEMORY_TARGET), unit="MiB")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["bare", listed]:
            serve_bare_loop(listed)
        case ["worker", folder]:
            measure_worker(folder)
        case _:
            raise SystemExit(pytest.main(["-s", "-q", "-m", "benchmark", "--import-mode=importlib", __file__]))
