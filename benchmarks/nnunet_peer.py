"""A model of nnU-Net: its own predictor beside ours, exact and fast, in turns on the same CPU, weights and volume.

    python benchmarks/nnunet_peer.py SCAN.nii.gz [--heads 8] [--spacing 3 3 3] [--patch 64 112 112] [--pairs 3]
        [--environment FOLDER] [--out benchmarks/results]

nnU-Net gets an environment of its own, which is made in FOLDER if it is not there; it never shares ours. The model is
untrained and seeded: time does not depend on the weights. Every run has a process of its own; the figures to read are
the medians of the ratios of neighbours, the seconds of the processor (which other programs on the machine change
little), and the peak of memory that the operating system reports.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PACKAGES = ("torch==2.13.0", "numpy", "scipy", "SimpleITK", "nibabel", "scikit-image", "pandas", "tifffile", "blosc2",
            "graphviz", "seaborn", "matplotlib", "imagecodecs", "yacs", "einops", "tqdm", "requests", "scikit-learn",
            "connected-components-3d", "fft-conv-pytorch")  # fmt: skip
PEER = ("nnunetv2==2.8.1", "dynamic-network-architectures==0.4.4", "acvl-utils", "batchgenerators", "batchgeneratorsv2",
        "future", "unittest2", "argparse", "linecache2", "traceback2", "threadpoolctl")  # fmt: skip
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


def main() -> None:
    """Run the pairs and print and write the medians; or, with --role, one run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", type=Path)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--spacing", type=float, nargs=3, default=[3, 3, 3])
    parser.add_argument("--patch", type=int, nargs=3, default=[64, 112, 112])
    parser.add_argument("--features", type=int, nargs="+", default=[16, 32, 64, 128, 160])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--environment", type=Path, default=Path(tempfile.gettempdir()) / "nnunet-environment")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--role", choices=("model", "peer", "exact", "fast"))
    parser.add_argument("--model", type=Path)
    parser.add_argument("--mask", type=Path)
    said = parser.parse_args()
    if said.role == "model":
        make_model(said)
    elif said.role:
        facts = peer(said) if said.role == "peer" else ours(said)
        print(json.dumps({**facts, "peak_gib": peak_gib()}))
    else:
        compare(said)


def peak_gib() -> float:
    """Return the most memory that this process has held; not, as getrusage may, what its parent held."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def plans(said: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return plans.json and dataset.json."""
    n, function = len(said.features), "resample_data_or_seg_to_shape"
    arguments = {
        "n_stages": n, "features_per_stage": said.features, "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * n, "strides": [[1, 1, 1], *[[2, 2, 2]] * (n - 1)], "n_conv_per_stage": [2] * n,
        "n_conv_per_stage_decoder": [2] * (n - 1), "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d", "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None, "dropout_op_kwargs": None, "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }  # fmt: skip
    own = {
        "preprocessor_name": "DefaultPreprocessor", "batch_size": 2, "patch_size": said.patch,
        "spacing": said.spacing, "normalization_schemes": ["CTNormalization"], "use_mask_for_norm": [False],
        "batch_dice": False, "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": arguments, "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"]},
    }  # fmt: skip
    for what, order in (("data", 3), ("seg", 1), ("probabilities", 1)):
        own[f"resampling_fn_{what}"] = function
        own[f"resampling_fn_{what}_kwargs"] = {
            "is_seg": what == "seg", "order": order, "order_z": 0, "force_separate_z": None}  # fmt: skip
    facts = {"mean": 50.0, "std": 150.0, "percentile_00_5": -900.0, "percentile_99_5": 1000.0}
    whole = {
        "dataset_name": "Dataset000_Time", "plans_name": "nnUNetPlans", "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2], "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": facts}, "configurations": {"3d_fullres": own},
    }  # fmt: skip
    labels = {"background": 0, **{f"class {i}": i for i in range(1, said.heads)}}
    return whole, {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}


def make_model(said: argparse.Namespace) -> None:
    """Write a results folder with nnU-Net's own network; runs in its environment."""
    import torch
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    whole, dataset = plans(said)
    network = whole["configurations"]["3d_fullres"]["architecture"]
    torch.manual_seed(0)
    net = get_network_from_plans(
        network["network_class_name"], network["arch_kwargs"], network["_kw_requires_import"], 1, said.heads,
        deep_supervision=False,
    )  # fmt: skip
    (said.model / "fold_0").mkdir(parents=True)
    (said.model / "plans.json").write_text(json.dumps(whole))
    (said.model / "dataset.json").write_text(json.dumps(dataset))
    started = {"configuration": "3d_fullres", "fold": 0, "plans": whole, "dataset_json": dataset}
    content = {"network_weights": net.state_dict(), "trainer_name": "nnUNetTrainer", "init_args": started,
               "inference_allowed_mirroring_axes": (0, 1, 2)}  # fmt: skip
    torch.save(content, said.model / "fold_0" / "checkpoint_final.pth")


def peer(said: argparse.Namespace) -> dict[str, float]:
    """Run nnU-Net's predictor without mirroring, part by part; imports are not counted."""
    import torch
    from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape as back
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    imports = peak_gib()
    torch.set_num_threads(said.threads)
    predictor = nnUNetPredictor(use_mirroring=False, perform_everything_on_device=False, device=torch.device("cpu"),
                                allow_tqdm=False)  # fmt: skip
    predictor.initialize_from_trained_model_folder(str(said.model), [0])
    manager, configuration = predictor.plans_manager, predictor.configuration_manager
    begin, processor = time.perf_counter(), time.process_time()
    preprocessor = configuration.preprocessor_class(verbose=False)
    data, _, facts = preprocessor.run_case([str(said.scan)], None, manager, configuration, predictor.dataset_json)
    ready = time.perf_counter()
    logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(data)).cpu()
    seen = time.perf_counter()
    labels = back(logits, manager, configuration, predictor.label_manager, facts, num_threads_torch=said.threads)
    done = time.perf_counter()
    manager.image_reader_writer_class().write_seg(labels, str(said.mask), facts)
    written = time.perf_counter()
    return {"preprocessing": ready - begin, "network": seen - ready, "labels": done - seen, "writing": written - done,
            "total": written - begin, "processor": time.process_time() - processor, "imports_gib": imports}  # fmt: skip


def ours(said: argparse.Namespace) -> dict[str, float]:
    """Run our pipeline without mirroring; imports and the conversion of the model are not counted."""
    import torch

    from napari_fmseg.core.allocator import own_process
    from napari_fmseg.core.events import Progress, StageResult
    from napari_fmseg.io import read_volume, write_labels
    from napari_fmseg.models.weights import load_model
    from napari_fmseg.pipelines import SegmentOptions, segment
    from napari_fmseg.pipelines.executor import InferenceRunner

    imports = peak_gib()
    own_process()
    torch.set_num_threads(said.threads)
    card = next(said.model.parent.glob("ours/*/*.toml"))
    model = load_model(card, device="cpu")
    spent = [0.0]
    stream = InferenceRunner.stream

    def timed(engine: InferenceRunner, *given: Any) -> None:
        start = time.perf_counter()
        stream(engine, *given)
        spent[0] += time.perf_counter() - start

    InferenceRunner.stream = timed  # type: ignore[method-assign]
    begin = first = time.perf_counter()
    processor = time.process_time()
    before = 0.0
    volume = read_volume(said.scan)
    options = SegmentOptions(device="cpu", mirror=False, mode=said.role, show_stages=False)
    for event in segment(volume, model, options):
        if isinstance(event, Progress) and event.done == 1:
            first = time.perf_counter()
            before = spent[0]
    done = time.perf_counter()
    assert isinstance(event, StageResult)
    write_labels(event.output, said.mask, source=volume)  # type: ignore[arg-type]
    written = time.perf_counter()
    network = spent[0]
    return {"preprocessing": first - begin - before, "network": network, "labels": done - first - (network - before),
            "writing": written - done, "total": written - begin, "processor": time.process_time() - processor,
            "imports_gib": imports}  # fmt: skip


def compare(said: argparse.Namespace) -> None:
    """Run all in turns and report."""
    from napari_fmseg.evaluation.machine import machine_facts  # the peer's environment has no package of ours

    python = environment(said.environment)
    kept = [f"--{name}={getattr(said, name)}" for name in ("heads", "threads")]
    for name in ("spacing", "patch", "features"):
        kept += [f"--{name}", *map(str, getattr(said, name))]
    with tempfile.TemporaryDirectory() as place:
        model = Path(place) / "nnUNetTrainer__nnUNetPlans__3d_fullres"
        run(python, said, "model", model, Path(place), kept)
        from napari_fmseg.models.nnunet import import_nnunet

        import_nnunet(model, Path(place) / "ours")
        runs = []
        for _ in range(said.pairs):
            runs.append({role: run(python if role == "peer" else Path(sys.executable), said, role, model, Path(place),
                                   kept) for role in ("peer", "exact", "fast")})  # fmt: skip
            print(json.dumps(runs[-1]), file=sys.stderr)
        found = {role: {part: statistics.median(one[role][part] for one in runs) for part in runs[0][role]}
                 for role in runs[0]}  # fmt: skip
        found["agreement"] = agreement(Path(place))
    ratios = {role: {part: statistics.median(one["peer"][part] / one[role][part] for one in runs)
                     for part in ("total", "processor", "peak_gib")} for role in ("exact", "fast")}  # fmt: skip
    facts = {"scan": said.scan.name, "heads": said.heads, "spacing": said.spacing, "patch": said.patch,
             "features": said.features, "threads": said.threads, "machine": machine_facts(), "pairs": said.pairs,
             "seconds": found, "nnU-Net over ours": ratios}  # fmt: skip
    print(json.dumps(facts, indent=1))
    if said.out:
        (said.out / f"nnunet-{said.heads}-heads.json").write_text(json.dumps(facts, indent=1) + "\n")


def environment(folder: Path) -> Path:
    """Return the Python of nnU-Net's environment, made if it is not there."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *PACKAGES], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", "--no-deps", *PEER], check=True)
    return python


def run(python: Path, said: argparse.Namespace, role: str, model: Path, place: Path, kept: list[str]) -> Any:
    """Run one role in a process of its own and return what it printed."""
    own = {**os.environ, **dict.fromkeys(FOLDERS, str(place)), "OMP_NUM_THREADS": str(said.threads)}
    paths = [f"--model={model}", f"--mask={place / role}.nii.gz"]
    done = subprocess.run([str(python), __file__, str(said.scan), f"--role={role}", *paths, *kept], env=own, check=True,
                          stdout=subprocess.PIPE, text=True)  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1]) if role != "model" else None


def agreement(place: Path) -> dict[str, float]:
    """Return the share of voxels in which our masks equal the peer's, and the Dice of all foreground."""
    from napari_fmseg.io import read_volume

    want = read_volume(place / "peer.nii.gz").data
    found = {}
    for role in ("exact", "fast"):
        data = read_volume(place / f"{role}.nii.gz").data
        found[role] = float((data == want).mean())
    return found


if __name__ == "__main__":
    main()
