"""Train a model on labelled volumes and use it.

    python examples/train_on_your_labels.py [FOLDER]

Three phantoms stand in for your data, and a few steps for a training: real ones take minutes on a CPU. `fmseg project`
and the Teach dock do the same with a locked split and versions.
"""

import sys
from pathlib import Path

import napari_fmseg as fm
from napari_fmseg.training import StageRecipe

out = Path(sys.argv[1] if len(sys.argv) > 1 else "example-output")
out.mkdir(parents=True, exist_ok=True)

cases = []
for seed in range(3):
    volume, truth = fm.phantom_ct(seed=seed, spacing=(8.0, 6.0, 6.0))
    image = fm.write_volume(volume, out / f"case{seed}_0000.nii.gz")
    label = fm.write_labels(truth, out / f"case{seed}.nii.gz", source=volume)
    cases.append(fm.Case(f"case{seed}", (image,), label))

recipe = fm.Recipe(
    name="my-abdomen-ct",
    title="Organs of my CTs",
    stages=(StageRecipe("consensus", "snet", kwargs={"width": 4}, steps=6, steps_per_epoch=3),),
    training=tuple(cases[:2]),
    validation=tuple(cases[2:]),  # a case that trains never validates
    labels=("liver", "kidneys"),
    modality="CT",
    settings={"consensus_grid": (32, 32, 32)},
    out=out / "run",
    device="cpu",
    seed=1,
)
for event in fm.train(recipe):  # the same recipe resumes where it was stopped
    print(type(event).__name__, getattr(event, "metrics", ""))

model = fm.load_model(str(out / "run" / "my-abdomen-ct.toml"))
labels = fm.drain(fm.segment(fm.read_volume(cases[2].images[0]), model))
print({name: round(metrics["dice"], 2) for name, metrics in fm.score(labels, fm.read_labels(cases[2].labels)).items()})
