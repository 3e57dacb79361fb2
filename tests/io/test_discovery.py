"""What lies in a folder or a zip: links are followed or named, packed files and zips are called by their names."""

from __future__ import annotations

import bz2
import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from napari_fmseg.core.atomic_write import atomic_write
from napari_fmseg.core.errors import FmsegError, UnreadableVolume, UnwritableVolume
from napari_fmseg.core.volume import Geometry, LabelMap, Volume
from napari_fmseg.io import check_destination, find_volumes, list_series, read_volume, write_labels, write_volume
from napari_fmseg.io.discovery import broken_files
from napari_fmseg.io.paths import files_below
from napari_fmseg.pipelines.batch import plan_jobs

GRID = Geometry.from_spacing((3, 4, 5))
VOLUME = Volume(np.arange(60, dtype=np.int16).reshape(GRID.shape), GRID)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """A folder with a case, and beside it a store with another one."""
    for place in ("scans/two", "store/one"):
        write_volume(VOLUME, tmp_path / place / "ct.nii.gz")
    return tmp_path / "scans"


def names_in(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in find_volumes(folder)]


def test_linked_case_folders_are_found(scans: Path) -> None:
    (scans / "one").symlink_to(scans.parent / "store" / "one")
    assert names_in(scans) == ["one/ct.nii.gz", "two/ct.nii.gz"]
    np.testing.assert_array_equal(read_volume(scans / "one").data, VOLUME.data)


def test_links_in_a_circle_end_and_no_place_is_found_twice(scans: Path) -> None:
    (scans / "again").symlink_to(scans / "two")
    (scans / "two" / "up").symlink_to(scans)
    (scans / "above").symlink_to(scans.parent)
    (scans / "self").symlink_to(scans / "self")
    assert names_in(scans) == ["two/ct.nii.gz"]
    (scans.parent / "store" / "back").symlink_to(scans)
    (scans / "store").symlink_to(scans.parent / "store")
    assert names_in(scans) == ["store/one/ct.nii.gz", "two/ct.nii.gz"]


def test_a_link_to_nowhere_is_named_and_no_other_file_is(scans: Path) -> None:
    (scans / "three").mkdir()
    lost = scans / "three" / "ct.nii.gz"
    lost.symlink_to("/nowhere/annex/key")
    (scans / "three" / "participants.tsv").symlink_to("/nowhere/annex/other")
    (scans / "four").symlink_to("/nowhere/four")
    assert broken_files(files_below(scans)) == [scans / "four", lost]
    jobs = plan_jobs([scans], scans.parent / "out")
    assert [job.image.relative_to(scans).parts[0] for job in jobs] == ["four", "three", "two"]
    with pytest.raises(UnreadableVolume, match=r"three/ct.nii.gz is a link to /nowhere/annex/key, which is not there"):
        read_volume(lost)
    (text,) = [text for text in read_volume(scans).warnings if "links" in text]
    assert "ct.nii.gz" in text
    with pytest.raises(UnreadableVolume, match=r"holds no volume.*links to what is not there: ct.nii.gz"):
        read_volume(scans / "three")


def test_a_series_with_a_slice_behind_a_dead_link_says_so(pet, tmp_path: Path) -> None:
    folder = pet(tmp_path / "pet")
    (folder / "IM3").symlink_to("/nowhere/IM3")
    assert any("IM3" in text for text in read_volume(folder).warnings)


def packed(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_a_packed_file_is_refused_for_what_it_is(tmp_path: Path) -> None:
    inner = write_volume(VOLUME, tmp_path / "a.nii").read_bytes()
    tape = io.BytesIO()
    with tarfile.open(fileobj=tape, mode="w") as archive:
        archive.add(tmp_path / "a.nii", "a.nii")
    for path, packer in ((packed(tmp_path / "a.nii.bz2", bz2.compress(inner)), "bzip2"),
                         (packed(tmp_path / "a.tar", tape.getvalue()), "tar"),
                         (packed(tmp_path / "a.tgz", gzip.compress(tape.getvalue())), "gzip")):  # fmt: skip
        with pytest.raises(UnreadableVolume, match=f"{path.name} is packed with {packer}"):
            read_volume(path)


def test_a_zip_is_called_by_its_name(pet, tmp_path: Path) -> None:
    folder = pet(tmp_path / "pet")
    pet(tmp_path / "more", lambda i, s, p: setattr(s, "SeriesInstanceUID", "1.2.4"))
    contents = {
        "nothing": {"readme.txt": b"none"},
        "broken": {"a/x.nii": b"no NIfTI" * 100},
        "two": {
            f"{place}/{file.name}": file.read_bytes()
            for place in ("pet", "more")
            for file in (tmp_path / place).iterdir()
        },
    }
    for name, members in contents.items():
        path = tmp_path / f"patient {name}.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for member, content in members.items():
                archive.writestr(member, content)
        with pytest.raises(FmsegError) as caught:
            read_volume(path)
        assert "fmseg-" not in str(caught.value)
        assert (path.name if name != "broken" else "x.nii") in str(caught.value)
    assert len(list_series(path)) == 2
    single = tmp_path / "single.zip"
    with zipfile.ZipFile(single, "w") as archive:
        for file in folder.iterdir():
            archive.writestr(f"{file.name}", file.read_bytes())
    assert not any("fmseg-" in text for text in read_volume(single).warnings)


@pytest.mark.parametrize("stem", ["a" * 248, "\u75c5" * 82])
def test_a_name_as_long_as_the_file_system_takes_is_written(tmp_path: Path, stem: str) -> None:
    path = tmp_path / f"{stem}.nii.gz"
    labels = LabelMap(np.ones(GRID.shape, np.uint8), GRID)
    assert check_destination(path) == path
    assert write_labels(labels, path).stat().st_size
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_longer_name_is_refused_before_the_work(tmp_path: Path) -> None:
    for name in (f"{'a' * 249}.nii.gz", f"{'a' * 250}.nhdr"):
        with pytest.raises(UnwritableVolume, match="too long"):
            check_destination(tmp_path / name)
    with pytest.raises(UnwritableVolume, match="too long"), atomic_write(tmp_path / ("a" * 256)):
        pass
    image = write_volume(VOLUME, tmp_path / f"{'b' * 240}.nii.gz")
    with pytest.raises(UnwritableVolume, match=r"_seg.nii.gz.json is too long"):
        plan_jobs([image], tmp_path / "out")  # the manifest beside it has no name that fits
    with pytest.raises(UnwritableVolume, match="too long"):
        plan_jobs([image], tmp_path / f"{'c' * 246}.nii.gz")
