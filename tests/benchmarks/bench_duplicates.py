"""The duplicate finder against its twins: `pytest -m benchmark -s tests/benchmarks/bench_duplicates.py`, or run it as a script.

Ratios of one run; each pair is timed in turns, the median of the turns' ratios counts, their range shows the machine's noise. Kernels are
compiled before. Takes about two minutes and 1 GB.
"""

import io
import json
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage import data

from methods.curation.duplicates import join_groups
from methods.curation.hamming import RADIUS, HammingIndex, group_near, near_pairs
from methods.curation.hashing import dihedral_hashes, perceptual_hash

Work = Callable[[], Any]


def seconds(work: Work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare(name: str, work: Work, twin: Work, *, turns: int) -> dict[str, Any]:
    """Times of both and how many times longer the twin takes."""
    work()
    times = np.array([(seconds(work), seconds(twin)) for _ in range(turns)])
    ratios = times[:, 1] / times[:, 0]
    mine, other = np.median(times, axis=0)
    ratio, least, most = np.median(ratios), ratios.min(), ratios.max()
    print(f"{name:<66} {1e3 * mine:10.2f} ms {1e3 * other:10.2f} ms   {ratio:8.3f}  ({least:.3f} to {most:.3f})")  # noqa: T201
    return {"name": name, "ms": 1e3 * mine, "twin_ms": 1e3 * other, "ratio": ratio, "ratio_range": [least, most]}


def archive(rng: np.random.Generator, n: int) -> np.ndarray:
    """Random hashes, of which 2 % are copies and 8 % near copies of others (up to 6 bits)."""
    hashes = rng.integers(0, 2**64, n, dtype=np.uint64)
    copies = n // 10
    near = hashes[rng.integers(0, n - copies, copies)]
    for _ in range(6):
        near[copies // 5 :] ^= np.uint64(1) << rng.integers(0, 64, copies - copies // 5).astype(np.uint64)
    hashes[n - copies :] = near
    return rng.permutation(hashes)


def skewed_archive(rng: np.random.Generator, n: int) -> np.ndarray:
    """As of one kind of picture: 40 bits are mostly the same (set in 15 %), 10 % are one crowd around one hash, 10 % copies of one."""
    bits = rng.random((n, 64)) < np.where(np.arange(64) < 40, 0.15, 0.5)
    hashes = np.packbits(bits, axis=1).view(np.uint64)[:, 0]
    crowd = np.full(n // 10, hashes[0])
    for _ in range(5):
        crowd ^= np.uint64(1) << rng.integers(0, 64, len(crowd)).astype(np.uint64)
    hashes[: len(crowd)], hashes[len(crowd) : 2 * len(crowd)] = crowd, hashes[-1]
    return rng.permutation(hashes)


def brute_force(hashes: np.ndarray, *, rows: int = 64, columns: int = 1024) -> np.ndarray:
    """Pairs i < j by comparing all with all in NumPy, in tiles that stay in the cache (the fastest of six sizes), into given memory."""
    difference, bits = np.empty((rows, columns), np.uint64), np.empty((rows, columns), np.uint8)
    near, found = np.empty((rows, columns), bool), [np.empty((0, 2), np.int64)]
    for i in range(0, len(hashes), rows):
        a = hashes[i : i + rows, None]
        for j in range(i, len(hashes), columns):
            b = hashes[None, j : j + columns]
            here = np.s_[: a.shape[0], : b.shape[1]]
            np.bitwise_xor(a, b, out=difference[here])
            np.bitwise_count(difference[here], out=bits[here])
            np.less_equal(bits[here], RADIUS, out=near[here])
            if near[here].any():
                pairs = np.argwhere(near[here]) + np.array([i, j])
                found.append(pairs[pairs[:, 0] < pairs[:, 1]])
    return np.concatenate(found)


def encoded() -> tuple[np.ndarray, bytes]:
    """A picture of 1024 × 1024 and its JPEG."""
    image = Image.fromarray(data.immunohistochemistry()).resize((1024, 1024))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return np.asarray(image), file.getvalue()


def decode(file: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(file)))


def compare_hashing_with_decoding() -> list[dict[str, Any]]:
    pixels, file = encoded()
    return [
        compare("hash of 1024² | decoding its JPEG (Pillow)", lambda: perceptual_hash(pixels), lambda: decode(file), turns=30),
        compare("hashes of its 8 turns | decoding its JPEG", lambda: dihedral_hashes(pixels), lambda: decode(file), turns=30),
    ]


def compare_grouping_with_brute_force(rng: np.random.Generator) -> list[dict[str, Any]]:
    results = []
    for name, make in (("archive", archive), ("skewed", skewed_archive)):
        hashes = make(rng, 20_000)
        expected = brute_force(hashes)
        assert np.array_equal(near_pairs(hashes), np.unique(expected, axis=0))
        assert np.array_equal(group_near(hashes), join_groups(len(hashes), expected))
        results.append(
            compare(f"20,000 grouped, {name} | NumPy brute force", lambda h=hashes: group_near(h), lambda h=hashes: brute_force(h), turns=3)
        )
    hashes, pairs = archive(rng, 100_000), []
    results.append(
        compare(
            "100,000 grouped, archive | NumPy brute force", lambda: group_near(hashes), lambda: pairs.append(brute_force(hashes)), turns=3
        )
    )
    assert np.array_equal(group_near(hashes), join_groups(len(hashes), pairs[0]))
    assert np.array_equal(near_pairs(hashes), np.unique(pairs[0], axis=0))
    return results


def compare_sizes(rng: np.random.Generator) -> list[dict[str, Any]]:
    small, large = archive(rng, 100_000), archive(rng, 1_000_000)
    copies, skewed = np.full(100_000, small[0]), skewed_archive(rng, 100_000)
    return [
        compare("100,000 grouped, archive | 1,000,000", lambda: group_near(small), lambda: group_near(large), turns=7),
        compare("100,000 grouped, archive | 100,000 copies of one", lambda: group_near(small), lambda: group_near(copies), turns=7),
        compare("100,000 grouped, archive | 100,000 skewed", lambda: group_near(small), lambda: group_near(skewed), turns=3),
    ]


def compare_adding_with_building(rng: np.random.Generator) -> list[dict[str, Any]]:
    everything = archive(rng, 1_010_000)
    old, new = everything[:1_000_000], everything[1_000_000:]
    index, labels = HammingIndex(old), group_near(old)
    assert np.array_equal(index.join(new, labels), group_near(everything))
    print(f"{index.nbytes / len(index):.1f} bytes a hash in the index, {index.to_arrays()['hashes'].nbytes / len(index):.1f} stored")  # noqa: T201

    def build_and_group() -> None:
        HammingIndex(old)
        group_near(old)

    def reload() -> None:
        HammingIndex.from_arrays(index.to_arrays())

    def match_and_add() -> None:
        index.match(new)
        near_pairs(new)
        HammingIndex(new)

    _, file = encoded()
    return [
        compare("1 % new: pairs with old and new, run added | build and group 1M", match_and_add, build_and_group, turns=5),
        compare("1 % new: all 1,010,000 labels | build and group 1M", lambda: index.join(new, labels), build_and_group, turns=5),
        compare(
            "1 % new: all labels | decoding one in 100 of the new",
            lambda: index.join(new, labels),
            lambda: [decode(file) for _ in range(100)],
            turns=5,
        ),
        compare("index of 1M made again from what is stored | build and group 1M", reload, build_and_group, turns=3),
    ]


@pytest.mark.benchmark
@pytest.mark.timeout(900)
def test_print_ratios_of_the_duplicate_finder() -> None:
    rng = np.random.default_rng(0)
    print(f"\n{'work | twin':<66} {'work':>13} {'twin':>13}   {'ratio':>8}  (range)")  # noqa: T201
    results = (
        compare_hashing_with_decoding() + compare_grouping_with_brute_force(rng) + compare_sizes(rng) + compare_adding_with_building(rng)
    )
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    print(json.dumps({"benchmark": "duplicates", "load": load, "results": results}))  # noqa: T201


if __name__ == "__main__":
    test_print_ratios_of_the_duplicate_finder()
