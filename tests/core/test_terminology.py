"""Classes of public models by the names in their data sets."""

from __future__ import annotations

import pytest

from napari_fmseg.core.terminology import label_info

RIBS = [f"rib_{side}_{number}" for side in ("left", "right") for number in range(1, 13)]
VERTEBRAE = [
    f"vertebrae_{part}{n}" for part, most in (("C", 7), ("T", 12), ("L", 5), ("S", 1)) for n in range(1, most + 1)
]
OTHERS = [
    "spleen",
    "kidney_right",
    "kidney_left",
    "gallbladder",
    "liver",
    "stomach",
    "pancreas",
    "adrenal_gland_right",
    "esophagus",
    "trachea",
    "small_bowel",
    "duodenum",
    "colon",
    "urinary_bladder",
    "prostate",
    "sacrum",
    "heart",
    "aorta",
    "pulmonary_vein",
    "brain",
    "skull",
    "lung_upper_lobe_left",
    "lung_middle_lobe_right",
    "lung_lower_lobe_right",
    "atrial_appendage_left",
    "sternum",
    "inferior_vena_cava",
    "superior_vena_cava",
    "portal_vein_and_splenic_vein",
    "iliac_artery_left",
    "iliac_vena_right",
    "humerus_left",
    "scapula_right",
    "clavicula_left",
    "femur_right",
    "hip_left",
    "spinal_cord",
    "gluteus_maximus_left",
    "autochthon_right",
    "iliopsoas_left",
    "thyroid_gland",
    "brachiocephalic_trunk",
    "common_carotid_artery_left",
]


@pytest.mark.parametrize("name", [*RIBS, *VERTEBRAE, *OTHERS])
def test_class_of_totalsegmentator_has_its_own_code(name):
    info = label_info(name, model="totalsegmentator")
    assert info.is_known
    assert info.kind.value.isdecimal()
    if name.endswith(("_left", "_right")) or name.startswith("rib_"):
        side = "Left" if "left" in name else "Right"
        assert [code.meaning for code in info.modifiers] == [side] or side.lower() in info.kind.meaning.lower()


def test_ribs_and_vertebrae_differ_in_their_codes():
    assert len({label_info(name).kind.value for name in RIBS}) == 12
    assert len({label_info(name).kind.value for name in VERTEBRAE}) == len(VERTEBRAE)
