"""Segment a volume, look at every stage, measure the result, write the mask.

    python examples/segment_a_volume.py [FOLDER]

A CT phantom stands in for a scan: replace `phantom_ct` by `fm.read_volume("scan.nii.gz")` and the model's name.
"""

import sys
from pathlib import Path

import napari_fmseg as fm

out = Path(sys.argv[1] if len(sys.argv) > 1 else "example-output")
out.mkdir(parents=True, exist_ok=True)

volume, truth = fm.phantom_ct(seed=7, spacing=(4.0, 2.5, 2.5))  # z, y, x in mm
model = fm.load_model("efficient-phantom-ct", device="cpu")

stages = {}
for event in fm.segment(volume, model):  # long work is a generator: stop iterating to cancel
    if hasattr(event, "output"):  # a StageResult; the others are progress and warnings
        stages[event.stage] = event.output
        print(f"{event.stage:10} {event.output.data.shape} in {event.seconds:.2f} s")

labels = stages["labels"]  # exactly on the grid of the volume
path = fm.write_labels(labels, out / "mask.nii.gz", source=volume)
print(f"wrote {path}")

for name, metrics in fm.score(labels, truth).items():
    print(f"{name:10} Dice {metrics['dice']:.2f}, {metrics['volume_ml']:.0f} ml, HD95 {metrics['hd95_mm']:.1f} mm")
