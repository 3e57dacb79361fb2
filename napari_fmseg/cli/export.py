"""`fmseg export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from napari_fmseg.cli.console import USE, Json, Output, note, note_warnings, say, write_json
from napari_fmseg.cli.exit_codes import _Usage
from napari_fmseg.cli.progress import Bars, show_event


def export(
    labels: Positional[Annotated[Path, arg(metavar="LABELS")]],
    /,
    *,
    output: Output,
    format: str = "",
    source: Path | None = None,
    series: str | None = None,
    smooth: bool = True,
    as_json: Json = False,
) -> int:
    """Turn a file with labels into masks per class, meshes for print and 3-D, or a DICOM SEG for an archive.

    Parameters
    ----------
    labels
        A file with labels.
    output
        NAME.dcm for a DICOM SEG; NAME.stl, .ply or .obj for one mesh of all classes; NAME.nii.gz, .nrrd or .mha for
        one map; a folder for one file per class.
    format
        Of the files in a folder: stl, ply, obj, nii.gz, nrrd or mha.
    source
        The DICOM series that was labelled, for a DICOM SEG.
    series
        Which series of that folder, if it holds several.
    smooth
        Smooth the steps between slices of a mesh.
    """
    from napari_fmseg.core.events import Saved
    from napari_fmseg.io import export as export_files
    from napari_fmseg.io import read_labels

    if export_files.kind_of(output, format) == "dicom-seg" and source is None:
        raise _Usage("A DICOM SEG refers to the series that was labelled: give its folder with --source.")
    wanted = export_files.Export(
        export_files.kind_of(output, format), output, format, smooth=smooth, source=source, series=series
    )
    written = []
    with Bars(quiet=as_json) as bars:
        label_map = read_labels(labels)
        note_warnings(label_map, labels)
        for event in export_files.export(label_map, wanted):
            show_event(event, bars)
            if isinstance(event, Saved):
                written.append(event.path)
    if as_json:
        write_json({"use": USE, "written": written})
        return 0
    for path in written:
        say(str(path))
    note(USE)
    return 0
