"""Connected components, with scipy's labelling as the oracle."""

import itertools

import numpy as np
import pytest
from scipy import ndimage

from napari_fmseg.core.components import components

STRUCTURES = {6: ndimage.generate_binary_structure(3, 1), 26: np.ones((3, 3, 3))}


def same_partition(ours, theirs):
    """Return whether two numberings are the same but for the order of the numbers."""
    pairs = set(zip(ours.ravel().tolist(), theirs.ravel().tolist(), strict=True))
    return len(pairs) == len(np.unique(ours)) == len(np.unique(theirs))


@pytest.mark.parametrize("neighbours", [6, 26])
@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int32])
def test_every_mask_of_a_few_voxels_agrees_with_scipy(neighbours, dtype):
    for shape in [(5, 1, 1), (1, 5, 1), (1, 1, 5), (3, 3, 1), (1, 3, 3), (2, 2, 2)]:
        for bits in itertools.product([0, 1], repeat=int(np.prod(shape))):
            mask = np.array(bits).reshape(shape).astype(dtype)
            expected, n = ndimage.label(mask, STRUCTURES[neighbours])
            found = components(mask, neighbours)
            assert found.max() == n
            assert same_partition(found, expected)


@pytest.mark.parametrize("neighbours", [6, 26])
@pytest.mark.parametrize("shape", [(3, 3, 3), (3, 5, 7), (9, 9, 9), (4, 6, 5), (11, 1, 3)])
def test_single_voxels_as_dense_as_they_can_stand_are_all_counted(neighbours, shape):
    mask = np.zeros(shape, bool)
    mask[::2, ::2, ::2] = True
    assert components(mask, neighbours).max() == mask.sum()
