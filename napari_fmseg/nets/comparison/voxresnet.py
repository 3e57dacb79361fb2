"""VoxResNet (Chen et al., NeuroImage 2018)."""

from __future__ import annotations

from torch import Tensor, nn

from napari_fmseg.nets.comparison.deepmedic import _CheckedNet

__all__ = ["VoxResNet"]


class VoxResNet(_CheckedNet):
    """Residual units at three resolutions, each of four levels answered at full size and added (Chen 2018).

    The paper leaves the width of the enlarged maps open; ours have `side` channels.

    Parameters
    ----------
    in_channels, n_classes
        Channels of the image; classes with background.
    width
        Channels of the units; half of them at full size. Published: 64.
    side
        Channels of the enlarged maps.
    """

    def __init__(self, in_channels: int = 1, n_classes: int = 2, width: int = 64, side: int = 16) -> None:
        super().__init__(in_channels, n_classes)
        half = max(width // 2, 1)
        first = (nn.Conv3d(in_channels, half, 3, padding=1), nn.BatchNorm3d(half), nn.ReLU())
        levels = [nn.Sequential(*first, nn.Conv3d(half, half, 3, padding=1))]
        for ins in (half, width, width):
            down = (nn.BatchNorm3d(ins), nn.ReLU(), nn.Conv3d(ins, width, 3, stride=2, padding=1))
            levels.append(nn.Sequential(*down, _VoxRes(width), _VoxRes(width)))
        self.levels = nn.ModuleList(levels)
        self.sides = nn.ModuleList(
            nn.Sequential(
                nn.ConvTranspose3d(half if step == 1 else width, side, step + 2, stride=step, padding=1),
                nn.ReLU(),
                nn.Conv3d(side, n_classes, 1),
            )
            for step in (1, 2, 4, 8)
        )

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return logits (b, n_classes, z, y, x); in training mode these and those of the four levels."""
        self.check(x)
        size = x.shape[2:]
        parts: list[Tensor] = []
        for level, side in zip(self.levels, self.sides, strict=True):
            x = level(x)
            parts.append(side(x)[:, :, : size[0], : size[1], : size[2]])
        total = parts[0] + parts[1] + parts[2] + parts[3]
        return (total, *parts) if self.training else total


class _VoxRes(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [nn.BatchNorm3d(width), nn.ReLU(), nn.Conv3d(width, width, 3, padding=1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.layers(x)
        return out
