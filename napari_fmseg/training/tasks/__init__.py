"""What the stages of each pipeline are trained on, by the pipeline's name."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["TASKS", "TrainingTask"]


@dataclass(frozen=True)
class TrainingTask:
    """How the networks of a pipeline are trained.

    Parameters
    ----------
    make
        ``"module:name"`` of what makes a `napari_fmseg.training.tasks.base.Task` of (stage, recipe, samples, trained
        networks).
    caches_cases
        Whether the cases are downsampled and cached on disk, instead of read into memory.
    crops_cases
        Whether they are cropped by the settings' `crop_above`.
    """

    make: str
    caches_cases: bool = False
    crops_cases: bool = False


TASKS: dict[str, TrainingTask] = {
    "coarse_fine": TrainingTask("napari_fmseg.training.tasks.coarse_fine:CoarseFineTask", caches_cases=True),
    "nnunet": TrainingTask("napari_fmseg.training.tasks.nnunet:NNUNetTask"),
    "phased": TrainingTask("napari_fmseg.training.tasks.phased:phased_task", crops_cases=True),
    "single": TrainingTask("napari_fmseg.training.tasks.single:PatchTask"),
}
"""Every pipeline that can be trained."""
