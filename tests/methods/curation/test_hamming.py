import multiprocessing
import pickle
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import data

from methods.curation import hamming, hamming_tables
from methods.curation.hamming import HammingIndex, group_near, near_pairs
from methods.curation.hashing import dihedral_hashes, turned


@pytest.fixture(autouse=True, scope="module")
def kernels_from_the_first_hash() -> Iterator[None]:
    """Few hashes are else compared all with all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hamming, "_FEWER_THAN_COMPILING", -1)
        yield


SEEDS = st.integers(0, 2**32 - 1)


def flipped(rng: np.random.Generator, hashes: np.ndarray, most: int) -> np.ndarray:
    """Each with up to `most` bits changed."""
    for _ in range(most):
        hashes = hashes ^ (np.uint64(1) << rng.integers(0, 64, hashes.shape).astype(np.uint64)) * rng.integers(
            0, 2, hashes.shape, np.uint64
        )
    return hashes


def planted(rng: np.random.Generator, n: int, *, bias: float = 0.5) -> np.ndarray:
    """Random hashes, copies, near copies, at `bias` other than ½ with bits that are mostly unset."""
    bits = rng.random((n, 64)) < bias
    hashes = np.packbits(bits, axis=1).view(np.uint64)[:, 0]
    return rng.permutation(
        np.concatenate([hashes, hashes[: n // 4], flipped(rng, hashes[: n // 2], 11), flipped(rng, hashes[: n // 4], 5)])
    )


def brute_force_pairs(hashes: np.ndarray, radius: int, variants: np.ndarray | None = None) -> np.ndarray:
    variants = hashes[:, None] if variants is None else variants
    near = (np.bitwise_count(hashes[:, None, None] ^ variants) <= radius).any(2)  # [earlier, later]
    return np.argwhere(np.triu(near, 1))


def brute_force_groups(hashes: np.ndarray, radius: int, variants: np.ndarray | None = None) -> np.ndarray:
    return components(len(hashes), brute_force_pairs(hashes, radius, variants))


def components(n: int, pairs: np.ndarray) -> np.ndarray:
    groups = [{i} for i in range(n)]
    for i, j in pairs:
        if groups[i] is not groups[j]:
            groups[i] |= groups[j]
            for member in groups[j]:
                groups[member] = groups[i]
    numbers: dict[int, int] = {}
    return np.array([numbers.setdefault(min(group), len(numbers)) for group in groups], np.int64)


@settings(deadline=None, max_examples=60)
@given(seed=SEEDS, n=st.integers(0, 400), radius=st.integers(0, 12), bias=st.sampled_from([0.5, 0.2, 0.03]))
def test_pairs_and_groups_are_those_of_a_comparison_of_all_with_all(seed: int, n: int, radius: int, bias: float) -> None:
    hashes = planted(np.random.default_rng(seed), n, bias=bias)
    np.testing.assert_array_equal(near_pairs(hashes, radius=radius), brute_force_pairs(hashes, radius).reshape(-1, 2))
    np.testing.assert_array_equal(group_near(hashes, radius=radius), brute_force_groups(hashes, radius))


@settings(deadline=None, max_examples=40)
@given(seed=SEEDS, log2_n=st.integers(0, 31), radius=st.integers(0, 64), bias=st.sampled_from([0.5, 0.1]))
def test_every_division_into_parts_finds_all(seed: int, log2_n: int, radius: int, bias: float) -> None:
    hashes = planted(np.random.default_rng(seed), 60, bias=bias)
    with pytest.MonkeyPatch.context() as patch:
        plan = hamming_tables._plan_for(min(log2_n, 17), radius)  # 17: the tables of larger numbers take long to clear
        patch.setattr(hamming_tables, "_plan", lambda n, r: plan)
        np.testing.assert_array_equal(near_pairs(hashes, radius=radius), brute_force_pairs(hashes, radius).reshape(-1, 2))
        np.testing.assert_array_equal(group_near(hashes, radius=radius), brute_force_groups(hashes, radius))


@pytest.mark.parametrize("radius", [0, 1, 5, 8, 13, 64])
@pytest.mark.parametrize("log2_n", [0, 10, 20])
def test_the_parts_are_apart_and_no_near_pair_can_differ_too_much_in_all(log2_n: int, radius: int) -> None:
    parts = hamming_tables._plan_for(log2_n, radius)
    assert sum(part.radius + 1 for part in parts) > radius
    ends = [(part.shift, part.shift + part.width) for part in parts]
    assert all(end <= start for (_, end), (start, _) in pairwise(ends))
    assert ends[-1][1] <= 64


@pytest.mark.parametrize("threads", [1, 3])
def test_crowds_of_different_near_hashes_are_grouped_exactly(threads: int) -> None:
    rng = np.random.default_rng(5)
    centres = rng.integers(0, 2**64, 6, dtype=np.uint64)
    hashes = rng.permutation(np.concatenate([flipped(rng, centres.repeat(250), 7), rng.integers(0, 2**64, 500, dtype=np.uint64)]))
    np.testing.assert_array_equal(group_near(hashes, threads=threads), brute_force_groups(hashes, 8))
    low = rng.integers(0, 2**13, 1500).astype(np.uint64)  # all in few buckets, and not all near
    np.testing.assert_array_equal(group_near(low, radius=2, threads=threads), brute_force_groups(low, 2))


def test_crowded_buckets_of_hashes_that_are_not_near_are_grouped_exactly() -> None:
    rng = np.random.default_rng(6)
    hashes = rng.integers(0, 2**20, 1500).astype(np.uint64) << np.uint64(44)
    plan = (hamming_tables.Part(0, 3, 1), hamming_tables.Part(3, 2, 0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hamming_tables, "_plan", lambda n, radius: plan)
        np.testing.assert_array_equal(group_near(hashes, radius=2), brute_force_groups(hashes, 2))
        np.testing.assert_array_equal(near_pairs(hashes, radius=2), brute_force_pairs(hashes, 2))


def test_a_hundred_thousand_copies_are_one_group_without_their_five_billion_pairs() -> None:
    copies = np.full(100_000, 0x1234567890ABCDEF, np.uint64)
    labels = group_near(np.append(copies, ~copies[:1]))
    assert labels[-1] == 1
    assert not labels[:-1].any()
    assert len(HammingIndex(copies[:5000]).join(copies[:100], np.zeros(5000, np.int64))) == 5100


@settings(deadline=None, max_examples=30)
@given(seed=SEEDS, n=st.integers(1, 60))
def test_turned_pictures_are_found_exactly(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    variants = flipped(rng, rng.integers(0, 2**64, (n, 8), dtype=np.uint64)[rng.integers(0, n, 2 * n)], 5)
    turns = rng.integers(0, 8, 2 * n)
    variants = np.stack([variants[np.arange(2 * n), (turns + k) % 8] for k in range(8)], axis=1)
    hashes = variants[:, 0].copy()
    np.testing.assert_array_equal(near_pairs(hashes, variants=variants), brute_force_pairs(hashes, 8, variants).reshape(-1, 2))
    np.testing.assert_array_equal(group_near(hashes, variants=variants), brute_force_groups(hashes, 8, variants))
    old = n // 2
    joined = HammingIndex(hashes[:old]).join(hashes[old:], group_near(hashes[:old], variants=variants[:old]), variants=variants[old:])
    np.testing.assert_array_equal(joined, group_near(hashes, variants=variants))


def test_flipped_and_turned_photographs_are_one_group_only_when_asked() -> None:
    images = [turned(data.coffee(), k) for k in range(8)] + [data.astronaut()]
    variants = np.stack([dihedral_hashes(image) for image in images])
    assert group_near(variants[:, 0], variants=variants).tolist() == [0] * 8 + [1]
    assert group_near(variants[:, 0]).tolist() == list(range(9))


@settings(deadline=None, max_examples=30)
@given(seed=SEEDS, n=st.integers(1, 200), cuts=st.lists(st.floats(0, 1), max_size=4))
def test_adding_piece_by_piece_gives_what_all_at_once_gives(seed: int, n: int, cuts: list[float]) -> None:
    hashes = planted(np.random.default_rng(seed), n)
    pieces = np.split(hashes, sorted(int(cut * len(hashes)) for cut in cuts))
    index, labels, pairs = HammingIndex(pieces[0]), group_near(pieces[0]), [near_pairs(pieces[0])]
    for piece in pieces[1:]:
        pairs += [index.match(piece)[:, ::-1] + (0, len(index)), near_pairs(piece) + len(index)]
        labels = index.join(piece, labels)
        index.add(piece)
        index = HammingIndex.from_arrays(pickle.loads(pickle.dumps(index)).to_arrays())
    assert len(index) == len(hashes)
    np.testing.assert_array_equal(labels, brute_force_groups(hashes, 8))
    np.testing.assert_array_equal(np.unique(np.concatenate(pairs), axis=0), brute_force_pairs(hashes, 8).reshape(-1, 2))


def test_joining_keeps_what_the_old_labels_joined_for_other_reasons() -> None:
    old = np.array([0, 2**40 - 1, 2**63 - 1], np.uint64)
    assert HammingIndex(old).join(np.array([1], np.uint64), np.array([7, 3, 7])).tolist() == [0, 1, 0, 0]


def test_an_index_holds_few_runs_however_often_is_added() -> None:
    rng = np.random.default_rng(0)
    index = HammingIndex(rng.integers(0, 2**64, 50, dtype=np.uint64))
    for _ in range(40):
        index.add(rng.integers(0, 2**64, 7, dtype=np.uint64))
    assert len(index) == 330
    assert len(index.to_arrays()["runs"]) <= 9
    assert index.nbytes > 330 * 8


def test_many_threads_and_a_spawned_process_give_the_same_groups() -> None:
    hashes = planted(np.random.default_rng(1), 2000)
    expected = group_near(hashes, threads=1)
    with ThreadPoolExecutor(4) as pool:
        for labels in pool.map(lambda threads: group_near(hashes, threads=threads), (1, 2, 3, 2)):
            np.testing.assert_array_equal(labels, expected)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        np.testing.assert_array_equal(pool.submit(group_near, hashes).result(timeout=120), expected)


@pytest.mark.parametrize("hashes", [np.zeros((2, 2), np.uint64), np.zeros(3, np.int64), np.array(["ab"])])
def test_what_is_no_array_of_hashes_is_refused(hashes: np.ndarray) -> None:
    for find in (near_pairs, group_near, HammingIndex, HammingIndex(np.zeros(1, np.uint64)).match):
        with pytest.raises(ValueError, match="uint64"):
            find(hashes)


def test_bad_radii_variants_labels_and_stored_indexes_are_refused() -> None:
    hashes = np.arange(4, dtype=np.uint64)
    with pytest.raises(ValueError, match=r"\[0, 64\]"):
        group_near(hashes, radius=65)
    with pytest.raises(ValueError, match="variants"):
        near_pairs(hashes, variants=np.zeros((4, 8), np.uint64))
    with pytest.raises(ValueError, match="label"):
        HammingIndex(hashes).join(hashes, np.zeros(3, np.int64))
    with pytest.raises(ValueError, match="damaged"):
        HammingIndex.from_arrays(HammingIndex(hashes).to_arrays() | {"runs": np.array([3])})


@pytest.mark.parametrize("turned_too", [False, True])
def test_few_hashes_are_compared_without_kernels_to_the_same_pairs(turned_too: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    hashes = rng.integers(0, 64, 50).astype(np.uint64)
    variants = np.hstack([hashes[:, None], rng.integers(0, 64, (50, 7)).astype(np.uint64)]) if turned_too else None
    by_kernels = near_pairs(hashes, radius=2, variants=variants)
    monkeypatch.setattr(hamming, "_FEWER_THAN_COMPILING", 50)
    np.testing.assert_array_equal(near_pairs(hashes, radius=2, variants=variants), by_kernels)
    assert len(by_kernels)
