from pathlib import Path

import pytest
import torch

from napari_fmseg.core.errors import GeometryMismatch, UnknownModel
from napari_fmseg.nets import build
from napari_fmseg.nets.efficientseg import COARSE, FINE, standardise
from napari_fmseg.nets.layers.strip_pooling import StripPooling

HERE = ["effseg_small_unet_d5"]
ALL = [
    *("effseg_context_fine", "effseg_efficient_fine", "effseg_small_context", "effseg_small_efficient_aniso"),
    *("effseg_small_efficient_aux", "effseg_small_efficient_b2", "effseg_small_efficient_blocks"),
    *("effseg_small_efficient_max", "effseg_small_efficient_noctx", "effseg_small_efficient_pp"),
    *("effseg_small_unet_d5", "effseg_small_unet_pp", "effseg_small_unet_two", "effseg_unet_bench"),
    "effseg_unet_coarse",
]
NAMES = {"UNet": "baseunet", "ContextUNet": "contextunet", "EfficientSegNet": "efficientsegnet"}
LAYERS = {"ResTwoLayerConvBlock": 2, "ResFourLayerConvBlock": 4}
BLOCKS = {"ResBaseConvBlock": "residual", "AnisotropicConvBlock": "anisotropic"}
CONTEXTS = {None: "none", "AnisotropicAvgPooling": "average", "AnisotropicMaxPooling": "maximum"}


def network_of(vector):
    """Build what a published configuration describes."""
    said = vector.spec["constructor"]
    name = NAMES[vector.spec["source"].split()[-1]]
    kwargs = {"n_classes": said["NUM_CLASSES"] + 1, "channels": said["NUM_CHANNELS"], "native": said["IS_POSTPROCESS"]}
    kwargs["auxiliary"] = said["AUXILIARY_CLASS"] if said["AUXILIARY_TASK"] else 0
    if said["IS_PREPROCESS"]:
        kwargs |= {"grid": said["INPUT_SIZE"], "window": said["WINDOW_LEVEL"]}
    if name == "baseunet":
        return build(
            name, encoder=LAYERS[said["ENCODER_CONV_BLOCK"]], decoder=LAYERS[said["DECODER_CONV_BLOCK"]], **kwargs
        )
    return build(
        name,
        encoder=BLOCKS[said["ENCODER_CONV_BLOCK"]],
        decoder=BLOCKS[said["DECODER_CONV_BLOCK"]],
        encoder_blocks=[said["NUM_BLOCKS"][0], *said["NUM_BLOCKS"]],
        decoder_blocks=said["DECODER_NUM_BLOCK"],
        context=CONTEXTS[said["CONTEXT_BLOCK"]],
        nominal=said["INPUT_SIZE"],
        **kwargs,
    )


def check(vector):
    net = network_of(vector).eval()
    assert list(net.state_dict()) == [key for key, *_ in vector.spec["state"]]
    net.load_state_dict(vector.state(), strict=True)
    with torch.inference_mode():
        vector.check(net.heads(*vector.inputs()))


@pytest.mark.parametrize("name", HERE)
def test_network_gives_the_published_output(name, read_vector, golden_here):
    check(read_vector(golden_here / f"{name}.npz"))


@pytest.mark.real
@pytest.mark.parametrize("name", [name for name in ALL if name not in HERE])
def test_network_gives_every_published_output(name, read_vector, golden_shared):
    check(read_vector(golden_shared / f"{name}.npz"))


@pytest.mark.real
def test_every_published_vector_is_tried(golden_shared: Path):
    assert {path.stem for path in golden_shared.glob("effseg_*.npz")} == set(ALL)


def count(net):
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(("name", "kwargs", "n_parameters"), [
    ("baseunet", {}, 2_676_480), ("efficientsegnet", {}, 9_366_016),
    ("baseunet", {"channels": FINE, "decoder": 4}, 11_880_448),
    ("contextunet", {"channels": FINE, "context": "none", "decoder": "residual", "decoder_blocks": 2}, 11_880_448),
])  # fmt: skip
def test_network_has_the_published_number_of_parameters(name, kwargs, n_parameters):
    assert count(build(name, **kwargs)) == n_parameters


def test_published_coarse_network_is_the_default():
    assert build("baseunet").channels == COARSE
    assert build("efficientsegnet").channels == FINE


def test_strips_that_follow_the_map_equal_those_of_the_nominal_size(draw):
    fixed, following = StripPooling(8, (5, 6, 8)).eval(), StripPooling(8).eval()
    following.load_state_dict(fixed.state_dict())
    x = draw(1, "standard_normal", (1, 8, 5, 6, 8), 1, 0)
    with torch.inference_mode():
        assert torch.equal(fixed(x), following(x))


def test_standardised_image_has_no_mean_and_unit_deviation(draw):
    x = draw(1, "standard_normal", (2, 1, 6, 7, 8), 500, 40)
    y = standardise(x, (-325, 325))
    clipped = x.clamp(-325, 325)
    deviation, mean = torch.std_mean(clipped, (2, 3, 4), keepdim=True)
    expected = (clipped - mean) / deviation
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)


def test_empty_image_does_not_divide_by_zero():
    assert not standardise(torch.full((1, 1, 4, 4, 4), -1000.0), (-325, 325)).any()


def test_logits_return_to_the_image_whatever_the_grid(draw):
    net = build("baseunet", channels=(4, 4, 4, 4, 4), grid=(32, 32, 16), window=(0, 1), native=True).eval()
    with torch.inference_mode():
        assert net(draw(1, "random", (1, 1, 9, 50, 41), 1, 0)).shape == (1, 4, 9, 50, 41)


def test_auxiliary_head_is_given_in_training_only(draw):
    net = build("efficientsegnet", channels=(2, 4, 4, 4, 8), context="none", auxiliary=2)
    x = draw(1, "random", (1, 1, 32, 32, 16), 1, 0)
    logits, heat = net.train()(x)
    assert logits.shape == (1, 4, 32, 32, 16)
    assert heat.shape == (1, 2, 8, 8, 4)
    assert net.eval()(x).shape == (1, 4, 32, 32, 16)


def test_softmax_head_has_the_background():
    assert build("baseunet", n_classes=3, activation="softmax").final.out_channels == 3
    assert build("baseunet", n_classes=3, activation="sigmoid").final.out_channels == 2


def test_volume_smaller_than_the_strips_is_refused():
    with pytest.raises(GeometryMismatch, match=r"nominal size of \(192, 192, 192\).*without `nominal`"):
        build("efficientsegnet", nominal=(192, 192, 192)).eval()(torch.zeros(1, 1, 96, 192, 192))


@pytest.mark.parametrize("kwargs", [
    {"channels": (4, 4, 4)}, {"encoder": "dense"}, {"context": "sums"}, {"encoder_blocks": (2, 2, 2, 2)},
    {"n_classes": 1}, {"activation": "tanh"}, {"decoder_blocks": 0},
])  # fmt: skip
def test_impossible_network_is_refused(kwargs):
    with pytest.raises(UnknownModel, match="EfficientSegNet"):
        build("efficientsegnet", **kwargs)
