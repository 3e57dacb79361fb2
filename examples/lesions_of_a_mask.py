"""List the lesions of a mask with volume and uptake, and compare them with the truth lesion by lesion.

    python examples/lesions_of_a_mask.py

Invented PET values stand in for a scan: use `fm.read_volume("pet_folder")` (SUV) and `fm.read_labels("mask.nii.gz")`.
"""

import numpy as np

import napari_fmseg as fm
from napari_fmseg.evaluation.lesions import lesions

geometry = fm.Geometry.from_spacing((40, 64, 64), (3.0, 2.0, 2.0))
suv = np.random.default_rng(0).gamma(2.0, 0.4, geometry.shape).astype(np.float32)
mask = np.zeros(geometry.shape, np.uint8)
mask[8:14, 10:18, 10:18] = 1
mask[24:27, 40:44, 40:46] = 1
suv[mask > 0] += 6

truth = mask.copy()
truth[24:27] = 0  # the second lesion is a false one
truth[34:37, 20:25, 20:25] = 1  # and this one was missed

found = fm.LabelMap(mask, geometry, names={1: "tumour"})
for lesion in lesions(found, fm.Volume(suv, geometry)).lesions:
    print(lesion)
print(fm.score_lesions(found, fm.LabelMap(truth, geometry, names={1: "tumour"})))
