"""Fixtures of several packages: a synthetic DICOM PET, made-up bodies, golden vectors of published networks."""

from __future__ import annotations

import napari_fmseg  # noqa: F401 - before torch, so that FMSEG_CPU_CAPABILITY holds for the tests themselves

# isort: split

import dataclasses
import hashlib
import itertools
import json
import os
import socket
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from pydicom.uid import ExplicitVRLittleEndian, PositronEmissionTomographyImageStorage

from napari_fmseg.models.published import PublishedModel
from napari_fmseg.models.published.download import RemoteFile

DOSE, HALF_LIFE, WEIGHT = 350e6, 6586.2, 72.5


N, SHAPE = 3, (5, 6)


STORED = np.random.default_rng(3).integers(0, 20000, (N, *SHAPE)).astype(np.int16)


SLOPES = np.array([0.5, 1.25, 2.0])  # as GE writes them: another one for every slice


def write_pet(folder: Path, change: Callable[[int, Any, Any], Any] | None = None, **tags: Any) -> Path:
    """Write a PET of three slices, injected at 10:00, scanned at 11:00; `change(i, slice, pharma)` spoils one."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(N):
        meta = pydicom.dataset.FileMetaDataset()
        meta.MediaStorageSOPClassUID = PositronEmissionTomographyImageStorage
        meta.MediaStorageSOPInstanceUID = f"1.2.3.{i + 1}"
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        s = pydicom.Dataset()
        s.file_meta = meta
        s.SOPClassUID, s.SOPInstanceUID = PositronEmissionTomographyImageStorage, f"1.2.3.{i + 1}"
        s.SeriesInstanceUID, s.Modality, s.SeriesDescription = "1.2.3", "PT", "WB"
        s.PatientName, s.PatientID, s.PatientWeight = "Doe^Jane", "4711", str(WEIGHT)
        s.Rows, s.Columns, s.PixelSpacing = *SHAPE, [4, 4]
        s.ImageOrientationPatient, s.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 4.0 * i]
        s.SamplesPerPixel, s.PhotometricInterpretation = 1, "MONOCHROME2"
        s.BitsAllocated, s.BitsStored, s.HighBit, s.PixelRepresentation = 16, 16, 15, 1
        s.RescaleSlope, s.RescaleIntercept, s.InstanceNumber = SLOPES[i], 0, i + 1
        s.Units, s.DecayCorrection, s.CorrectedImage = "BQML", "START", ["DECY", "ATTN", "SCAT"]
        s.SeriesDate, s.SeriesTime = "20240229", "110000.00"
        s.AcquisitionDate, s.AcquisitionTime = "20240229", f"11{2 * i:02d}00.000000"
        s.ActualFrameDuration, s.WindowCenter, s.WindowWidth = "120000", 1000, 2000
        pharma = pydicom.Dataset()
        pharma.RadiopharmaceuticalStartTime = "100000"
        pharma.RadionuclideTotalDose, pharma.RadionuclideHalfLife = str(DOSE), str(HALF_LIFE)
        s.RadiopharmaceuticalInformationSequence = [pharma]
        s.PixelData = STORED[i].astype("<i2").tobytes()
        for key, value in tags.items():
            setattr(s, key, value)
        if change is not None:
            change(i, s, pharma)
        s.save_as(folder / f"IM{i}", enforce_file_format=True)
    return folder


@pytest.fixture
def pet() -> Callable[..., Path]:
    """Give the function that writes a PET series."""
    return write_pet


HERE = Path(__file__).parent / "nets" / "golden"


SHARED = Path(os.environ.get("FMSEG_SHARED", Path(__file__).parents[1].parent / "shared")) / "golden"


def draw(seed, dist, shape, scale, shift):
    values = getattr(np.random.Generator(np.random.PCG64(seed)), dist)(tuple(shape))
    return torch.from_numpy(np.asarray(values, np.float32) * np.float32(scale) + np.float32(shift))


def fill(key, shape, rule="B"):
    """One entry of a state dict: rule A fades the signal, rules B and C keep its variance (C for convolutions).

    A table instead of a rule names scale and shift of every entry.
    """
    if key.endswith("num_batches_tracked"):
        return torch.zeros((), dtype=torch.int64)
    if key.endswith("relative_position_index"):
        return published_index(round(shape[0] ** (1 / 3)))
    scale, shift = 0.05, 0.0
    if isinstance(rule, dict):
        scale, shift = rule[key]
    elif rule == "C" and "relative_position_bias_table" in key:
        scale = 1.0
    elif rule != "A" and len(shape) > 1:
        scale = np.sqrt({"B": 1, "C": 2}[rule] / np.prod(shape[1:]))
    elif rule == "C" and key.endswith("weight"):
        shift = 0.25 if shape[0] == 1 else 1.0  # the slope of a PReLU, the scales of a norm
    elif rule == "B" and key.endswith(("weight", "gamma")):
        shift = 1.0
    values = draw(zlib.crc32(key.encode()), "standard_normal", shape, scale, shift)
    return values.abs() + 1 if key.endswith("running_var") else values


def published_index(window):
    """PCT-Net's table of positions, with 3 w - 1 where (2 w - 1)^2 would tell all offsets apart."""
    place = np.indices((window,) * 3).reshape(3, -1)
    offset = place[:, :, None] - place[:, None, :] + window - 1
    return torch.from_numpy(np.tensordot([3 * window - 1, 2 * window - 1, 1], offset, axes=1))


def fill_network(net, rule="B"):
    state = {k: fill(k, tuple(v.shape), rule) for k, v in net.state_dict().items()}
    net.load_state_dict(state)
    return net.eval()


@dataclass
class Vector:
    """What a network must give; `check` compares the sampled voxels and the moments of the whole."""

    spec: dict
    outputs: list
    stored: dict

    @classmethod
    def read(cls, path):
        with np.load(path) as data:
            spec = json.loads(str(data["spec"]))
            stored = {i: torch.from_numpy(data[f"in{i}"]) for i in range(len(spec["inputs"])) if f"in{i}" in data}
            return cls(spec, [data[f"out{i}"] for i in range(len(spec["outputs"]))], stored)

    def state(self):
        return {key: fill(key, shape, self.spec["fill"]) for key, shape, _ in self.spec["state"]}

    def inputs(self):
        fields = ("seed", "dist", "shape", "scale", "shift")
        drawn = enumerate(self.spec["inputs"])
        return [self.stored[i] if i in self.stored else draw(*(entry[f] for f in fields)) for i, entry in drawn]

    def check(self, outputs):
        atol, rtol = self.spec["tolerance"]["atol"], self.spec["tolerance"]["rtol"]
        assert len(outputs) == len(self.outputs)
        for full, expected, facts in zip(outputs, self.outputs, self.spec["outputs"], strict=True):
            full = full.double().numpy()
            assert list(full.shape) == facts["shape"]
            steps = facts["sampling"]["stride"]
            flat = facts["sampling"]["kind"] == "flat"
            part = full.ravel()[::steps] if flat else full[(..., *(slice(None, None, step) for step in steps))]
            np.testing.assert_allclose(part, expected, rtol, atol)
            np.testing.assert_allclose([full.mean(), full.std()], [facts["mean"], facts["std"]], rtol, atol)


@pytest.fixture
def read_vector():
    return Vector.read


@pytest.fixture
def golden_here():
    return HERE


@pytest.fixture
def golden_shared():
    if not SHARED.is_dir():
        pytest.skip(f"the golden vectors are not beside the project ({SHARED})")
    return SHARED


@pytest.fixture(name="fill_network")
def fill_network_fixture():
    return fill_network


@pytest.fixture(name="draw")
def draw_fixture():
    return draw


def nnunet_plans(patch, spacing, **more):
    """Return a plans.json as nnU-Net v2 writes it, for one channel and one configuration; `more` goes to the latter."""
    function, order = "resample_data_or_seg_to_shape", {"data": 3, "seg": 1, "probabilities": 1}
    own = {
        "preprocessor_name": "DefaultPreprocessor",
        "patch_size": list(patch),
        "spacing": list(spacing),
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        **{f"resampling_fn_{what}": function for what in order},
        **{
            f"resampling_fn_{what}_kwargs": {
                "is_seg": what == "seg",
                "order": n,
                "order_z": 0,
                "force_separate_z": None,
            }
            for what, n in order.items()
        },
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {"conv_op": "torch.nn.modules.conv.Conv3d", "nonlin": "torch.nn.LeakyReLU"},
        },
        **more,
    }
    facts = {"mean": 40.0, "std": 120.0, "percentile_00_5": -200.0, "percentile_99_5": 300.0}
    return {
        "dataset_name": "Dataset123_Toy",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": facts},
        "configurations": {"3d_fullres": own},
    }


NNUNET_LABELS = {"background": 0, "liver": 1, "kidneys": 2}


def nnunet_results(folder, plans=None, *, labels=None, folds=1, network="plainconvunet", change=None, **kwargs):
    """Write a results folder of nnU-Net v2 with a small untrained network; `change` alters a checkpoint's content."""
    from napari_fmseg.nets import build

    plans = plans or nnunet_plans((16, 16, 16), (2.0, 1.5, 1.5))
    labels = labels or NNUNET_LABELS
    dataset = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 4, "file_ending": ".nii.gz"}
    model = Path(folder) / "Dataset123_Toy" / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    model.mkdir(parents=True)
    (model / "plans.json").write_text(json.dumps(plans))
    (model / "dataset.json").write_text(json.dumps(dataset))
    given = {"n_classes": len(labels), "features": [4, 6, 8], "strides": [1, 2, 2], **kwargs}
    for fold in range(folds):
        torch.manual_seed(fold)
        state = {}
        for key, value in build(network, **given).state_dict().items():
            copies = [key]
            if ".conv." in key or ".norm." in key:  # nnU-Net lists every layer twice, and the encoder in the decoder
                copies.append(key.replace(".conv.", ".all_modules.0.").replace(".norm.", ".all_modules.1."))
            copies += [f"decoder.{name}" for name in copies if name.startswith("encoder.")]
            state |= dict.fromkeys(copies, value)
        content = {
            "network_weights": state,
            "trainer_name": "nnUNetTrainer",
            "init_args": {"configuration": "3d_fullres", "fold": fold, "device": torch.device("cpu")},
            "inference_allowed_mirroring_axes": (0, 1, 2),
            "logging": {"ema_fg_dice": [np.float64(0.5), np.float32(0.25)], "steps": np.int64(3)},
            "_best_ema": np.float64(0.5),
            "current_epoch": 1,
        }
        (model / f"fold_{fold}").mkdir()
        torch.save(change(content) if change else content, model / f"fold_{fold}" / "checkpoint_final.pth")
    return model


@pytest.fixture(name="nnunet_plans")
def nnunet_plans_fixture():
    return nnunet_plans


@pytest.fixture(name="nnunet_results")
def nnunet_results_fixture():
    return nnunet_results


# modality, field of view, half axes of the body and spacing, all in mm along (z, y, x)
BODIES = {
    "ct-head": ("CT", (220, 240, 240), (150, 95, 75), (4, 4, 4)),
    "ct-abdomen": ("CT", (280, 380, 440), (700, 120, 180), (4, 4, 4)),
    "mr-head": ("MR", (220, 240, 240), (150, 95, 75), (4, 4, 4)),
    "mr-crop": ("MR", (40, 50, 40), (900, 900, 900), (1, 1, 1)),
    "mr-heart": ("MR", (100, 320, 340), (700, 115, 165), (10, 2.5, 2.5)),
    "pet-body": ("PET", (1000, 600, 600), (700, 110, 180), (8, 8, 8)),
}


def _body_scan(kind: str, seed: int = 0, *, spacing: Any = None, **meta: Any) -> Any:
    """Return a scan of a patient whose size the seed draws; as a NIfTI has it, unless `meta` says more."""
    from napari_fmseg.core.volume import Geometry, Volume

    modality, field, half, usual = BODIES[kind]
    rng = np.random.default_rng([seed, list(BODIES).index(kind)])
    spacing = spacing or usual
    shape = tuple(round(mm * rng.uniform(0.95, 1.05) / step) for mm, step in zip(field, spacing, strict=True))
    axes = np.meshgrid(*[(np.arange(n) - (n - 1) / 2) * step for n, step in zip(shape, spacing, strict=True)],
                       indexing="ij")  # fmt: skip
    size = rng.uniform(0.93, 1.07)
    body = sum((axis / (mm * size)) ** 2 for axis, mm in zip(axes, half, strict=True)) < 1
    noise = rng.normal(0, 1, shape)
    if modality == "CT":
        data = np.where(body, 40 + 20 * noise, -1000 + 5 * noise)
        data[body & (noise > 2)] = 900  # bone
        data = np.rint(data).astype(np.int16)
    elif modality == "MR":
        data = np.rint(np.where(body, 400 + 90 * noise, 4 * np.abs(noise)).clip(0) * rng.uniform(0.3, 9))
        data = data.astype(np.uint16)
    else:
        data = np.where(body, 1 + 0.2 * noise, 0).clip(0).astype(np.float32)
        data[body & (noise > 3)] = 12  # uptake
    return Volume(data, Geometry.from_spacing(shape, tuple(map(float, spacing))), meta)


def _body_card(kind: str, n_cases: int = 6, **changes: Any) -> Any:
    """Return the card of a model that was trained on such scans."""
    from napari_fmseg.models.card import Intensity, ModelCard, NetSpec
    from napari_fmseg.models.measures import measure_volume, summarise

    modality, *_ = BODIES[kind]
    windows = {"CT": Intensity("window", -200, 300), "MR": Intensity(), "PET": Intensity("window", 0, 10)}
    facts = {
        "name": kind, "title": kind, "pipeline": "phased", "labels": {1: "organ"}, "modality": modality,
        "nets": {"consensus": NetSpec("snet", {"in_channels": 1, "n_classes": 2, "width": 4})},
        "channels": (modality,), "intensity": windows[modality],
        "settings": {"consensus_grid": (32, 32, 32), "attention_grid": (32, 32, 32)},
        "training_data": summarise(measure_volume(_body_scan(kind, 100 + i)) for i in range(n_cases)),
        "scores": {"labels": {"organ": 0.9}},
    }  # fmt: skip
    return ModelCard(**{**facts, **changes})


@pytest.fixture(scope="session")
def body_scan() -> Callable[..., Any]:
    """Make scans of made-up bodies: of a head, an abdomen, a heart..."""
    return _body_scan


@pytest.fixture(scope="session")
def body_card() -> Callable[..., Any]:
    """Make the cards of models that were trained on such scans."""
    return _body_card


# Public data sets as their owners pack them, miniature: names of each case's images, of its labels, and their values.
_PACKED: dict[str, tuple[list[tuple[tuple[str, ...], str]], tuple[int, ...]]] = {
    "lits": (
        [((f"{batch}/volume-{i}.nii",), f"{batch}/segmentation-{i}.nii") for i, batch in (
            (0, "Training Batch 1"), (2, "Training Batch 1"), (10, "Training Batch 2"), (101, "Training Batch 2"))],
        (1, 2),
    ),
    "btcv": (
        [((f"RawData/Training/img/img{i:04d}.nii.gz",), f"RawData/Training/label/label{i:04d}.nii.gz")
         for i in (1, 2, 3, 4, 5)],
        tuple(range(1, 14)),
    ),
    "flare21": (
        [((f"train_images/train_{i:03d}_0000.nii.gz",), f"train_mask/train_{i:03d}.nii.gz") for i in range(5)],
        (1, 2, 3, 4),
    ),
    "hecktor22": (
        [((f"hecktor2022_training/hecktor2022/imagesTr/CHUM-{i:03d}__PT.nii.gz",),
          f"hecktor2022_training/hecktor2022/labelsTr/CHUM-{i:03d}.nii.gz") for i in range(1, 6)],
        (1, 2),
    ),
    "autopet": (
        [((f"FDG-PET-CT-Lesions/PETCT_{patient}/{study}/SUV.nii.gz",),
          f"FDG-PET-CT-Lesions/PETCT_{patient}/{study}/SEG.nii.gz") for patient, study in (
            ("0011f3deaf", "03-23-2003-NA-PET-CT Ganzkoerper"), ("0011f3deaf", "08-01-2004-NA-PET-CT Ganzkoerper"),
            ("01140d52d8", "08-13-2005-NA-PET-CT"), ("0143bab87a", "11-17-2003-NA-PET-CT"),
            ("01c27ef78b", "05-09-2003-NA-PET-CT"), ("027f7fb6c3", "01-02-2006-NA-PET-CT"),
            ("027f7fb6c3", "07-02-2006-NA-PET-CT"))],
        (1,),
    ),
    "brats18": (
        [(tuple(f"MICCAI_BraTS_2018_Data_Training/{grade}/{case}/{case}_{name}.nii.gz"
                for name in ("t1", "t2", "t1ce", "flair")),
          f"MICCAI_BraTS_2018_Data_Training/{grade}/{case}/{case}_seg.nii.gz")
         for grade, case in (("HGG", "Brats18_2013_10_1"), ("HGG", "Brats18_CBICA_AAB_1"), ("LGG", "Brats18_2013_0_1"),
                             ("LGG", "Brats18_TCIA09_141_1"), ("LGG", "Brats18_TCIA10_103_1"))],
        (1, 2, 4),
    ),
    "hvsmr": (
        [((f"Training dataset/training_axial_full_pat{i}.nii.gz",),
          f"Ground truth/training_axial_full_pat{i}-label.nii.gz") for i in range(5)],
        (1, 2),
    ),
}  # fmt: skip


def _public_miniature(name: str, folder: Path, shape: tuple[int, int, int] = (20, 24, 28)) -> list[Path]:
    """Write a public data set's folders with small volumes in them, a ball for each label; returns its label files."""
    import SimpleITK as sitk

    cases, values = _PACKED[name.removesuffix("-liver")]
    written = []
    for number, (images, label) in enumerate(cases):
        rng = np.random.default_rng(number)
        truth = np.zeros(shape, np.uint8)
        for value in values:
            middle = [rng.uniform(5, n - 5) for n in shape]
            truth[sum((i - m) ** 2 for i, m in zip(np.indices(shape), middle, strict=True)) < 14] = value
        for channel, path in enumerate((*images, label)):
            data = truth if path == label else (40.0 * truth + 5 * rng.normal(size=shape) + channel).astype(np.float32)
            image = sitk.GetImageFromArray(data)
            image.SetSpacing((2.0, 2.0, 2.5))
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(image, str(folder / path))
        written.append(folder / label)
    return written


@pytest.fixture(scope="session")
def public_miniature() -> Callable[..., list[Path]]:
    """Write a public data set in its owners' own folders, miniature."""
    return _public_miniature


# A host on this machine that serves published models, and a guard that lets no request go anywhere else.
_ENTRY_CARD = {
    "labels": {"1": "inside", "2": "outside"},
    "channels": ["T1"],
    "intensity": {"kind": "percentile", "low": 0.0, "high": 98.0},
    "settings": {"window": [32, 32, 32], "spacing_mm": [1.0, 1.0, 1.0]},
}
_ENTRY_TEXTS = {
    "segments": "two made-up structures", "licence": "MIT", "citation": "Nobody, Nowhere 1 (2001).", "source": "here",
    "trained_on": "nothing", "limits": "Good for nothing.", "evidence": "made for this test",
}  # fmt: skip


@dataclass
class Host:
    """What is served, and what was asked for."""

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    cut: bool = False  # whether every answer breaks off in its middle

    def remote(self, name: str, **changed: Any) -> RemoteFile:
        """Return the registered form of a file that is served."""
        content = self.files[name]
        right = RemoteFile(f"{self.address}/{name}", name, len(content), hashlib.sha256(content).hexdigest())
        return dataclasses.replace(right, **changed)

    def model(self, *names: str, **changed: Any) -> PublishedModel:
        """Return an entry with files that are served."""
        files = tuple(self.remote(name) for name in names)
        right = PublishedModel(
            "tiny-mr", "Two structures", "tfjs", files, **_ENTRY_TEXTS, card=_ENTRY_CARD, axes="LIA", modality="MR"
        )
        return dataclasses.replace(right, **changed)


@pytest.fixture
def host() -> Iterator[Host]:
    """Serve files from this machine."""
    served = Host()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.lstrip("/")
            served.asked.append(name)
            if name in served.redirects:
                self.send_response(302)
                self.send_header("Location", served.redirects[name])
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if name not in served.files:
                self.send_error(404)
                return
            content = served.files[name]
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if served.cut else content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    served.address = f"http://127.0.0.1:{server.server_port}"
    yield served
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def addresses(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record every address that a connection or a look-up of a name goes to; others than this machine are refused."""
    seen: list[str] = []

    def guarded(real: Callable[..., Any], host_of: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            address = host_of(*args)
            seen.append(str(address))
            if address not in ("127.0.0.1", "localhost", "::1", None):
                raise AssertionError(f"something was to be sent to {address}")
            return real(*args, **kwargs)

        return call

    monkeypatch.setattr(socket, "getaddrinfo", guarded(socket.getaddrinfo, lambda host, *_: host))
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, guarded(getattr(socket.socket, name), lambda _, address: address[0]))
    return seen


@pytest.fixture
def tiny_tfjs(host: Host) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Serve a small MeshNet in TensorFlow.js's files; returns its kernels (a, b, c, in, out) and biases."""
    rng = np.random.default_rng(5)
    widths, dilations = (1, 3, 3, 3), (1, 2, 1)
    kernels = [rng.normal(0, 0.3, (3, 3, 3, a, b)) for a, b in itertools.pairwise(widths)]
    kernels.append(rng.normal(0, 0.5, (1, 1, 1, widths[-1], 3)))
    kernels = [kernel.astype("<f4") for kernel in kernels]
    biases = [rng.normal(0, 0.1, kernel.shape[-1]).astype("<f4") for kernel in kernels]
    layers: list[dict[str, Any]] = [{"class_name": "InputLayer", "config": {"name": "input"}}]
    weights, content = [], b""
    for i, (kernel, bias) in enumerate(zip(kernels, biases, strict=True)):
        name, dilation = f"conv{i}", [*dilations, 1][i]
        layers.append({"class_name": "Conv3D", "config": {
            "name": name, "kernel_size": list(kernel.shape[:3]), "strides": [1, 1, 1], "padding": "same",
            "activation": "linear", "use_bias": True, "dilation_rate": [dilation] * 3}})  # fmt: skip
        if i + 1 < len(kernels):
            layers.append({"class_name": "Activation", "config": {"name": f"elu{i}", "activation": "elu"}})
        for part, values in (("kernel", kernel), ("bias", bias)):
            weights.append({"name": f"{name}/{part}", "shape": list(values.shape), "dtype": "float32"})
            content += values.tobytes()
    table = {
        "modelTopology": {"model_config": {"config": {"layers": layers}}},
        "weightsManifest": [{"paths": ["model.bin"], "weights": weights}],
    }
    host.files |= {"model.json": json.dumps(table).encode(), "model.bin": content}
    return kernels, biases


@pytest.fixture
def own_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point the folder of the user's models, and that of temporary files, into the test's own."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("FMSEG_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    return tmp_path / "home" / "models"


def _save_tiny_model(folder: Path, **changes: Any) -> Any:
    from napari_fmseg.models.card import ModelCard, NetSpec
    from napari_fmseg.models.weights import save_model
    from napari_fmseg.nets import build

    spec = NetSpec("snet", {"in_channels": 1, "n_classes": 3, "width": 4})
    net = fill_network(build(spec.network, **spec.kwargs))
    x = torch.rand(1, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():  # so that it finds something of every class
        found = net(x).log().mean((0, 2, 3, 4))
        for convolution, _ in net.maps:
            convolution.bias.copy_(20 * (convolution.bias - found))
            convolution.weight.mul_(20)
    settings = {"consensus_grid": (32, 32, 32), "attention_grid": (32, 32, 32)}
    facts = {"name": "tiny", "title": "Tiny", "pipeline": "phased", "nets": {"consensus": spec},
             "labels": {1: "liver", 2: "tumour"}, "modality": "MR", "settings": settings,
             "licence": "Apache-2.0", "scores": {"labels": {"liver": 0.9, "tumour": 0.5}},
             "scored_on": "3 patients"}  # fmt: skip
    return save_model(ModelCard(**{**facts, **changes}), {"consensus": net}, folder)


@pytest.fixture(scope="session")
def save_tiny_model() -> Callable[..., Any]:
    """Save an untrained model of two classes, small enough for many volumes in a test."""
    return _save_tiny_model
