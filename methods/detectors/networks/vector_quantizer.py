"""The codebook of a VQ-VAE, learnt by moving averages (van den Oord et al. 2017, section 3.2 and appendix A.1)."""

import torch
from torch import Tensor, distributed, nn


class VectorQuantizer(nn.Module):
    """Replaces every vector by the nearest of K codes; in training mode the codes follow the vectors they replace.

    With n_i vectors nearest to code e_i in a batch, which add up to s_i (appendix A.1, eq. 6-8, with γ the decay):
        N_i ← γ N_i + (1 − γ) n_i,   m_i ← γ m_i + (1 − γ) s_i,   e_i ← m_i / Ñ_i,
    where Ñ_i = (N_i + ε) / (Σ N + K ε) Σ N keeps what is never used from a division by 0 (the authors' code). N_i begins at 1 and m_i at
    e_i: where N_i begins at 0, as in MONAI's, the first step flings an unused code to a length of 1 / ε.

    Codes that hardly anything is near to are put on random vectors of the batch (Dhariwal et al. 2020, "Jukebox", section 3.1): without
    that an untrained encoder, whose vectors lie close together, ends up with a handful of codes in use.
    """

    codes: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, *, codes: int, dims: int, decay: float, restart_below: float, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.decay, self.restart_below, self.epsilon = decay, restart_below, epsilon
        self.register_buffer("codes", torch.randn(codes, dims))  # e (K, d)
        self.register_buffer("counts", torch.ones(codes))  # N (K,)
        self.register_buffer("sums", self.codes.clone())  # m (K, d)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Quantise vectors (N, d, H, W).

        Returns:
            Their codes, of the same shape, with the gradient passed straight through to z; and |z − e|² averaged over all components,
            a scalar that moves z, not the codes.
        """
        nearest = self.nearest(z)
        e = self.codes[nearest].permute(0, 3, 1, 2).to(z.dtype)  # (N, d, H, W)
        if self.training:
            self._follow(z.detach(), nearest)
        return z + (e - z).detach(), (z - e).square().mean()

    @torch.no_grad()
    def nearest(self, z: Tensor) -> Tensor:
        """Numbers (N, H, W) of the codes nearest to vectors (N, d, H, W)."""
        with torch.autocast(z.device.type, enabled=False):
            flat = z.float().permute(0, 2, 3, 1)  # (N, H, W, d)
            return (self.codes.square().sum(1) - 2 * flat @ self.codes.T).argmin(-1)  # |z|² is the same for all codes

    @torch.no_grad()
    def _follow(self, z: Tensor, nearest: Tensor) -> None:
        """Move the codes; with the vectors of all processes where training has several. Restarts draw from torch's global generator."""
        flat = z.float().permute(0, 2, 3, 1).flatten(0, 2)
        n = torch.bincount(nearest.flatten(), minlength=len(self.codes)).to(flat.dtype)
        s = torch.zeros_like(self.sums).index_add_(0, nearest.flatten(), flat)
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(n)
            distributed.all_reduce(s)
        self.counts.lerp_(n, 1 - self.decay)
        self.sums.lerp_(s, 1 - self.decay)
        is_idle = self.counts < self.restart_below
        at = flat[torch.randint(len(flat), (len(self.codes),), device=flat.device)]  # (K, d)
        if distributed.is_available() and distributed.is_initialized():
            distributed.broadcast(at, 0)  # every process draws another
        self.counts.masked_fill_(is_idle, 1.0)
        self.sums.copy_(torch.where(is_idle[:, None], at, self.sums))
        total = self.counts.sum()
        smoothed = (self.counts + self.epsilon) / (total + len(self.codes) * self.epsilon) * total
        self.codes.copy_(self.sums / smoothed[:, None])
