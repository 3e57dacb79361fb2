"""Stages become layers in their order, a new run replaces the old, and nobody's edits are lost."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("napari")
from napari.components import ViewerModel

from napari_fmseg._napari.layers import KEY, as_filed, image_layers, labels_of
from napari_fmseg._napari.segment.run_request import EditedLayers, Request, Run, StageLayer, check_sum, run_to_layers
from napari_fmseg._napari.segment.stage_layers import StageLayers, toggle_stages
from napari_fmseg.core.events import Event, StageResult
from napari_fmseg.core.volume import Geometry, LabelMap, Volume
from napari_fmseg.pipelines import SegmentOptions

TURN = np.linalg.qr(np.eye(3) + 0.1 * np.random.default_rng(3).standard_normal((3, 3)))[0]
TURN = TURN * np.sign(np.diag(TURN))
GRID = Geometry.from_spacing((6, 8, 10), (3.0, 2.0, 1.0), (5, -6, 7), TURN @ np.diag([1, -1, 1]))


class Stand:
    """An engine whose stages are made by hand: every one of another grid."""

    def __init__(self, value: int = 1, stages: tuple[str, ...] = ("consensus", "attention map", "attention")) -> None:
        self.value, self.stages = value, stages

    def segment(self, volume: Volume, model_name: str, options: SegmentOptions) -> Iterator[Event]:
        for stage in self.stages:
            grid = volume.geometry.resize((3, 4, 5))
            output: Volume = Volume(np.full(grid.shape, 0.5, np.float32), grid)
            if stage != "attention map":
                output = LabelMap(np.full(grid.shape, self.value, np.uint8), grid, {}, {1: "liver", 2: "spleen"})
            yield StageResult(stage, output, 0.1)
        data = np.full(volume.geometry.shape, self.value, np.uint8)
        data[0] = 0
        yield StageResult("labels", LabelMap(data, volume.geometry, {}, {1: "liver", 2: "spleen"}), 0.1)

    def cancel(self) -> None: ...

    def close(self) -> None: ...


@pytest.fixture
def viewer() -> ViewerModel:
    viewer = ViewerModel()
    rng = np.random.default_rng(1)
    for data, options, _ in image_layers(Volume(rng.standard_normal(GRID.shape).astype("float32"), GRID), "scan"):
        viewer.add_image(data, **options)
    return viewer


def run(viewer: ViewerModel, engine: Stand, region: str = "", model: str = "m") -> StageLayers:
    image = viewer.layers["scan"]
    who = Run(str(image.unique_id), model, region)
    layers = StageLayers(viewer, who)
    told = image.metadata[KEY]
    request = Request(
        who, "scan", (image.data,), told["geometry"], {}, told["filed"], "", SegmentOptions(), None, layers.before()
    )
    for event in run_to_layers(request, engine):
        if isinstance(event, EditedLayers):
            layers.mark_edited(event.layers)
        elif isinstance(event, StageLayer):
            layers.place(event)
    layers.finish()
    return layers


def names(viewer: ViewerModel) -> list[str]:
    return [layer.name for layer in viewer.layers]


EXPECTED = ["scan", "scan · m · consensus", "scan · m · attention map", "scan · m · attention", "scan · m · labels"]


def test_stages_lie_over_the_image_in_their_order_and_only_the_last_is_seen(viewer: ViewerModel) -> None:
    run(viewer, Stand())
    assert names(viewer) == EXPECTED
    assert [layer.visible for layer in viewer.layers] == [True, False, False, False, True]
    image = viewer.layers["scan"]
    for layer in viewer.layers:
        assert tuple(str(unit) for unit in layer.units) == ("millimeter",) * 3
        low, high = (np.array(layer.data_to_world(np.array(at) - 0.5)) for at in ((0, 0, 0), layer.data.shape))
        np.testing.assert_allclose(low, image.data_to_world(np.full(3, -0.5)), atol=1e-6)
        np.testing.assert_allclose(high, image.data_to_world(np.array(GRID.shape) - 0.5), atol=1e-6)
    heat = viewer.layers["scan · m · attention map"]
    assert heat.blending == "additive"
    assert viewer.layers.selection.active is image  # nobody's selection is taken away


def test_labels_come_back_in_the_order_of_the_file(viewer: ViewerModel) -> None:
    run(viewer, Stand())
    layer = viewer.layers["scan · m · labels"]
    back = as_filed(labels_of(layer), layer.metadata[KEY]["filed"])
    assert back.geometry == GRID
    assert (back.data[0] == 0).all() or (back.data == 0).sum() == back.data[0].size


def test_a_second_run_replaces_the_first_and_keeps_how_the_user_set_the_layers(viewer: ViewerModel) -> None:
    run(viewer, Stand(1))
    viewer.layers["scan · m · labels"].opacity = 0.9
    before = list(viewer.layers)
    run(viewer, Stand(2))
    assert list(viewer.layers) == before
    final = viewer.layers["scan · m · labels"]
    assert set(np.unique(final.data)) == {0, 2}
    assert final.opacity == 0.9
    assert final.metadata[KEY]["made"]["check_sum"] == check_sum(final.data)


def test_stages_that_the_second_run_did_not_make_are_taken_away(viewer: ViewerModel) -> None:
    run(viewer, Stand(1))
    run(viewer, Stand(2, stages=("consensus",)))
    assert names(viewer) == ["scan", "scan · m · consensus", "scan · m · labels"]


@pytest.mark.parametrize("how", ["paint", "by a script"])
def test_an_edited_layer_is_kept_and_the_new_result_lies_beside_it(viewer: ViewerModel, how: str) -> None:
    run(viewer, Stand(1))
    mine = viewer.layers["scan · m · labels"]
    if how == "paint":
        mine.data_setitem((np.array([3]), np.array([3]), np.array([3])), 2)
    else:
        mine.data[3, 3, 3] = 2  # napari hears nothing of this
    kept = mine.data.copy()
    layers = run(viewer, Stand(2))
    np.testing.assert_array_equal(mine.data, kept)
    assert names(viewer) == [*EXPECTED, "scan · m · labels (2)"]
    assert layers.kept == ["scan · m · labels"]
    run(viewer, Stand(1))  # a third run replaces the second one's, not the user's
    np.testing.assert_array_equal(mine.data, kept)
    assert len(viewer.layers) == 6


def test_what_is_painted_while_the_model_runs_is_kept(viewer: ViewerModel) -> None:
    run(viewer, Stand(1))
    mine = viewer.layers["scan · m · labels"]

    class Slow(Stand):
        def segment(self, *what: object) -> Iterator[Event]:
            for event in super().segment(*what):  # type: ignore[arg-type]
                if isinstance(event, StageResult) and event.stage == "labels":
                    mine.data_setitem((np.array([3]), np.array([3]), np.array([3])), 7)
                yield event

    run(viewer, Slow(2))
    assert mine.data[3, 3, 3] == 7
    assert "scan · m · labels (2)" in names(viewer)


def test_other_models_and_regions_replace_nothing(viewer: ViewerModel) -> None:
    run(viewer, Stand(1))
    run(viewer, Stand(1), model="other")
    run(viewer, Stand(1), region="box")
    assert len(viewer.layers) == 1 + 3 * 4


def test_the_image_may_be_renamed_between_two_runs(viewer: ViewerModel) -> None:
    run(viewer, Stand(1))
    viewer.layers["scan"].name = "my scan"
    n = len(viewer.layers)
    viewer.layers["my scan"].name = "scan"
    run(viewer, Stand(2))
    assert len(viewer.layers) == n


def test_undo_does_not_bring_an_older_run_back(viewer: ViewerModel) -> None:
    run(viewer, Stand(1))
    final = viewer.layers["scan · m · labels"]
    run(viewer, Stand(2))
    before = final.data.copy()
    final.undo()
    np.testing.assert_array_equal(final.data, before)


def test_all_stages_are_shown_and_hidden_again_at_once(viewer: ViewerModel) -> None:
    run(viewer, Stand())
    who = Run(str(viewer.layers["scan"].unique_id), "m")
    toggle_stages(viewer, who)
    assert all(layer.visible for layer in viewer.layers)
    toggle_stages(viewer, who)
    assert [layer.visible for layer in viewer.layers] == [True, False, False, False, True]
