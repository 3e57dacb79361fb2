import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from napari_fmseg.core.errors import FmsegError  # noqa: E402
from napari_fmseg.core.events import Progress  # noqa: E402
from napari_fmseg.core.volume import Geometry, Volume  # noqa: E402
from napari_fmseg.evaluation.benchmark import Benchmark, Comparison, benchmark, compare_with_plain, snet_example  # noqa: E402
from napari_fmseg.io import write_volume  # noqa: E402
from napari_fmseg.models.card import ModelCard, NetSpec  # noqa: E402
from napari_fmseg.models.weights import Model  # noqa: E402
from napari_fmseg.nets import build  # noqa: E402


@pytest.fixture(scope="module")
def model():
    spec = NetSpec("snet", {"in_channels": 1, "n_classes": 2, "width": 4})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = build(spec.network, **spec.kwargs).eval()
    settings = {"consensus_grid": (32, 32, 32)}
    card = ModelCard("tiny", "Tiny", "phased", {"consensus": spec}, {1: "liver"}, settings=settings)
    return Model(card, {"consensus": net}, torch.device("cpu"))


@pytest.fixture
def volume():
    data = np.random.default_rng(0).normal(0, 1, (20, 24, 22)).astype(np.float32)
    return Volume(data, Geometry.from_spacing(data.shape, (2, 1, 1)))


def test_every_part_has_its_time_and_peak_memory(model, volume):
    *steps, found = benchmark(volume, model, repeats=3, warmups=1)
    assert steps == [Progress("benchmark", n, 4) for n in range(1, 5)]
    assert isinstance(found, Benchmark)
    assert list(found.parts) == ["reading", "consensus", "labels", "writing"]
    for part in found.parts.values():
        assert 0 < part.fastest <= part.seconds
        assert part.gpu_mb == 0
        if sys.platform == "linux":
            assert 50 < part.peak_mb < 100_000
    assert found.total_seconds >= sum(part.fastest for part in found.parts.values())
    assert found.shape == (20, 24, 22)
    assert set(found.inflate_seconds) == {"standard library", "ours"}
    assert found.environment["device"] == "cpu"
    assert found.environment["versions"]["torch"]


def test_a_file_is_measured_as_it_is(model, volume, tmp_path):
    path = write_volume(volume, tmp_path / "case.mha")
    found = list(benchmark(path, model, repeats=1, warmups=0))[-1]
    assert found.inflate_seconds == {}
    assert [p.name for p in tmp_path.iterdir()] == ["case.mha"]


@pytest.mark.parametrize("counts", [{"repeats": 0}, {"warmups": -1}])
def test_a_benchmark_of_no_runs_is_refused(model, volume, counts):
    with pytest.raises(FmsegError, match="at least one"):
        list(benchmark(volume, model, **counts))


def test_the_engine_and_the_plain_form_run_in_turns_and_agree():
    network, kwargs, net, image = snet_example(size=32)
    *steps, found = compare_with_plain(network, kwargs, net, image, precision="float32", repeats=2)
    assert len(steps) == 3
    assert isinstance(found, Comparison)
    assert found.shape == (32, 32, 32)
    assert min(found.plain_seconds, found.engine_seconds, found.times_faster, found.times_less_work) > 0
    assert found.equal > 0.999


def test_a_plain_form_that_cannot_start_is_told(capfd):
    network, kwargs, net, image = snet_example(size=32)
    with pytest.raises(FmsegError, match="ended early"):
        list(compare_with_plain(network, {**kwargs, "n_classes": 3}, net, image, repeats=1))
    assert "size mismatch" in capfd.readouterr().err


def test_the_same_seed_gives_the_same_network_and_image():
    (_, _, net, image), (_, _, again, same) = snet_example(32), snet_example(32)
    assert torch.equal(image, same)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))
