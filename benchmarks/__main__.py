"""Run a benchmark: ``python -m benchmarks NAME [OPTIONS]``; ``python -m benchmarks NAME --help`` explains one."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).parent

BENCHMARKS = {
    "networks": "every published network alone, plain against the engine, float32 and bfloat16",
    "stages": "every stage of `fmseg segment`, cold and warm",
    "file_to_mask": "a large CT from file to mask, in parts",
    "training_step": "steps per second of what Teach proposes, in parts",
    "growth": "time and memory from 128^3 to 512 x 512 x 1000 voxels, from 2 to 118 classes",
    "startup": "the command line, a segmentation to its first stage, the docks",
    "reading": "reading and writing beside nibabel and SimpleITK",
    "folders": "a folder of small volumes, with and without overlap",
    "snet_cpu": "SNet at 128^3, with the forms between plain and engine",
    "coarse_fine_cpu": "a coarse-to-fine model on a large CT, against whole logits",
    "windows": "a volume in overlapping windows, beside MONAI",
    "nnunet_peer": "an imported model beside nnU-Net's own predictor",
    "nnunet_training": "a training beside nnU-Net's own",
    "learning": "Dice of what Teach proposes, after minutes of training",
    "teach": "rounds of Teach: sparse labels, the next class, forgetting",
    "general_start": "Teach from a model of other data",
    "lesions": "lesion-wise losses against Dice",
    "pam_atrium": "attention of PAM on the left atrium",
    "pretraining": "pretrained against drawn weights",
    "fit": "which volumes are warned of as not fitting a model",
    "correcting": "what the tools of correction gain, and their times",
    "correct_times": "the tools of correction in a window",
}
"""The scripts of this folder that measure something; each runs by itself, too."""


def main(words: Sequence[str]) -> int:
    """Run the benchmark that the first word names, with the other words; list all without one."""
    if not words or words[0] in ("-h", "--help"):
        sys.stdout.write(f"{__doc__}\n\n" + "".join(f"  {name:16} {what}\n" for name, what in BENCHMARKS.items()))
        return 0
    if words[0] not in BENCHMARKS:
        sys.stderr.write(f"There is no benchmark {words[0]!r}. Choose of: {', '.join(BENCHMARKS)}.\n")
        return 2
    path = FOLDER / f"{words[0]}.py"
    sys.path.insert(0, str(FOLDER))  # as if the script were run by itself
    sys.argv = [str(path), *words[1:]]
    runpy.run_path(str(path), run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
