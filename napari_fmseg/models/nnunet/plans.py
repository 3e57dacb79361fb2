"""What plans.json and dataset.json of nnU-Net v2 say of one configuration, as settings and facts of a model card.

Nothing that they name is imported: known names are understood, and everything else is refused by its name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from napari_fmseg.core.errors import UnknownModel
from napari_fmseg.models.card import Intensity
from napari_fmseg.models.settings import NNUNetSettings, Resampling

__all__ = ["Configuration", "configuration_names", "previous_stage", "read_configuration"]

_READERS = {
    **dict.fromkeys(("SimpleITKIO", "NibabelIO", "Tiff3DIO", "NaturalImage2DIO"), "file"),
    **dict.fromkeys(("SimpleITKIOWithReorient", "NibabelIOWithReorient"), "RAS"),
}
_NETWORKS = ("PlainConvUNet", "ResidualEncoderUNet")
_LAYERS = {
    "conv_op": ("Conv2d", "Conv3d"),
    "norm_op": ("InstanceNorm2d", "InstanceNorm3d", "BatchNorm2d", "BatchNorm3d"),
    "nonlin": ("LeakyReLU", "ReLU"),
}
_SEPARATE = {None: "auto", True: "always", False: "never"}


@dataclass(frozen=True)
class Configuration:
    """One configuration of nnU-Net, understood.

    Attributes
    ----------
    dataset, plans
        Their names.
    settings
        Of the pipeline, without mirroring and without an earlier stage.
    intensity, channels, labels
        As in a card.
    heads
        Channels of the network's output.
    activation
        ``"sigmoid"`` where structures may overlap.
    slope, nonlin_first
        Of the leaky ReLU, and whether it stands before the norm.
    bottleneck
        Whether residual blocks have one.
    """

    dataset: str
    plans: str
    settings: NNUNetSettings
    intensity: Intensity
    channels: tuple[str, ...]
    labels: Mapping[int, str]
    heads: int
    activation: str
    slope: float = 0.01
    nonlin_first: bool = False
    licence: str = ""
    reference: str = ""


def configuration_names(plans: Mapping[str, Any]) -> tuple[str, ...]:
    """Name the configurations of plans.json."""
    found = plans.get("configurations")
    return tuple(map(str, found)) if isinstance(found, Mapping) else ()


def previous_stage(plans: Mapping[str, Any], name: str) -> str:
    """Return the configuration that runs before this one in a cascade, or ""."""
    return str(_with_parents(plans, name).get("previous_stage") or "")


def read_configuration(plans: Mapping[str, Any], dataset: Mapping[str, Any], name: str) -> Configuration:
    """Read one configuration.

    Raises
    ------
    UnknownModel
        If something in it is missing, or is nothing that can be run here; says what.
    """
    try:
        return _read(plans, dataset, name)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise UnknownModel(
            f"plans.json and dataset.json do not describe the configuration {name!r} as nnU-Net v2 does "
            f"({type(error).__name__}: {error}). Export the model again with nnUNetv2_export_model_to_zip."
        ) from error


def _read(plans: Mapping[str, Any], dataset: Mapping[str, Any], name: str) -> Configuration:
    own = _with_parents(plans, name)
    _check_name("label manager", plans.get("label_manager") or "LabelManager", ("LabelManager",))
    _check_name("preprocessor", own.get("preprocessor_name", "DefaultPreprocessor"), ("DefaultPreprocessor",))
    reader = _check_name("reader", plans["image_reader_writer"], tuple(_READERS))
    slope, nonlin_first = _check_architecture(own)
    channels = tuple(str(value) for value in (dataset.get("channel_names") or dataset["modality"]).values())
    regions, labels, heads = _classes(dataset)
    settings = NNUNetSettings(
        window=_three(own["patch_size"], 1),
        spacing_mm=_three(own["spacing"], 0.0),
        axes=_three(plans["transpose_forward"], 0),
        orientation=_READERS[reader],
        masked=tuple(bool(one) for one in own.get("use_mask_for_norm") or [False] * len(channels)),
        image=_resampling(own, "data"),
        logits=_resampling(own, "probabilities"),
        labels=_resampling(own, "seg"),
        regions=regions,
    )
    return Configuration(
        str(plans["dataset_name"]), str(plans.get("plans_name", "nnUNetPlans")), NNUNetSettings.of(vars(settings)),
        _intensity(plans, own, len(channels)), channels, labels, heads, "sigmoid" if regions else "softmax",
        slope, nonlin_first, str(dataset.get("licence") or dataset.get("license") or ""),
        str(dataset.get("reference") or ""),
    )  # fmt: skip


def _with_parents(plans: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Lay a configuration over those that it inherits from."""
    found: dict[str, Any] = {}
    seen: list[str] = []
    while name:
        if name in seen or name not in plans["configurations"]:
            raise UnknownModel(f"plans.json has no configuration {name!r}, or it inherits from itself.")
        seen.append(name)
        own = plans["configurations"][name]
        found = {**own, **found}
        name = str(own.get("inherits_from") or "")
    return found


def _check_name(what: str, value: object, known: Sequence[str]) -> str:
    """Return the last part of a dotted name, if it is known."""
    last = str(value).rpartition(".")[2]
    if last not in known:
        raise UnknownModel(
            f"The {what} of this nnU-Net model is {last!r}, which cannot be run here. Supported: {', '.join(known)}. "
            "Run it with the program that it was made for."
        )
    return last


def _three(values: Sequence[Any], first: Any) -> Any:
    """Return three values, with `first` in front of two."""
    found = [first, *values] if len(values) == 2 else list(values)
    z, y, x = found
    return z, y, x


def _check_architecture(own: Mapping[str, Any]) -> tuple[float, bool]:
    """Refuse networks that are not ours; return the slope of the leaky ReLU and whether it precedes the norm."""
    if "architecture" not in own:
        _check_name("network", own["UNet_class_name"], _NETWORKS)
        return 0.01, False
    _check_name("network", own["architecture"]["network_class_name"], _NETWORKS)
    kwargs = own["architecture"]["arch_kwargs"]
    for key, known in _LAYERS.items():
        if kwargs.get(key) is not None:
            _check_name(key, kwargs[key], known)
    if (kwargs.get("norm_op_kwargs") or {}).get("eps", 1e-5) != 1e-5:
        raise UnknownModel("The norm of this nnU-Net model has another eps than 1e-5, which cannot be run here.")
    for key in ("squeeze_excitation", "stochastic_depth_p"):
        if kwargs.get(key):
            raise UnknownModel(f"The network of this nnU-Net model uses {key}, which cannot be run here.")
    leaky = str(kwargs.get("nonlin")).endswith("LeakyReLU")
    slope = float((kwargs.get("nonlin_kwargs") or {}).get("negative_slope", 0.01)) if leaky else 0.0
    return slope, bool(kwargs.get("nonlin_first", False))


def _resampling(own: Mapping[str, Any], what: str) -> Resampling:
    functions = {
        "resample_data_or_seg_to_shape": "spline",
        "resample_torch_fornnunet": "torch",
        "resample_torch_simple": "torch",
        "no_resampling_hack": "none",
    }
    how = functions[_check_name("resampling", own[f"resampling_fn_{what}"], tuple(functions))]
    kwargs = own.get(f"resampling_fn_{what}_kwargs") or {}
    separate = _SEPARATE[kwargs.get("force_separate_z")]
    if str(own[f"resampling_fn_{what}"]).endswith("torch_simple"):
        separate = "never"
    threshold = float(kwargs.get("separate_z_anisotropy_threshold", 3.0))
    return Resampling(how, int(kwargs.get("order", 1)), int(kwargs.get("order_z", 0)), separate, threshold)


def _intensity(plans: Mapping[str, Any], own: Mapping[str, Any], n: int) -> Intensity:
    name = "foreground_intensity_properties_per_channel"
    facts = plans.get(name) or plans.get("foreground_intensity_properties_by_modality") or {}
    found = tuple(_one_intensity(own["normalization_schemes"][c], facts.get(str(c), {})) for c in range(n))
    return found[0] if n == 1 else Intensity(channels=found)


def _one_intensity(scheme: str, facts: Mapping[str, float]) -> Intensity:
    known = ("ZScoreNormalization", "CTNormalization", "RescaleTo01Normalization", "RGBTo01Normalization",
             "NoNormalization")  # fmt: skip
    scheme = _check_name("normalisation", scheme, known)
    if scheme == "CTNormalization":
        low, high = float(facts["percentile_00_5"]), float(facts["percentile_99_5"])
        return Intensity("fixed_zscore", low, high, mean=float(facts["mean"]), std=float(facts["std"]), unit="HU")
    if scheme == "RGBTo01Normalization":
        return Intensity("window", 0, 255)
    return {"ZScoreNormalization": Intensity("zscore"), "RescaleTo01Normalization": Intensity("percentile", 0, 100),
            "NoNormalization": Intensity("none")}[scheme]  # fmt: skip


def _classes(dataset: Mapping[str, Any]) -> tuple[tuple[int, ...], dict[int, str], int]:
    """Return the labels of overlapping regions in their order, the names by label, and the channels of the output."""
    table = {str(name): value for name, value in dataset["labels"].items() if name != "ignore"}
    if any(isinstance(value, Sequence) and len(value) > 1 for value in table.values()):
        names = [n for n, v in table.items() if v not in (0, [0], (0,))]
        order = tuple(int(value) for value in dataset["regions_class_order"])
        if len(order) != len(names):
            raise UnknownModel(f"dataset.json names {len(names)} regions and orders {len(order)}.")
        return order, dict(zip(order, names, strict=True)), len(names)
    values = {name: int(value[0] if isinstance(value, Sequence) else value) for name, value in table.items()}
    if sorted(set(values.values())) != list(range(len(set(values.values())))):
        raise UnknownModel(f"The labels of dataset.json are {sorted(values.values())}; nnU-Net numbers them 0, 1, 2...")
    return (), {value: name for name, value in values.items() if value}, len(set(values.values()))


def foreground_labels(dataset: Mapping[str, Any]) -> tuple[int, ...]:
    """Return all labels but background and ignore, as the second stage of a cascade takes them."""
    found: set[int] = set()
    for name, value in dataset["labels"].items():
        if name != "ignore":
            found.update(int(one) for one in (value if isinstance(value, Sequence) else [value]))
    return tuple(sorted(found - {0}))
