import json
from pathlib import Path

import numpy as np
import pytest

from napari_fmseg.core.errors import UnreadableVolume
from napari_fmseg.core.volume import Geometry, Volume
from napari_fmseg.io import write_volume
from napari_fmseg.models.card import Intensity
from napari_fmseg.training.pretraining.volume_store import VolumeStore, decode_volume

WINDOW = Intensity("window", 0.0, 10.0)


@pytest.fixture
def files(tmp_path):
    """Three volumes of different formats, sizes and orientations, one broken file."""
    paths = []
    for i, name in enumerate(("a.nii.gz", "b.nrrd", "c.mha")):
        data = np.random.default_rng(i).random((6 + i, 7, 8)).astype(np.float32) * 10
        direction = np.diag([-1, 1, 1]) if i == 1 else None
        geometry = Geometry.from_spacing(data.shape, (2, 1, 1), direction=direction)
        paths.append(write_volume(Volume(data, geometry), tmp_path / name))
    (tmp_path / "broken.nii.gz").write_bytes(b"\x1f\x8bnot a volume")
    return [*paths, tmp_path / "broken.nii.gz"]


def expected(i):
    data = np.random.default_rng(i).random((6 + i, 7, 8)).astype(np.float32)
    return data[::-1] if i == 1 else data


def test_volumes_come_canonical_and_normalised_again_and_again(files, tmp_path):
    store = VolumeStore(files, tmp_path / "cache", intensity=WINDOW)
    for _ in range(2):
        for i in range(3):
            np.testing.assert_allclose(store.volume(i).float().numpy(), expected(i), atol=1e-3)
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_second_reading_needs_no_decoding(files, tmp_path, monkeypatch):
    VolumeStore(files, tmp_path / "cache", intensity=WINDOW).volume(0)
    monkeypatch.setattr("napari_fmseg.training.pretraining.volume_store.read_volume", None)
    again = VolumeStore(files, tmp_path / "cache", intensity=WINDOW)
    np.testing.assert_allclose(again.volume(0).float().numpy(), expected(0), atol=1e-3)


def test_changed_file_is_decoded_anew(files, tmp_path):
    store = VolumeStore(files, tmp_path / "cache", intensity=WINDOW)
    store.volume(0)
    write_volume(Volume(np.full((3, 3, 3), 5.0, np.float32), Geometry.from_spacing((3, 3, 3))), files[0])
    assert store.volume(0).shape == (3, 3, 3)


def test_broken_file_is_told_and_the_others_remain(files, tmp_path):
    store = VolumeStore(files, tmp_path / "cache", intensity=WINDOW)
    assert [store.readable(i) is None for i in range(4)] == [True, True, True, False]
    assert isinstance(store.readable(3), UnreadableVolume)


def test_cache_keeps_its_limit_and_still_gives_everything(files, tmp_path):
    store = VolumeStore(files, tmp_path / "cache", limit_gb=1.2e-6, intensity=WINDOW)
    for i in (0, 1, 2, 1, 0):
        np.testing.assert_allclose(store.volume(i).float().numpy(), expected(i), atol=1e-3)
        assert sum(p.stat().st_size for p in (tmp_path / "cache").iterdir()) < 1500


def test_cut_file_in_the_cache_is_made_anew(files, tmp_path):
    store = VolumeStore(files, tmp_path / "cache", intensity=WINDOW)
    store.volume(0)
    (kept,) = (tmp_path / "cache").iterdir()
    kept.write_bytes(kept.read_bytes()[:200])
    np.testing.assert_allclose(store.volume(0).float().numpy(), expected(0), atol=1e-3)


def test_what_is_done_to_a_volume_stays_with_the_caller(files, tmp_path):
    store = VolumeStore(files, tmp_path / "cache", intensity=WINDOW)
    store.volume(0)
    store.volume(0).zero_()
    assert store.volume(0).any()


def test_other_processes_decode_what_is_missing_from_plain_data(files, tmp_path):
    store = VolumeStore(files, tmp_path / "cache", intensity=WINDOW, spacing_mm=(4.0, 2.0, 2.0))
    store.volume(1)
    items = json.loads(json.dumps(store.decoding_items()))
    assert [Path(item["path"]).name for item in items] == ["a.nii.gz", "c.mha", "broken.nii.gz"]
    assert [decode_volume(item) for item in items] == [{}] * 3
    assert [Path(item["path"]).name for item in store.decoding_items()] == ["broken.nii.gz"]
    alone = VolumeStore(files, tmp_path / "alone", intensity=WINDOW, spacing_mm=(4.0, 2.0, 2.0))
    for i in range(3):
        np.testing.assert_array_equal(store.volume(i), alone.volume(i))
