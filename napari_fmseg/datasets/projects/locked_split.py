"""Which cases validate: decided once per image, by its content, and for ever.

The ledger maps the hash of an image to its role. Entries are only ever added. So a case keeps its role when it is
renamed, relabelled, added again under another name or copied with the project, and a number measured on the held-out
cases is of images that no version of the model has learned from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

__all__ = ["HELD_OUT", "LEAST", "TRAINING", "assign_roles", "is_locked", "n_held_out"]

TRAINING, HELD_OUT = "training", "held out"

LEAST = 4
"""Labelled images from which on some are held out; with fewer every one is needed to learn from."""

_ONE_IN = 5


def n_held_out(n_labelled: int) -> int:
    """Return how many of `n_labelled` images should be held out: one in five, and at least one of four."""
    return 0 if n_labelled < LEAST else max(1, n_labelled // _ONE_IN)


def is_locked(ledger: Mapping[str, str], labelled: Iterable[str]) -> bool:
    """Return whether there is a held-out image among the labelled ones."""
    return any(ledger.get(image) == HELD_OUT for image in labelled)


def assign_roles(
    ledger: Mapping[str, str],
    labelled: Iterable[str],
    *,
    learned: Iterable[str] = (),
    announced: Iterable[str] = (),
    unfit: Iterable[str] = (),
) -> dict[str, str]:
    """Assign a role to every labelled image that has none yet.

    Parameters
    ----------
    ledger
        Roles by hash; none of them changes.
    labelled
        Hashes of the images that have labels now.
    learned
        Hashes of images that some model of the project has learned from: they can never validate.
    announced
        Hashes of images that the data set itself names for validation.
    unfit
        Hashes of images that must not be drawn for validation; they get no role before a model learns from them.

    Returns
    -------
    dict
        The ledger with what is new. While fewer than four images are labelled and none is held out, images get no role
        unless a model learned from them.
    """
    labelled = set(labelled)
    roles = dict(ledger)
    for image in sorted(set(learned) - roles.keys()):
        roles[image] = TRAINING
    for image in sorted((set(announced) & labelled) - roles.keys()):
        roles[image] = HELD_OUT
    if len(labelled) < LEAST and not is_locked(roles, labelled):
        return roles
    missing = n_held_out(len(labelled)) - sum(roles.get(image) == HELD_OUT for image in labelled)
    for image in sorted(labelled - roles.keys() - set(unfit)):  # the hash is as good as a draw, and the same everywhere
        roles[image] = HELD_OUT if missing > 0 else TRAINING
        missing -= 1
    return roles
