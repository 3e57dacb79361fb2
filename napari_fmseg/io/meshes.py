"""Surfaces of label maps as STL, OBJ and PLY, in millimetres of the patient, for print and 3-D programs.

Vertices are written x, y, z in LPS (x to the left, y to posterior, z to superior) as DICOM has it, and every file
says so in a remark, "SPACE=LPS", which 3D Slicer reads. Faces are listed so that normals point outward.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from napari_fmseg.core.atomic_write import atomic_write, atomic_write_files
from napari_fmseg.core.components import bounding_box
from napari_fmseg.core.errors import UnwritableVolume
from napari_fmseg.core.events import Progress, Saved, Warned
from napari_fmseg.core.terminology import label_info
from napari_fmseg.core.volume import LabelMap
from napari_fmseg.io.label_classes import class_name, file_stems, present

__all__ = ["MESH_FORMATS", "Mesh", "meshes", "write_meshes"]

MESH_FORMATS = ("stl", "obj", "ply")
_SLAB_VOXELS = 400_000  # at a time: marching cubes holds Python's lock, and a window must go on moving
_ROUNDS, _IN, _OUT = 10, 0.5, -0.53  # Taubin's smoothing: a step inward, a slightly longer one outward
_REMARK = "SPACE=LPS, mm, napari-fmseg, research use only"
_GREY = (0.8, 0.8, 0.8)


@dataclass(frozen=True, eq=False)
class Mesh:
    """A closed surface.

    Attributes
    ----------
    name
        Of the class.
    vertices
        (n, 3) in LPS mm, listed x, y, z.
    faces
        (m, 3) indices of vertices, anticlockwise as seen from outside.
    color
        Red, green, blue in 0..1.
    """

    name: str
    vertices: npt.NDArray[np.float64]
    faces: npt.NDArray[np.int64]
    color: tuple[float, float, float] = _GREY

    @property
    def volume_ml(self) -> float:
        """What the surface encloses, in millilitres."""
        a, b, c = (self.vertices[self.faces[:, i]] for i in range(3))
        return float(np.einsum("ij,ij->i", a, np.cross(b, c)).sum()) / 6000


def write_meshes(labels: LabelMap, path: Path | str, fmt: str = "", *, smooth: bool = True) -> list[Path]:
    """Write the surface of every class that occurs, atomically.

    Parameters
    ----------
    labels
        On any grid.
    path
        A file (.stl, .obj, .ply) for all classes in one: an OBJ has a group for each, a PLY their colours. Or a
        folder, for one file per class, called like it. Existing files are replaced, missing folders made.
    fmt
        "stl", "obj" or "ply"; needed for a folder.
    smooth
        Take the steps of the voxels off (Taubin 1995), which keeps the volume.

    Raises
    ------
    UnwritableVolume
        If the format is unknown, no class has a voxel, or the place cannot be written to.
    """
    events = meshes(labels, path, fmt, smooth=smooth)
    return [event.path for event in events if isinstance(event, Saved)]


def meshes(
    labels: LabelMap, path: Path | str, fmt: str = "", *, smooth: bool = True
) -> Iterator[Progress | Warned | Saved]:
    """Write surfaces as `write_meshes` does, and yield progress; closing the iterator leaves no file behind."""
    path = Path(path)
    suffix = path.suffix.lower().lstrip(".")
    is_file = suffix in MESH_FORMATS and not path.is_dir()
    fmt = (fmt or suffix).lower().lstrip(".")
    if fmt not in MESH_FORMATS or (is_file and fmt != suffix):
        raise UnwritableVolume(
            f"{path.name} cannot become a mesh of format {fmt or 'unknown'!r}. Use one of {', '.join(MESH_FORMATS)}, "
            "as the suffix of a file or as the format for a folder."
        )
    values = present(labels)
    if not values:
        raise UnwritableVolume("The labels are empty: there is no surface to write. Segment first.")
    for value, name in labels.names.items():
        if value not in values:
            yield Warned(f"{name} has no voxel, so it has no mesh.")
    if is_file:
        found: list[Mesh] = []
        yield from _each(labels, values, smooth, found)
        with atomic_write(path) as file:
            _write(file, fmt, found)
        yield Saved(path, best=True)
        return
    stems = file_stems(labels, values)
    with atomic_write_files(path) as part:
        for number, value in enumerate(values):
            one: list[Mesh] = []
            yield from _each(labels, [value], smooth, one, number, len(values))
            with (part / f"{stems[value]}.{fmt}").open("xb") as file:
                _write(file, fmt, one)
    for value in values:
        yield Saved(path / f"{stems[value]}.{fmt}", best=True)


def _each(
    labels: LabelMap, values: list[int], smooth: bool, found: list[Mesh], start: int = 0, total: int = 0
) -> Iterator[Progress]:
    """Find the surfaces of `values`; progress counts a hundred to each."""
    total = total or len(values)
    for number, value in enumerate(values, start):
        for part in _building(labels, value, smooth):
            if isinstance(part, Mesh):
                found.append(part)
            else:
                yield Progress("meshes", round(100 * (number + part)), 100 * total)
        yield Progress("meshes", 100 * (number + 1), 100 * total)


def _building(labels: LabelMap, value: int, smooth: bool) -> Iterator[float | Mesh]:
    """Yield how much is done, in 0..1, and at last the mesh, if there is one."""
    inside = np.zeros(labels.data.shape, bool)
    for plane, out in zip(labels.data, inside, strict=True):
        np.equal(plane, value, out=out)
    yield 0.05
    box = bounding_box(inside)
    if box is None:
        return
    padded = np.pad(inside[box], 1)
    corner = np.array([part.start - 1 for part in box])
    pieces = []
    slab = max(1, _SLAB_VOXELS // padded[0].size)
    for z in range(0, len(padded) - 1, slab):
        pieces.append(_surface(padded[z : z + slab + 1], z))
        yield 0.05 + 0.75 * min(1.0, (z + slab) / len(padded))
    index, faces = _join(pieces)
    vertices = labels.geometry.place(index + corner)[:, ::-1]
    if np.linalg.det(labels.geometry.affine[:3, :3]) > 0:  # z, y, x to x, y, z turns the faces over once already
        faces = faces[:, ::-1]
    if smooth:
        vertices = _smooth(vertices, faces)
    name = class_name(labels, value)
    yield Mesh(name, np.ascontiguousarray(vertices), faces, labels.colors.get(value) or label_info(name).color or _GREY)


_Piece = tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]


def _surface(block: npt.NDArray[np.bool_], z: int) -> _Piece:
    """Return the vertices (z, y, x) and faces between inside and outside."""
    from skimage.measure import marching_cubes

    if block.all() or not block.any():
        return np.empty((0, 3)), np.empty((0, 3), np.int64)
    vertices, faces, _, _ = marching_cubes(block.astype(np.float32), 0.5, gradient_direction="ascent")
    return vertices + np.array([z, 0, 0], float), faces.astype(np.int64)


def _join(pieces: list[_Piece]) -> _Piece:
    """Put slabs together: vertices lie half-way between voxels, so those at a seam are equal to the last bit."""
    counts = np.cumsum([0, *(len(vertices) for vertices, _ in pieces[:-1])])
    vertices = np.concatenate([v for v, _ in pieces])
    faces = np.concatenate([f + start for (_, f), start in zip(pieces, counts, strict=True)])
    keys = np.rint(vertices * 1024).astype(np.int64)
    span = keys.max(axis=0) + 1
    _, first, number = np.unique((keys[:, 0] * span[1] + keys[:, 1]) * span[2] + keys[:, 2], return_index=True,
                                 return_inverse=True)  # fmt: skip
    return vertices[first], number[faces]


def _smooth(vertices: npt.NDArray[np.float64], faces: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    from scipy.sparse import coo_array, diags_array

    n = len(vertices)
    ends = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    near = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(n, n)).tocsr()
    near = near + near.T
    mean = diags_array(1 / np.maximum(near.sum(axis=1), 1)) @ near
    for _ in range(_ROUNDS):
        for share in (_IN, _OUT):
            vertices = vertices + share * (mean @ vertices - vertices)
    return vertices


def _write(file: IO[bytes], fmt: str, found: list[Mesh]) -> None:
    {"stl": _write_stl, "obj": _write_obj, "ply": _write_ply}[fmt](file, found)


def _write_stl(file: IO[bytes], found: list[Mesh]) -> None:
    kind = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
    file.write(_REMARK.encode().ljust(80))  # must not begin with "solid", which means text
    file.write(np.uint32(sum(len(mesh.faces) for mesh in found)).tobytes())
    for mesh in found:
        table = np.zeros(len(mesh.faces), kind)
        table["corners"] = mesh.vertices[mesh.faces]
        across = np.cross(
            table["corners"][:, 1] - table["corners"][:, 0], table["corners"][:, 2] - table["corners"][:, 0]
        )
        long = np.linalg.norm(across, axis=1, keepdims=True)
        table["normal"] = across / np.where(long > 0, long, 1)
        file.write(table.tobytes())


def _write_obj(file: IO[bytes], found: list[Mesh]) -> None:
    file.write(f"# {_REMARK}\n".encode())
    start = 1
    for mesh in found:
        file.write(f"g {'_'.join(mesh.name.split())}\n".encode())
        for block in _blocks(mesh.vertices):
            file.write("".join(f"v {x:.4f} {y:.4f} {z:.4f}\n" for x, y, z in block.tolist()).encode())
        for block in _blocks(mesh.faces + start):
            file.write("".join(f"f {a} {b} {c}\n" for a, b, c in block.tolist()).encode())
        start += len(mesh.vertices)


def _blocks(rows: npt.NDArray[np.generic]) -> Iterator[npt.NDArray[np.generic]]:
    for start in range(0, len(rows), 10_000):
        yield rows[start : start + 10_000]


def _write_ply(file: IO[bytes], found: list[Mesh]) -> None:
    n, m = (sum(len(part) for part in parts) for parts in (
        [mesh.vertices for mesh in found], [mesh.faces for mesh in found]))  # fmt: skip
    file.write(
        f"ply\nformat binary_little_endian 1.0\ncomment {_REMARK}\nelement vertex {n}\nproperty float x\n"
        "property float y\nproperty float z\nproperty uchar red\nproperty uchar green\nproperty uchar blue\n"
        f"element face {m}\nproperty list uchar int vertex_indices\nend_header\n".encode()
    )
    for mesh in found:
        points = np.zeros(len(mesh.vertices), [("place", "<f4", 3), ("color", "u1", 3)])
        points["place"] = mesh.vertices
        points["color"] = np.rint(np.array(mesh.color) * 255)
        file.write(points.tobytes())
    start = 0
    for mesh in found:
        faces = np.zeros(len(mesh.faces), [("count", "u1"), ("corners", "<i4", 3)])
        faces["count"], faces["corners"] = 3, mesh.faces + start
        file.write(faces.tobytes())
        start += len(mesh.vertices)
