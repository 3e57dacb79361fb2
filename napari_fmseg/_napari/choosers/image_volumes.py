"""Which volumes can be segmented: the image layers of a viewer, channels of one volume taken together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from napari_fmseg._napari.layer_transform import fmseg_metadata
from napari_fmseg._napari.layers import geometry_of
from napari_fmseg.core.volume import Geometry
from napari_fmseg.io import suffix_of

__all__ = ["ImageVolume", "case_with", "cases_of", "channels_by_number", "is_preview", "why_no_volume"]


@dataclass(frozen=True, eq=False)
class ImageVolume:
    """One volume of a viewer: an image layer, or several that are its channels.

    Parameters
    ----------
    name
        What the user calls it.
    layers
        Its image layers, in the order of the channels.
    """

    name: str
    layers: tuple[Any, ...]

    @property
    def id(self) -> str:
        """The same as long as the layer lives, whatever it is called."""
        return str(self.layers[0].unique_id)

    @property
    def geometry(self) -> Geometry:
        """Where its voxels lie, as shown."""
        return geometry_of(self.layers[0])

    @property
    def meta(self) -> Mapping[str, Any]:
        """What its file said, such as the modality."""
        return dict(fmseg_metadata(self.layers[0]).get("meta") or {})

    @property
    def n_channels(self) -> int:
        """Channels over all layers; a layer with four axes holds several."""
        return sum(1 if layer.data.ndim == 3 else int(layer.data.shape[0]) for layer in self.layers)

    @property
    def is_complete(self) -> bool:
        """Whether all channels of its file are there; they are added one after the other."""
        return self.n_channels >= int(fmseg_metadata(self.layers[0]).get("n_channels", 1))


def cases_of(layers: Iterable[Any]) -> list[ImageVolume]:
    """Return the volumes among `layers`, in their order; colours, pictures and our own maps are none."""
    groups: list[list[Any]] = []
    for layer in layers:
        if not _is_volume(layer):
            continue
        home = next((group for group in groups if _belongs(layer, group)), None)
        if home is None:
            groups.append([layer])
        else:
            home.append(layer)
    return [_case(group) for group in groups]


def case_with(cases: Iterable[ImageVolume], layer: Any) -> ImageVolume | None:
    """Return the case that `layer` is part of, or None."""
    return next((case for case in cases if any(part is layer for part in case.layers)), None)


def is_preview(layer: Any) -> bool:
    """Return whether we made a layer for looking at only, such as the sample of a pretraining."""
    return "role" in fmseg_metadata(layer)


def why_no_volume(layers: Iterable[Any]) -> str:
    """Return why none of the images among `layers` is a volume, a sentence for each; nothing where there is no
    image.
    """
    from napari.layers import Image

    own = {"made", "role"}
    images = [layer for layer in layers if isinstance(layer, Image) and not own & fmseg_metadata(layer).keys()]
    return " ".join(dict.fromkeys(text for layer in images if (text := _refusal(layer))))


def _refusal(layer: Any) -> str:
    """Return why an image is no volume, or nothing."""
    shape = tuple(layer.data.shape)
    if layer.rgb:
        return f"“{layer.name}” is a picture in colours (RGB); a volume has intensities. Open the scan itself."
    if len(shape) not in (3, 4):
        return (f"“{layer.name}” has {len(shape)} axes; a volume has three (z, y, x), or four with channels. "
                "To open single slices as one volume, open their folder.")  # fmt: skip
    if min(shape[-3:]) == 1:
        return f"“{layer.name}” is a single slice; a volume has several. To open all slices of a scan, open its folder."
    return ""


def channels_by_number(cases: Sequence[ImageVolume], n: int, first: ImageVolume) -> tuple[ImageVolume, ...]:
    """Return the images that are the `n` channels of one volume by their names: ``scan_0000``, ``scan_0001``...

    Parameters
    ----------
    cases
        Volumes of one channel each.
    n
        Channels of the model.
    first
        One of them, which must be among the channels.

    Returns
    -------
    tuple
        In the order of the channels; empty where the names do not say so.
    """
    groups: dict[str, dict[int, ImageVolume]] = {}
    mine = ""
    for case in cases:
        found = _NUMBERED.fullmatch(_file_of(case))
        if found is None or case.n_channels != 1:
            continue
        groups.setdefault(found[1], {})[int(found[2])] = case
        mine = found[1] if case.id == first.id else mine
    group = groups.get(mine, {})
    return tuple(group[i] for i in range(n)) if sorted(group) == list(range(n)) else ()


_NUMBERED = re.compile(r"(.+)_(\d{4})")


def _file_of(case: ImageVolume) -> str:
    """Return the name of a case's file without its ending, or its own name."""
    path = Path(str(fmseg_metadata(case.layers[0]).get("source") or ""))
    stem = path.name.removesuffix(suffix_of(path))
    return str(path.with_name(stem)) if _NUMBERED.fullmatch(stem) else case.name


def _is_volume(layer: Any) -> bool:
    from napari.layers import Image

    ours = {"made", "role"} & fmseg_metadata(layer).keys()
    return isinstance(layer, Image) and not ours and not _refusal(layer)


def _belongs(layer: Any, group: list[Any]) -> bool:
    """Return whether `layer` is another channel of the volume whose channels so far are `group`."""
    ours, theirs = fmseg_metadata(layer), [fmseg_metadata(other) for other in group]
    n = ours.get("n_channels", 1)
    return bool(
        n > 1
        and len(group) < n
        and all(t.get("n_channels") == n and t.get("source") == ours.get("source") for t in theirs)
        and all(t.get("channel") != ours.get("channel") for t in theirs)
        and all(t.get("geometry") == ours.get("geometry") for t in theirs)
    )


def _case(group: list[Any]) -> ImageVolume:
    group = sorted(group, key=lambda layer: int(fmseg_metadata(layer).get("channel", 0)))
    name = str(group[0].name)
    return ImageVolume(name.removesuffix(" [0]") if len(group) > 1 else name, tuple(group))
