"""Training by several processes ("ranks"), each with its share of every batch: what they must do together to be as one.

With equal weights and the same images a step of all ranks is the step of one process: losses are weighted by the size of the shares,
gradients averaged (by Lightning's strategy), batch normalisation takes its statistics from all shares. Only noise differs: every rank
draws its own.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm

from methods.training.outcome import TrainingError


@dataclass(frozen=True)
class Rank:
    """Which of how many processes this one is."""

    index: int = 0
    count: int = 1


def join_ranks(rank: Rank, *, host: str, port: int, attempt: int) -> None:
    """Meet the other ranks, over NCCL where there are GPUs and Gloo elsewhere; Lightning goes on with the group that it finds.

    Args:
        rank: this process.
        host, port: of torchrun's store.
        attempt: how often torchrun has started the ranks anew. Its store outlives them and holds the addresses of those that are gone:
            ranks that were started again waited for them, half of the time.
    """
    store = distributed.PrefixStore(f"attempt-{attempt}", distributed.TCPStore(host, port, is_master=False))
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank.index, world_size=rank.count)


def gather(tensor: Tensor, device: torch.device) -> Tensor:
    """Every rank's tensor, all of one shape (...) and kind, as (ranks, ...) on the CPU; of a process alone, its own.

    Args:
        tensor: this rank's, on the CPU.
        device: that the ranks compute on, and so the one that their backend can send from.
    """
    if not _has_company():
        return tensor[None]
    parts = [torch.empty_like(tensor, device=device) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, tensor.to(device))
    return torch.stack(parts).cpu()


def share_batch_norm(module: nn.Module) -> None:
    """Have all batch normalisations of a module take their statistics from the shares of all ranks; names and tensors stay as they are.

    torch's own `SyncBatchNorm` does this on GPUs only.
    """
    for part in module.modules():
        if isinstance(part, _BatchNorm) and not isinstance(part, _SharedBatchNorm):
            part.__class__ = _SharedBatchNorm


def check_buffers_agree(module: nn.Module) -> None:
    """Refuse a detector that learns something of its own share which is not shared with the other ranks.

    Raises:
        TrainingError: names detector and buffer.
    """
    for name, buffer in module.named_buffers():
        if not _has_company() or not buffer.is_floating_point():
            continue
        highest, lowest = buffer.detach().clone(), buffer.detach().clone()
        distributed.all_reduce(highest, distributed.ReduceOp.MAX)
        distributed.all_reduce(lowest, distributed.ReduceOp.MIN)
        if not torch.allclose(highest, lowest, rtol=1e-4, atol=1e-6):
            raise TrainingError(
                f"{type(module).__name__} cannot be trained by several processes: its {name} follows the images that one process sees; "
                "set `training: {processes: 1}`"
            )


class _SharedBatchNorm(_BatchNorm):
    """Batch normalisation (Ioffe & Szegedy 2015, algorithm 1) over the shares of all ranks; gradients flow between them too."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not _has_company():
            return super().forward(x)
        places = [axis for axis in range(x.ndim) if axis != 1]
        values = x.float()
        count = values.new_full((1,), values.numel() / values.shape[1])
        totals = all_reduce(torch.cat([values.sum(places), count]))  # (C + 1,)
        m = totals[-1].detach()
        mean = totals[:-1] / m  # (C,)
        each = (1, -1) + (1,) * (x.ndim - 2)
        centred = values - mean.view(each)
        variance = all_reduce(centred.square().sum(places)) / m  # (C,)
        self._follow(mean.detach(), variance.detach() * m / (m - 1).clamp(min=1))
        normalised = centred * (variance + self.eps).rsqrt().view(each)
        if self.affine:
            normalised = normalised * self.weight.view(each) + self.bias.view(each)
        return normalised.to(x.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        momentum = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance, momentum)

    def _check_input_dim(self, x: Tensor) -> None:
        """Was checked before by the class that this one took the place of."""


def _has_company() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
