"""nnU-Net's own trainer beside what Teach proposes: the same labelled cases and minutes of processor time.

    python benchmarks/nnunet_training.py atrium hippocampus [--labels 8] [--minutes 8] [--environment FOLDER]

nnU-Net gets an environment of its own, as in nnunet_peer.py. It plans and preprocesses the cases (not counted), trains
its 3d_fullres configuration with one thread, and its learning rate falls with the time. After a quarter, a half and all
of the time its own predictor segments the validation list, without mirroring, as ours is measured without test-time
averaging; with ``--cases`` it segments so many of the list, evenly over it. learning.py measures ours.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

FOLDERS = {"nnUNet_raw": "raw", "nnUNet_preprocessed": "preprocessed", "nnUNet_results": "results"}
EPOCHS = 100
"""In which the learning rate falls; the time shares them."""
LOOKS = (0.25, 0.5, 1.0)
"""Shares of the time after which it is measured."""


def main() -> None:
    """Train on each set and write the figures; or, with --role, one training in nnU-Net's environment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*")
    parser.add_argument("--labels", type=int, default=8)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--cases", type=int, default=0, help="measure on so many of the validation list; 0 all")
    parser.add_argument("--environment", type=Path, default=Path(tempfile.gettempdir()) / "nnunet-environment")
    parser.add_argument("--work", type=Path, default=Path("learning-runs"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "learning.json")
    parser.add_argument("--role", type=Path, help="a folder that was prepared")
    options = parser.parse_args()
    if options.role:
        print(json.dumps(train(options.role, options.minutes)))
        return
    for name in options.sets:
        place = options.work.absolute() / f"nnunet-{name}-{options.labels}-{options.minutes:g}min"
        prepare(name, options.labels, place, options.cases)
        found = run_apart(place, options)
        table = json.loads(options.out.read_text()) if options.out.exists() else {"runs": {}}
        key = f"{name}, {options.labels} labelled, {options.minutes:g} min, labelled only, nnU-Net's trainer"
        table["runs"][key] = {"0": found}
        options.out.write_text(json.dumps(table, indent=1))
        print(f"{key}: {found}", flush=True)


def prepare(name: str, n: int, place: Path, n_measured: int = 0) -> None:
    """Write the cases as nnU-Net wants them, and the list of those that measure."""
    from learning import listed

    facts = json.loads((listed(name, n, place / "data", unlabelled=False) / "dataset.json").read_text())
    raw = place / "raw" / "Dataset900_Peer"
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder).mkdir(parents=True, exist_ok=True)
    for case in facts["training"]:
        for channel, image in enumerate(case["image"]):
            _link(Path(image), raw / "imagesTr" / f"{case['case']}_{channel:04d}.nii.gz")
        _link(Path(case["label"]), raw / "labelsTr" / f"{case['case']}.nii.gz")
    channels = facts["channel_names"]
    names = list(channels.values()) if isinstance(channels, dict) else list(channels)
    table = {
        "channel_names": {str(i): str(channel) for i, channel in enumerate(names)},
        "labels": facts["labels"],
        "numTraining": len(facts["training"]),
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(table))
    held = facts["validation"]
    n_measured = min(n_measured or len(held), len(held))
    held = [held[int((i + 0.5) * len(held) / n_measured)] for i in range(n_measured)]
    (place / "validation.json").write_text(json.dumps(held))


def _link(source: Path, target: Path) -> None:
    if not target.exists():
        target.symlink_to(source)


def run_apart(place: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Plan, preprocess and train in nnU-Net's environment."""
    from nnunet_peer import environment

    python = environment(options.environment)
    own = {**os.environ, **{variable: str(place / folder) for variable, folder in FOLDERS.items()}}
    own |= {"OMP_NUM_THREADS": "1", "nnUNet_compile": "f"}
    plan = (
        "from nnunetv2.experiment_planning.plan_and_preprocess_entrypoints import plan_and_preprocess_entry as e; e()"
    )
    words = ["-d", "900", "-c", "3d_fullres", "-np", "1", "-npfp", "1"]
    subprocess.run([str(python), "-c", plan, *words], env=own, check=True, stdout=subprocess.DEVNULL)
    command = [str(python), __file__, "--role", str(place), "--minutes", str(options.minutes)]
    own["nnUNet_n_proc_DA"] = "0"  # samples are drawn in the process, whose time counts
    done = subprocess.run(command, env=own, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def train(place: Path, minutes: float) -> dict[str, Any]:
    """Train for minutes of processor time and measure; runs in nnU-Net's environment."""
    import numpy as np
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    torch.set_num_threads(1)
    home = place / "preprocessed" / "Dataset900_Peer"
    dataset = json.loads((home / "dataset.json").read_text())
    plans = {**json.loads((home / "nnUNetPlans.json").read_text()), "continue_training": False}
    trainer = nnUNetTrainer(plans, "3d_fullres", "all", dataset, torch.device("cpu"))
    trainer.num_epochs = EPOCHS
    trainer.on_train_start()
    cases = json.loads((place / "validation.json").read_text())
    spent, steps, losses, curve = 0.0, 0, {}, []
    for share in LOOKS:
        start, before = time.process_time(), spent
        while (spent := before + time.process_time() - start) < share * 60 * minutes:
            trainer.current_epoch = int(EPOCHS * spent / (60 * minutes))
            trainer.network.train()
            trainer.lr_scheduler.step(trainer.current_epoch)
            loss = float(trainer.train_step(next(trainer.dataloader_train))["loss"])
            steps += 1
            losses[steps] = round(loss, 3)
        dice = measure(trainer, cases)
        curve.append(round(float(np.mean(list(dice.values()))), 4))
    return {
        "dice": dice,
        "curve": curve,
        "cases": len(cases),
        "steps": {"3d_fullres": steps},
        "process_seconds": round(spent),
        "patch": list(trainer.configuration_manager.patch_size),
        "loss": losses,
    }


def measure(trainer: Any, cases: list[dict[str, Any]]) -> dict[str, float]:
    """Return the mean Dice of every class over cases that have it; the network is left as it was."""
    import numpy as np
    import SimpleITK as sitk
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    trainer.set_deep_supervision_enabled(False)
    trainer.network.eval()
    predictor = nnUNetPredictor(
        use_mirroring=False, perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False
    )
    predictor.manual_initialization(
        trainer.network, trainer.plans_manager, trainer.configuration_manager, [trainer.network.state_dict()],
        trainer.dataset_json, "nnUNetTrainer", None,
    )  # fmt: skip
    labels = {label: value for label, value in trainer.dataset_json["labels"].items() if value}
    dice: dict[str, list[float]] = {label: [] for label in labels}
    for case in cases:
        images, facts = trainer.plans_manager.image_reader_writer_class().read_images(case["image"])
        found = np.asarray(predictor.predict_single_npy_array(images, facts, None, None, False))
        truth = sitk.GetArrayFromImage(sitk.ReadImage(case["label"]))
        for label, value in labels.items():
            ours, theirs = found == value, truth == value
            if theirs.any():
                dice[label].append(2 * float((ours & theirs).sum()) / float(ours.sum() + theirs.sum()))
    trainer.set_deep_supervision_enabled(True)
    return {label: round(float(np.mean(values)), 4) for label, values in dice.items()}


if __name__ == "__main__":
    main()
