"""Mean and deviation of every channel of a map with channels last, as instance norm wants them."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["ChannelStatistics", "rows_in_cache"]

_IN_CACHE = 1 << 17
"""Numbers that are worked on at once."""


def rows_in_cache(rows: Tensor, times: int = 1) -> tuple[Tensor, ...]:
    """Split rows (n, channels), each part small enough for the cache, also if it is made `times` as wide."""
    return torch.split(rows, max(1, _IN_CACHE // (times * rows.shape[1])))


class ChannelStatistics:
    """Mean and deviation of channels, gathered part by part."""

    def __init__(self) -> None:
        self._n = 0
        self._middle = self._total = self._squares = torch.zeros(())

    def update(self, values: Tensor) -> None:
        """Add values (..., channels)."""
        for part in rows_in_cache(values.reshape(-1, values.shape[-1])):
            if not self._n:  # near the mean, so that no digits are lost
                self._middle = part.float().mean(0)
            rows = part.float() - self._middle
            self._total = self._total + rows.sum(0).cpu().double()  # not every device has such numbers
            self._squares = self._squares + torch.linalg.vecdot(rows, rows, dim=0).cpu().double()
            self._n += len(rows)

    def factors(self, eps: float, weight: Tensor | None = None, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return by what an instance norm multiplies each channel and what it adds, float32."""
        off = self._total / self._n
        factor = (self._squares / self._n - off * off + eps) ** -0.5
        factor = factor if weight is None else factor * weight.cpu()
        summand = -(self._middle.cpu() + off) * factor
        summand = summand if bias is None else summand + bias.cpu()
        return factor.float().to(self._middle.device), summand.float().to(self._middle.device)
