"""The compiled part of the search for near hashes: tables sorted by key, and their buckets compared."""

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from methods.curation.forests import find_root, unite
from methods.curation.hashing import compiled

_HEAVY = 4096  # comparisons of two buckets from which on it pays to ask first who is joined already; also the longest bucket laid flat
_FLAT = 2048  # hashes laid side by side: they stay in the first cache
_LINE = 8  # hashes in a line of cache
PADDING = 8  # hashes that are read at once, also behind the last one


@intrinsic
def _generate_count(typing_context: Any, value: Any) -> Any:
    """The processor's own instruction: numba knows no numpy.bitwise_count."""
    return types.int64(types.uint64), lambda context, builder, signature, arguments: builder.ctpop(arguments[0])


@intrinsic
def _generate_prefetch(typing_context: Any, hashes: Any, place: Any) -> Any:
    """Ask for a line of memory before it is needed."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, value=arguments[0]).data
        line = builder.bitcast(builder.gep(data, [arguments[1]]), ir.IntType(8).as_pointer())
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [line.type, number, number, number])
        prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(prefetch, [line, number(0), number(3), number(1)])  # to read, keep, data
        return context.get_dummy_value()

    return types.void(hashes, types.int64), generate


_count_bits: Any = _generate_count  # their first argument is numba's, which no type checker knows
_prefetch: Any = _generate_prefetch


@compiled
def deal_bits(deal: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """(n,) uint64: hashes with each byte replaced by `deal` (8, 256) uint64 of it, which says where its bits go."""
    dealt = np.zeros(len(hashes), np.uint64)
    for i in range(len(hashes)):
        value = hashes[i]
        for byte in range(8):
            dealt[i] |= deal[byte, (value >> np.uint64(8 * byte)) & np.uint64(255)]
    return dealt


@compiled
def sort_by_key(hashes: np.ndarray, rows: np.ndarray, shift: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counting sort, stable."""
    low, mask = np.uint64(shift), np.uint64((1 << width) - 1)
    start = np.zeros((1 << width) + 1, np.int32)
    for i in range(len(hashes)):
        start[np.int64((hashes[i] >> low) & mask) + 1] += 1
    for key in range(1 << width):
        start[key + 1] += start[key]
    free = start[:-1].copy()
    by_key, row_of = np.zeros(len(hashes) + PADDING, np.uint64), np.empty(len(hashes), np.int32)
    for i in range(len(hashes)):
        place = np.int64((hashes[i] >> low) & mask)
        by_key[free[place]], row_of[free[place]] = hashes[i], rows[i]
        free[place] += 1
    return by_key, row_of, start


@compiled
def first_of_each(hashes: np.ndarray) -> np.ndarray:
    """(n,) int64 the first place of the same hash; an open-addressed table, Fibonacci hashing."""
    bits = 4
    while (1 << bits) < 2 * len(hashes):
        bits += 1
    table = np.full(1 << bits, -1, np.int32)
    first = np.empty(len(hashes), np.int64)
    for i in range(len(hashes)):
        slot = np.int64((hashes[i] * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - bits))
        while table[slot] >= 0 and hashes[table[slot]] != hashes[i]:
            slot = (slot + 1) & ((1 << bits) - 1)
        if table[slot] < 0:
            table[slot] = i
        first[i] = table[slot]
    return first


@compiled
def _unite_crowds(hashes: np.ndarray, rows: np.ndarray, parent: np.ndarray, a0: int, a1: int, b0: int, b1: int, radius: int) -> None:
    """Join the near ones of two large buckets, or of one with itself; who is joined with all of the other bucket is not compared."""
    roots = np.empty(b1 - b0, np.int64)
    stale, uniform = True, False
    for a in range(a0, a1):
        if stale:
            uniform = True
            for b in range(b0, b1):
                roots[b - b0] = find_root(parent, rows[b])
                uniform &= roots[b - b0] == roots[0]
            stale = False
        root = find_root(parent, rows[a])
        if uniform and root == roots[0]:
            continue
        for b in range(a + 1 if a0 == b0 else b0, b1):
            if _count_bits(hashes[a] ^ hashes[b]) <= radius and roots[b - b0] != root:
                unite(parent, rows[a], rows[b])
                root = find_root(parent, rows[a])
                stale = True


@compiled
def _any_near(value: np.uint64, hashes: np.ndarray, count: int, radius: int) -> bool:
    """Whether one of the first hashes is near; counted without a branch, because such a loop runs on vectors."""
    near = 0
    for k in range(count):
        near += _count_bits(value ^ hashes[k]) <= radius
    return near > 0


@compiled
def _unite_buckets(
    hashes: np.ndarray,
    rows: np.ndarray,
    parent: np.ndarray,
    a0: int,
    a1: int,
    flat: np.ndarray,
    count: int,
    buckets: np.ndarray,
    radius: int,
) -> None:
    """Join the hashes a0…a1 with the near ones of other buckets (k, 2), which lie side by side in the flat list."""
    for a in range(a0, a1):
        if _any_near(hashes[a], flat, count, radius):
            for i in range(len(buckets)):
                for b in range(buckets[i, 0], buckets[i, 1]):
                    if _count_bits(hashes[a] ^ hashes[b]) <= radius:
                        unite(parent, rows[a], rows[b])


@compiled
def _lay(hashes: np.ndarray, b0: int, b1: int, flat: np.ndarray, count: int) -> int:
    """Lay a bucket into the flat list. Most hold a few hashes, and reading always `PADDING` of them mispredicts no branch."""
    for k in range(PADDING):
        flat[count + k] = hashes[b0 + k]
    for k in range(PADDING, b1 - b0):
        flat[count + k] = hashes[b0 + k]
    return count + b1 - b0


@compiled
def _ask_for(hashes: np.ndarray, start: np.ndarray, masks: np.ndarray, key: int) -> None:
    """Have the next key's buckets on the way while those of this one are compared: they lie too scattered for the processor's guess."""
    for m in range(len(masks)):
        place = np.int64(start[key ^ masks[m]])
        _prefetch(hashes, place)
        _prefetch(hashes, place + _LINE)


@compiled
def self_join(
    hashes: np.ndarray,
    rows: np.ndarray,
    start: np.ndarray,
    masks: np.ndarray,
    first: np.ndarray,
    radius: int,
    parent: np.ndarray,
    worker: int,
    workers: int,
) -> None:
    """Join the near ones of a table: each bucket with itself and with those whose key differs by a mask; each two buckets meet once."""
    flat, buckets = np.empty(_FLAT + _HEAVY + PADDING, np.uint64), np.empty((_FLAT, 2), np.int32)
    for block in range(worker, (len(start) + 62) // 64, workers):  # blocks of 64: threads share the load, neighbours the cache
        for key in range(64 * block, min(64 * block + 64, len(start) - 1)):
            a0, a1 = start[key], start[key + 1]
            if a0 == a1:
                continue
            for bit in range(len(first) - 2):
                if not ((key + 1) >> bit) & 1 and key + 1 < len(start) - 1:
                    _ask_for(hashes, start, masks[first[bit + 1] : first[bit + 2]], key + 1)
            _unite_bucket(hashes, rows, parent, a0, a1, radius)
            count = met = 0
            for bit in range(len(first) - 2):
                if (key >> bit) & 1:  # the other key is the smaller one: met from there
                    continue
                for m in range(first[bit + 1], first[bit + 2]):
                    b0, b1 = start[key ^ masks[m]], start[(key ^ masks[m]) + 1]
                    if (a1 - a0) * (b1 - b0) >= _HEAVY:
                        _unite_crowds(hashes, rows, parent, a0, a1, b0, b1, radius)
                        continue
                    count, buckets[met, 0], buckets[met, 1] = _lay(hashes, b0, b1, flat, count), b0, b1
                    met += 1
                    if count > _FLAT or met == _FLAT:
                        _unite_buckets(hashes, rows, parent, a0, a1, flat, count, buckets[:met], radius)
                        count = met = 0
            _unite_buckets(hashes, rows, parent, a0, a1, flat, count, buckets[:met], radius)


@compiled
def _unite_bucket(hashes: np.ndarray, rows: np.ndarray, parent: np.ndarray, a0: int, a1: int, radius: int) -> None:
    if (a1 - a0) ** 2 >= _HEAVY:
        _unite_crowds(hashes, rows, parent, a0, a1, a0, a1, radius)
        return
    for a in range(a0, a1):
        for b in range(a + 1, a1):
            if _count_bits(hashes[a] ^ hashes[b]) <= radius:
                unite(parent, rows[a], rows[b])


@compiled
def _met_before(difference: np.uint64, parts: np.ndarray) -> bool:
    """Whether an earlier part than the last one finds this pair too."""
    for i in range(len(parts) - 1):
        key = (difference >> np.uint64(parts[i, 0])) & np.uint64((1 << parts[i, 1]) - 1)
        if _count_bits(key) <= parts[i, 2]:
            return True
    return False


@compiled
def match_buckets(
    queries: np.ndarray,
    query_rows: np.ndarray,
    hashes: np.ndarray,
    rows: np.ndarray,
    start: np.ndarray,
    masks: np.ndarray,
    parts: np.ndarray,
    radius: int,
    earlier: bool,
    parent: np.ndarray,
    offset: int,
) -> np.ndarray:
    """(m, 2) rows of near queries and hashes, each pair by the first part that finds it; or none, but united where there is a parent."""
    low, mask = np.uint64(parts[-1, 0]), np.uint64((1 << parts[-1, 1]) - 1)
    flat, buckets = np.empty(_FLAT + _HEAVY + PADDING, np.uint64), np.empty((_FLAT, 2), np.int32)
    found, total = np.empty((1024, 2), np.int64), 0
    for i in range(len(queries)):
        value, row = queries[i], query_rows[i]
        key = np.int64((value >> low) & mask)
        if i + 1 < len(queries):
            _ask_for(hashes, start, masks, np.int64((queries[i + 1] >> low) & mask))
        count = met = 0
        for m in range(len(masks)):
            b0, b1 = start[key ^ masks[m]], start[(key ^ masks[m]) + 1]
            while b1 - b0 > _HEAVY:
                if _any_near(value, hashes[b0:], _HEAVY, radius):
                    one = np.array([[b0, b0 + _HEAVY]], np.int32)
                    found, total = _take(value, row, hashes, rows, one, parts, radius, earlier, parent, offset, found, total)
                b0 += _HEAVY
            count, buckets[met, 0], buckets[met, 1] = _lay(hashes, b0, b1, flat, count), b0, b1
            met += 1
            if count > _FLAT or met == _FLAT:
                if _any_near(value, flat, count, radius):
                    found, total = _take(value, row, hashes, rows, buckets[:met], parts, radius, earlier, parent, offset, found, total)
                count = met = 0
        if _any_near(value, flat, count, radius):
            found, total = _take(value, row, hashes, rows, buckets[:met], parts, radius, earlier, parent, offset, found, total)
    return found[:total]


@compiled
def _take(
    value: np.uint64,
    row: int,
    hashes: np.ndarray,
    rows: np.ndarray,
    buckets: np.ndarray,
    parts: np.ndarray,
    radius: int,
    earlier: bool,
    parent: np.ndarray,
    offset: int,
    found: np.ndarray,
    total: int,
) -> tuple[np.ndarray, int]:
    """Keep the near ones of some buckets (k, 2): united where there is a parent, else listed; the list grows as needed."""
    for i in range(len(buckets)):
        for b in range(buckets[i, 0], buckets[i, 1]):
            difference = value ^ hashes[b]
            if _count_bits(difference) > radius or (earlier and rows[b] >= row):
                continue
            if len(parent):
                unite(parent, row, rows[b] + offset)
            elif not _met_before(difference, parts):
                if total == len(found):
                    longer = np.empty((2 * total, 2), np.int64)
                    longer[:total] = found
                    found = longer
                found[total, 0], found[total, 1] = row, rows[b]
                total += 1
    return found, total
