"""Meshes: right size, place and orientation on any grid; files that other readers understand; files per class."""

import itertools
import struct
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from napari_fmseg.core.errors import GeometryMismatch, UnwritableVolume
from napari_fmseg.core.events import Progress, Saved, Warned
from napari_fmseg.core.volume import Geometry, LabelMap, Volume
from napari_fmseg.io import read_labels, write_labels
from napari_fmseg.io.export import Export, export, files_of, is_dicom_source
from napari_fmseg.io.meshes import Mesh, _building, write_meshes

TURN = np.linalg.qr(np.eye(3) + 0.3 * np.random.default_rng(2).standard_normal((3, 3)))[0]
FRAMES = [
    pytest.param((TURN * np.sign(np.diag(TURN))) @ np.diag(signs)[:, list(order)], id=f"{signs}{order}")
    for signs in itertools.product((1.0, -1.0), repeat=3)
    for order in ((0, 1, 2), (2, 0, 1), (1, 0, 2))
]
SPACING = (2.0, 0.9, 1.1)
RADII_MM = np.array([17.0, 11.0, 14.0])  # along z, y, x of the patient
CENTRE_MM = np.array([-30.0, 12.0, 55.0])


def mesh_of(labels: LabelMap, value: int, *, smooth: bool = True) -> Mesh | None:
    return next((part for part in _building(labels, value, smooth) if isinstance(part, Mesh)), None)


def ellipsoid(direction: np.ndarray, radii_mm: np.ndarray = RADII_MM) -> LabelMap:
    """Make an ellipsoid with its axes along the patient's, on a grid that is turned any way."""
    spacing = np.array(SPACING)
    half = np.ceil((np.abs(direction).T @ radii_mm) / spacing).astype(int) + 1
    shape = tuple(int(n) for n in 2 * half + 1)
    affine = np.eye(4)
    affine[:3, :3] = direction * spacing
    affine[:3, 3] = CENTRE_MM - affine[:3, :3] @ half
    geometry = Geometry(shape, affine)
    place = geometry.place(np.moveaxis(np.indices(shape), 0, -1))
    inside = (((place - CENTRE_MM) / radii_mm) ** 2).sum(-1) < 1
    return LabelMap(inside.astype(np.uint8) * 3, geometry, {}, {3: "left kidney"}, {3: (1.0, 0.5, 0.0)})


def edges_are_shared_by_two_faces(mesh: Mesh) -> bool:
    ends = np.concatenate([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]])
    there, back = {tuple(e) for e in ends.tolist()}, {tuple(e[::-1]) for e in ends.tolist()}
    return len(there) == len(ends) and there == back


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("direction", FRAMES)
def test_an_ellipsoid_keeps_size_place_and_orientation_on_every_grid(direction: np.ndarray, smooth: bool) -> None:
    mesh = mesh_of(ellipsoid(direction), 3, smooth=smooth)
    assert mesh is not None
    true_ml = 4 / 3 * np.pi * RADII_MM.prod() / 1000
    assert mesh.volume_ml == pytest.approx(true_ml, rel=0.025)  # positive: normals point outward
    np.testing.assert_allclose(mesh.vertices.mean(0), CENTRE_MM[::-1], atol=0.3)
    np.testing.assert_allclose(np.ptp(mesh.vertices, axis=0) / 2, RADII_MM[::-1], atol=1.2)
    assert edges_are_shared_by_two_faces(mesh)


def test_smoothing_takes_the_steps_off_and_does_not_shrink() -> None:
    labels = ellipsoid(np.eye(3))

    def roughness(mesh: Mesh | None) -> float:
        assert mesh is not None
        off = (((mesh.vertices[:, ::-1] - CENTRE_MM) / RADII_MM) ** 2).sum(-1) ** 0.5
        return float(off.std())

    assert roughness(mesh_of(labels, 3, smooth=True)) < 0.75 * roughness(mesh_of(labels, 3, smooth=False))


def test_slabs_are_joined_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = LabelMap(
        (np.random.default_rng(0).random((9, 8, 7)) > 0.5).astype(np.uint8), Geometry((9, 8, 7), np.eye(4))
    )
    whole = mesh_of(labels, 1, smooth=False)
    monkeypatch.setattr("napari_fmseg.io.meshes._SLAB_VOXELS", 1)
    slabs = mesh_of(labels, 1, smooth=False)
    assert whole is not None
    assert slabs is not None
    assert slabs.volume_ml == pytest.approx(whole.volume_ml)
    assert len(slabs.vertices) == len(whole.vertices)
    assert len(slabs.faces) == len(whole.faces)


def test_a_structure_at_the_border_of_the_volume_is_closed() -> None:
    labels = LabelMap(np.ones((3, 4, 5), np.uint8), Geometry.from_spacing((3, 4, 5), (2.0, 1.0, 1.0)))
    mesh = mesh_of(labels, 1, smooth=False)
    assert mesh is not None
    assert mesh.volume_ml == pytest.approx(0.12, rel=0.15)
    assert edges_are_shared_by_two_faces(mesh)
    assert mesh_of(labels, 2) is None


def two_classes() -> LabelMap:
    labels = ellipsoid(np.eye(3), RADII_MM / 2)
    data = labels.data.copy()
    data[data.shape[0] // 2 :][data[data.shape[0] // 2 :] > 0] = 5
    return LabelMap(data, labels.geometry, {}, {3: "left kidney", 5: "a/b: c?", 8: "absent"}, {3: (1.0, 0.5, 0.0)})


def read_stl(path: Path) -> tuple[np.ndarray, np.ndarray]:
    content = path.read_bytes()
    (count,) = struct.unpack("<I", content[80:84])
    assert len(content) == 84 + 50 * count
    assert not content.startswith(b"solid")
    rows = np.frombuffer(content[84:], np.dtype([("n", "<f4", 3), ("v", "<f4", (3, 3)), ("a", "<u2")]))
    return rows["n"], rows["v"]


def test_stl_holds_the_triangles_with_their_normals(tmp_path: Path) -> None:
    labels = two_classes()
    paths = write_meshes(labels, tmp_path / "out", "stl")
    assert [path.name for path in paths] == ["left_kidney.stl", "a_b_c.stl"]
    mesh = mesh_of(labels, 3)
    assert mesh is not None
    normals, corners = read_stl(paths[0])
    np.testing.assert_allclose(corners, mesh.vertices[mesh.faces], rtol=1e-5, atol=1e-4)
    outward = np.einsum("ij,ij->i", corners.mean(1) - mesh.vertices.mean(0), normals)
    assert (outward > 0).mean() > 0.95
    assert b"SPACE=LPS" in paths[0].read_bytes()[:80]
    assert not list((tmp_path / "out").glob(".*"))


def test_obj_has_a_group_for_each_class(tmp_path: Path) -> None:
    labels = two_classes()
    (path,) = write_meshes(labels, tmp_path / "all.obj")
    lines = path.read_text().splitlines()
    assert [line for line in lines if line.startswith("g ")] == ["g left_kidney", "g a/b:_c?"]
    vertices = np.array([[float(v) for v in line.split()[1:]] for line in lines if line.startswith("v ")])
    faces = np.array([[int(v) for v in line.split()[1:]] for line in lines if line.startswith("f ")]) - 1
    found = [mesh_of(labels, value) for value in (3, 5)]
    assert Mesh("", vertices, faces).volume_ml == pytest.approx(sum(m.volume_ml for m in found if m), rel=1e-4)


def test_ply_has_colours(tmp_path: Path) -> None:
    labels = two_classes()
    (path,) = write_meshes(labels, tmp_path / "all.ply")
    head, body = path.read_bytes().split(b"end_header\n", 1)
    n, m = (int(line.split()[-1]) for line in head.splitlines() if line.startswith(b"element"))
    points = np.frombuffer(body[: 15 * n], np.dtype([("v", "<f4", 3), ("c", "u1", 3)]))
    faces = np.frombuffer(body[15 * n :], np.dtype([("n", "u1"), ("f", "<i4", 3)]))
    assert len(faces) == m
    assert points["c"][0].tolist() == [255, 128, 0]
    found = [mesh_of(labels, value) for value in (3, 5)]
    mesh = Mesh("", points["v"].astype(float), faces["f"].astype(np.int64))
    assert mesh.volume_ml == pytest.approx(sum(m.volume_ml for m in found if m), rel=1e-4)


def test_each_class_has_a_file_of_its_own_with_its_name(tmp_path: Path) -> None:
    labels = two_classes()
    for suffix in (".nii.gz", ".nrrd", ".mha"):
        like = Volume(labels.data, labels.geometry)
        events = export(labels, Export("classes", tmp_path / "out", suffix, like=like))
        paths = [event.path for event in events if isinstance(event, Saved)]
        assert [path.name for path in paths] == [f"left_kidney{suffix}", f"a_b_c{suffix}"]
        for path, value in zip(paths, (3, 5), strict=True):
            again = read_labels(path)
            np.testing.assert_array_equal(again.data, labels.data == value)
            assert again.geometry.matches(labels.geometry)
            assert again.names == {1: labels.names[value]}
    assert not list((tmp_path / "out").glob(".*"))


@pytest.mark.parametrize("what", ["classes", "meshes"])
def test_classes_whose_names_run_together_have_a_file_each(tmp_path: Path, what: str) -> None:
    data = np.zeros((5, 5, 9), np.uint8)
    data[1:4, 1:4, 1:3], data[1:4, 1:4, 3:5], data[1:4, 1:4, 5:8] = 1, 2, 3
    labels = LabelMap(data, Geometry(data.shape, np.eye(4)), {}, {1: "cyst_3", 2: "Cyst", 3: "cyst"})
    suffix = {"classes": ".mha", "meshes": ".stl"}[what]
    paths = [event.path for event in export(labels, Export(what, tmp_path, suffix)) if isinstance(event, Saved)]
    assert len(set(paths)) == len(list(tmp_path.iterdir())) == 3
    if what == "classes":
        voxels = sum(n * sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for n, path in enumerate(paths, 1))
        np.testing.assert_array_equal(voxels, data)


@pytest.mark.parametrize("what", ["classes", "meshes"])
def test_stopping_half_way_leaves_nothing_and_replaces_nothing(tmp_path: Path, what: str) -> None:
    suffix = {"classes": ".nii.gz", "meshes": ".stl"}[what]
    old = tmp_path / f"left_kidney{suffix}"
    old.write_bytes(b"old")
    events = export(two_classes(), Export(what, tmp_path, suffix))
    for event in events:
        if isinstance(event, Progress) and event.done * 2 >= event.total:
            break
    events.close()
    assert list(tmp_path.iterdir()) == [old]
    assert old.read_bytes() == b"old"


def test_failing_half_way_leaves_nothing(tmp_path: Path) -> None:
    labels = two_classes()
    (tmp_path / "out" / "a_b_c.stl").mkdir(parents=True)
    with pytest.raises(UnwritableVolume, match="is a folder"):
        write_meshes(labels, tmp_path / "out", "stl")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a_b_c.stl"]
    other = Volume(np.zeros((2, 2, 2)), Geometry((2, 2, 2), np.eye(4)))
    with pytest.raises(GeometryMismatch):
        list(export(labels, Export("classes", tmp_path / "new", like=other)))
    assert not (tmp_path / "new").exists()


def test_an_export_says_what_it_wrote_and_what_it_left_out(tmp_path: Path) -> None:
    labels = two_classes()
    wanted = Export("meshes", tmp_path / "out", ".ply")
    events = list(export(labels, wanted))
    assert [e.text for e in events if isinstance(e, Warned)] == ["absent has no voxel, so it has no mesh."]
    written = [e.path for e in events if isinstance(e, Saved)]
    assert set(written) <= set(files_of(labels, wanted))
    assert sorted((tmp_path / "out").iterdir()) == sorted(written)
    steps = [e.done / e.total for e in events if isinstance(e, Progress)]
    assert steps == sorted(steps)
    assert steps[-1] == 1


def test_only_the_chosen_classes_are_exported(tmp_path: Path) -> None:
    labels = two_classes()
    for what, to in (("map", tmp_path / "a.nii.gz"), ("meshes", tmp_path / "a.obj")):
        assert [e.path for e in export(labels, Export(what, to, classes=(5,))) if isinstance(e, Saved)] == [to]
    again = read_labels(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(again.data, np.where(labels.data == 5, 5, 0))
    assert again.names == {5: "a/b: c?"}
    assert (tmp_path / "a.obj").read_text().count("\ng ") == 1


def test_what_cannot_be_exported_is_refused_with_cause_and_fix(tmp_path: Path) -> None:
    labels = two_classes()
    empty = LabelMap(np.zeros((2, 2, 2), np.uint8), Geometry((2, 2, 2), np.eye(4)))
    with pytest.raises(UnwritableVolume, match="Use one of stl, obj, ply"):
        write_meshes(labels, tmp_path, "vtk")
    for what, suffix in (("meshes", ".stl"), ("classes", ".nii.gz")):
        with pytest.raises(UnwritableVolume, match=r"labels are empty.*Segment first"):
            list(export(empty, Export(what, tmp_path / "x", suffix)))
    with pytest.raises(UnwritableVolume, match="refers to a DICOM series"):
        list(export(labels, Export("dicom-seg", tmp_path / "a.dcm")))
    assert list(tmp_path.iterdir()) == []
    assert not is_dicom_source(tmp_path)
    assert not is_dicom_source("")


def test_the_command_line_exports_meshes_masks_and_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from napari_fmseg.cli.main import main

    path = write_labels(two_classes(), tmp_path / "organs.nii.gz")
    assert main(["export", str(path), "--output", str(tmp_path / "all.obj")]) == 0
    assert (tmp_path / "all.obj").read_text().count("\ng ") == 2
    assert main(["export", str(path), "--output", str(tmp_path / "m"), "--format", "stl", "--json"]) == 0
    assert sorted(file.name for file in (tmp_path / "m").iterdir()) == ["a_b_c.stl", "left_kidney.stl"]
    assert main(["export", str(path), "--output", str(tmp_path / "m"), "--format", "nrrd"]) == 0
    assert (tmp_path / "m" / "left_kidney.nrrd").is_file()
    capsys.readouterr()
    assert main(["export", str(path), "--output", str(tmp_path / "seg.dcm")]) == 2
    assert "--source" in capsys.readouterr().err
    assert main(["export", str(path), "--output", str(tmp_path / "m")]) == 1
    assert "one of stl" in capsys.readouterr().err
