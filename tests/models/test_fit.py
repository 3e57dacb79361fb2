"""Volumes that are not like those that a model was trained on are told of, in plain sentences; others are not."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from napari_fmseg.core.errors import ModelMismatch
from napari_fmseg.core.events import DOES_NOT_FIT, Warned
from napari_fmseg.core.volume import NO_SPACING, Geometry, Volume
from napari_fmseg.datasets.phantom import phantom_ct
from napari_fmseg.models.card import Intensity, ModelCard
from napari_fmseg.models.fit import Fit, find_misfits, rank
from napari_fmseg.models.measures import measure_volume, summarise
from napari_fmseg.models.weights import Model
from napari_fmseg.nets import build
from napari_fmseg.pipelines import SegmentOptions, segment

KINDS = ("ct-head", "ct-abdomen", "mr-head", "mr-crop", "mr-heart", "pet-body")
STATED = {"CT": "CT", "MR": "MR", "PET": "PT"}


def misfits(volume: Volume, card: ModelCard):
    return find_misfits(measure_volume(volume), volume.meta, card)


def kinds(volume: Volume, card: ModelCard) -> list[str]:
    return [misfit.kind for misfit in misfits(volume, card)]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", KINDS)
def test_another_patient_of_the_same_kind_fits(body_scan: Any, body_card: Any, kind: str, seed: int) -> None:
    card = body_card(kind)
    assert misfits(body_scan(kind, seed), card) == ()
    assert misfits(body_scan(kind, seed, modality=STATED[card.modality]), card) == ()


@pytest.mark.parametrize("stated", [False, True], ids=["nifti", "dicom"])
@pytest.mark.parametrize(("kind", "model"), [(a, b) for a in KINDS for b in KINDS if a != b])
def test_a_scan_of_another_kind_does_not_fit(
    body_scan: Any, body_card: Any, kind: str, model: str, stated: bool
) -> None:
    meta = {"modality": STATED[kind[:2].upper().replace("PE", "PET")]} if stated else {}
    found = misfits(body_scan(kind, **meta), body_card(model))
    assert found
    assert found[0].grave
    assert model in found[0].text
    assert "trained on" in found[0].text


def test_few_training_cases_make_wider_limits(body_scan: Any, body_card: Any) -> None:
    larger = dataclasses.replace(
        body_scan("mr-head"), geometry=Geometry.from_spacing(body_scan("mr-head").geometry.shape, (6.0,) * 3)
    )
    assert kinds(larger, body_card("mr-head", 1)) == []
    assert kinds(larger, body_card("mr-head", 60)) == ["region"]


def test_what_the_file_states_comes_first_and_says_enough(body_scan: Any, body_card: Any) -> None:
    assert kinds(body_scan("ct-head", modality="CT"), body_card("mr-crop")) == ["modality"]
    (told,) = misfits(body_scan("mr-head", modality="MR"), body_card("ct-head"))
    assert told.text == "The volume is MR; ct-head was trained on CT. Do not trust the result: choose a model for MR."


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda hu: hu + 1024, "values"),  # as it is stored, without the rescale intercept
        (lambda hu: (hu.clip(-160, 240) + 160) * 255 / 400, "values"),  # a window of it
        (lambda hu: hu / 1000.0, "values"),
    ],
    ids=["offset", "window", "scaled"],
)
def test_a_ct_that_is_not_in_hu_is_told_of(body_scan: Any, body_card: Any, change, kind: str) -> None:
    volume = body_scan("ct-head")
    data = change(volume.data.astype(np.float32))
    assert kinds(Volume(data, volume.geometry), body_card("ct-head")) == [kind]


def test_a_part_of_a_ct_without_air_is_still_a_ct(body_scan: Any, body_card: Any) -> None:
    volume = body_scan("ct-abdomen")
    middle = tuple(slice(n // 2 - 8, n // 2 + 8) for n in volume.geometry.shape)
    data = volume.data[middle].copy()
    data[:3] = -105  # fat
    part = Volume(data, volume.geometry.crop(middle))
    assert "values" not in kinds(part, body_card("ct-abdomen"))
    assert "modality" in kinds(part, body_card("mr-crop"))


def test_values_on_another_scale_are_told_where_the_model_takes_them_as_they_are(
    body_scan: Any, body_card: Any
) -> None:
    volume, card = body_scan("pet-body"), body_card("pet-body")
    stored = Volume(volume.data * 5000, volume.geometry)  # Bq/ml
    (told,) = misfits(stored, card)
    assert told.kind == "values"
    assert "99.5th percentile" in told.text or "median" in told.text
    assert misfits(stored, dataclasses.replace(card, intensity=Intensity("percentile"))) == ()


def test_thick_slices_are_worse_and_very_thick_ones_do_not_fit(body_scan: Any, body_card: Any) -> None:
    card = body_card("ct-abdomen")
    (thick,) = misfits(body_scan("ct-abdomen", spacing=(7, 4, 4)), card)
    (thicker,) = misfits(body_scan("ct-abdomen", spacing=(9, 4, 4)), card)
    assert (thick.kind, thick.grave, thicker.grave) == ("spacing", False, True)
    assert "slices are 7 mm apart" in thick.text
    assert misfits(body_scan("ct-abdomen", spacing=(4, 2, 2)), card) == ()  # finer ones are resampled


def test_finer_voxels_are_told_of_where_the_model_takes_them_as_they_are(body_scan: Any, body_card: Any) -> None:
    windows = dataclasses.replace(body_card("mr-crop"), pipeline="single", settings={"window": (16, 16, 16)})
    fine = body_scan("mr-crop", spacing=(0.4, 0.4, 0.4))
    assert kinds(fine, windows) == ["spacing"]
    assert kinds(fine, dataclasses.replace(windows, settings={"spacing_mm": (1.0, 1.0, 1.0)})) == []


def test_without_a_spacing_nothing_is_told_in_mm(body_scan: Any, body_card: Any) -> None:
    volume = body_scan("ct-abdomen", spacing=(9, 4, 4), **{NO_SPACING: True})
    assert misfits(volume, body_card("ct-abdomen")) == ()


def test_a_number_of_channels_is_told_with_their_names(body_scan: Any, body_card: Any) -> None:
    volume = body_scan("mr-head")
    two = Volume(np.stack([volume.data] * 2), volume.geometry)
    (told,) = misfits(two, body_card("mr-head"))
    assert told.kind == "channels"
    assert "2 channels" in told.text
    assert "(MR)" in told.text


@pytest.mark.parametrize(
    ("stated", "part", "fits"),
    [
        ("PROSTATE", "heart, short axis", False),
        ("HEAD", "heart, short axis", False),
        ("ABDOMEN", "heart, short axis", True),  # neighbours are often mistaken
        ("CHEST", "heart, short axis", True),
        ("BRAIN", "head, cropped around one hippocampus", True),
        ("CHESTABDPELVIS", "head and neck", True),
        ("KNEE", "whole body", True),
        ("PARTIALBODY", "heart, short axis", True),
        ("LEG", "head and neck", False),
    ],
)
def test_the_part_of_the_body_that_the_file_states_counts_unless_it_is_a_neighbour(
    body_scan: Any, body_card: Any, stated: str, part: str, fits: bool
) -> None:
    card = dataclasses.replace(body_card("mr-heart"), body_part=part)
    assert (kinds(body_scan("mr-heart", body_part=stated), card) == []) is fits


def test_a_model_of_phantoms_is_for_phantoms_alone(body_card: Any) -> None:
    phantoms = [phantom_ct(seed, spacing=(6.0, 6.0, 6.0))[0] for seed in range(4)]
    card = body_card("ct-abdomen", training_data=summarise(measure_volume(one) for one in phantoms[:3]))
    assert card.training_data.is_of_phantoms
    assert misfits(phantoms[3], card) == ()
    patient = Volume(phantoms[3].data, phantoms[3].geometry)
    assert kinds(patient, card) == ["phantom"]


def test_a_card_that_says_nothing_of_its_training_data_is_compared_in_what_it_says(
    body_scan: Any, body_card: Any
) -> None:
    card = body_card("mr-head", training_data=None, spacing_mm=(4.0, 4.0, 4.0))
    assert misfits(body_scan("mr-head"), card) == ()
    assert kinds(body_scan("ct-head"), card) == ["modality"]
    assert kinds(body_scan("mr-crop"), card) == ["spacing"]
    assert kinds(body_scan("mr-head"), body_card("ct-head", training_data=None)) == ["values"]


def test_models_are_ranked_by_what_speaks_against_them_and_then_by_dice(body_scan: Any, body_card: Any) -> None:
    better = dataclasses.replace(body_card("ct-head"), name="better", scores={"labels": {"organ": 0.95}})
    unmeasured = dataclasses.replace(body_card("ct-head"), name="a", scores={})
    cards = [body_card(kind) for kind in KINDS] + [unmeasured, better]
    volume = body_scan("ct-head")
    ranked = rank(Fit(card, misfits(volume, card)) for card in cards)
    assert [fit.card.name for fit in ranked[:3]] == ["better", "ct-head", "a"]
    assert [fit.is_usable for fit in ranked] == [True] * 3 + [False] * 5


@pytest.fixture
def model(body_card: Any) -> Model:
    import torch

    card = body_card("mr-head")
    spec = card.nets["consensus"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = build(spec.network, **spec.kwargs).eval()
    return Model(card, {"consensus": net}, torch.device("cpu"))


def test_segment_tells_what_does_not_fit_before_anything_else(body_scan: Any, model: Model) -> None:
    volume = body_scan("ct-head", spacing=(12, 12, 12), warnings=["The file is odd."])
    first, second, *_ = segment(volume, model)
    assert isinstance(first, Warned)
    assert first.code == DOES_NOT_FIT + "modality"
    assert "as a CT in HU has" in first.text
    assert second == Warned("The file is odd.", "from-the-file")
    assert not [event for event in segment(body_scan("mr-head"), model) if isinstance(event, Warned)]


def test_strict_refuses_what_does_not_fit(body_scan: Any, model: Model) -> None:
    with pytest.raises(ModelMismatch, match="as a CT in HU has"):
        next(segment(body_scan("ct-head"), model, SegmentOptions(strict=True)))
    assert list(segment(body_scan("mr-head"), model, SegmentOptions(strict=True)))


def test_whether_a_volume_fits_is_found_without_torch() -> None:
    look = (
        "import sys; from napari_fmseg.models import fit, measures, registry; "
        "from napari_fmseg.datasets.phantom import phantom_ct; "
        "v, _ = phantom_ct(1, spacing=(12.0, 12.0, 12.0)); m = measures.measure_volume(v); "
        "print([len(fit.find_misfits(m, v.meta, c)) for c in registry.list_models()], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("False")
