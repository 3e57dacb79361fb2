"""Folds for cross-validation: every case validates once, and stays in its fold when cases are added."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from napari_fmseg.core.errors import InvalidRecipe
from napari_fmseg.datasets.case import Case
from napari_fmseg.datasets.projects.image_hash import image_hash
from napari_fmseg.io import read_volume

__all__ = ["folds"]


def folds(cases: Sequence[Case], n: int) -> tuple[tuple[Case, ...], ...]:
    """Split cases into `n` folds by what their images show.

    The fold of a case is the hash of its voxels modulo `n`: whatever its file is called, whatever other cases there
    are, and the same image under two names is never on both sides. Only as long as a fold would be empty, which happens
    with few cases, the largest fold gives it the image with the smallest hash.

    Parameters
    ----------
    cases
        With images that can be read; every one of them is read.
    n
        Number of folds, at least 2.

    Returns
    -------
    tuple
        `n` tuples, none of them empty; in each the cases in the order given.

    Raises
    ------
    InvalidRecipe
        If `n` is less than 2, or there are fewer different images.
    UnreadableVolume
        If an image cannot be read.
    """
    if n < 2:
        raise InvalidRecipe(f"Cross-validation needs at least 2 folds, not {n}.")
    images = [_image(case) for case in cases]
    places = {image: int(image, 16) % n for image in sorted(images)}
    if len(places) < n:
        raise InvalidRecipe(
            f"{len(cases)} cases with {len(places)} different images cannot make {n} folds. "
            "Add cases, or take fewer folds."
        )
    for fold in range(n):
        if fold not in places.values():
            groups = [[image for image, at in places.items() if at == other] for other in range(n)]
            places[max(groups, key=len)[0]] = fold
    return tuple(
        tuple(case for case, image in zip(cases, images, strict=True) if places[image] == fold) for fold in range(n)
    )


def _image(case: Case) -> str:
    """Hash the voxels of all channels of a case."""
    parts = sorted(image_hash(read_volume(path)) for path in case.images)
    return parts[0] if len(parts) == 1 else hashlib.sha256("".join(parts).encode()).hexdigest()
