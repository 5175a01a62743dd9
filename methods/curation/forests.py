"""Which things belong together, as a forest of parents: compiled union and find."""

import numpy as np

from methods.curation.hashing import compiled


@compiled
def find_root(parent: np.ndarray, node: int) -> int:
    """The root of a node in a forest (n,) int64 of parents; the way there is halved for the next time."""
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


@compiled
def unite(parent: np.ndarray, i: int, j: int) -> None:
    """The smaller root becomes the root of both, so that a root is the first of its component."""
    i, j = find_root(parent, i), find_root(parent, j)
    if i < j:
        parent[j] = i
    else:
        parent[i] = j


@compiled
def unite_all(parent: np.ndarray, left: np.ndarray, right: np.ndarray) -> None:
    """Unite the trees of each pair in a forest `parent` (n,) int32, in place."""
    for i in range(len(left)):
        unite(parent, left[i], right[i])


@compiled
def unite_trees(parent: np.ndarray, tree: np.ndarray, name: np.ndarray) -> None:
    """Take over what is joined in another forest, whose i is called name[i] here."""
    for i in range(len(tree)):
        if tree[i] != i:
            unite(parent, name[i], name[tree[i]])


@compiled
def number_trees(parent: np.ndarray) -> np.ndarray:
    """(n,) int64 labels by first appearance; roots come first of their component."""
    labels = np.empty(len(parent), np.int64)
    count = 0
    for i in range(len(parent)):
        root = find_root(parent, i)
        if root == i:
            labels[i] = count
            count += 1
        else:
            labels[i] = labels[root]
    return labels
