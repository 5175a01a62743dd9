"""The greedy selection against a slow twin."""

import torch

from methods.detectors.coreset import select_coreset


def test_coreset_is_the_obvious_greedy_one() -> None:
    vectors = torch.rand(60, 5, generator=torch.Generator().manual_seed(3))
    chosen = select_coreset(vectors, size=12, generator=torch.Generator().manual_seed(0)).tolist()
    slow = [chosen[0]]
    while len(slow) < 12:
        slow.append(int(torch.cdist(vectors, vectors[slow]).amin(1).argmax()))
    assert chosen == slow
    assert select_coreset(vectors, size=99, generator=torch.Generator()).tolist() == list(range(60))
    same = select_coreset(torch.zeros(5, 2), size=3, generator=torch.Generator().manual_seed(0)).tolist()
    assert len(set(same)) == 3
