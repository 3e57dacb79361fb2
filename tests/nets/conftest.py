"""Golden vectors: outputs of the public networks for generated weights and inputs."""

import json
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

HERE = Path(__file__).parent / "golden"
SHARED = Path(os.environ.get("FMSEG_SHARED", Path(__file__).parents[2].parent / "shared")) / "golden"


def draw(seed, dist, shape, scale, shift):
    values = getattr(np.random.Generator(np.random.PCG64(seed)), dist)(tuple(shape))
    return torch.from_numpy(np.asarray(values, np.float32) * np.float32(scale) + np.float32(shift))


def fill(key, shape, rule="B"):
    """One entry of a state dict: rule A fades the signal, rules B and C keep its variance (C for convolutions).

    A table instead of a rule names scale and shift of every entry.
    """
    if key.endswith("num_batches_tracked"):
        return torch.zeros((), dtype=torch.int64)
    if key.endswith("relative_position_index"):
        return published_index(round(shape[0] ** (1 / 3)))
    scale, shift = 0.05, 0.0
    if isinstance(rule, dict):
        scale, shift = rule[key]
    elif rule == "C" and "relative_position_bias_table" in key:
        scale = 1.0
    elif rule != "A" and len(shape) > 1:
        scale = np.sqrt({"B": 1, "C": 2}[rule] / np.prod(shape[1:]))
    elif rule == "C" and key.endswith("weight"):
        shift = 0.25 if shape[0] == 1 else 1.0  # the slope of a PReLU, the scales of a norm
    elif rule == "B" and key.endswith(("weight", "gamma")):
        shift = 1.0
    values = draw(zlib.crc32(key.encode()), "standard_normal", shape, scale, shift)
    return values.abs() + 1 if key.endswith("running_var") else values


def published_index(window):
    """PCT-Net's table of positions, with 3 w - 1 where (2 w - 1)^2 would tell all offsets apart."""
    place = np.indices((window,) * 3).reshape(3, -1)
    offset = place[:, :, None] - place[:, None, :] + window - 1
    return torch.from_numpy(np.tensordot([3 * window - 1, 2 * window - 1, 1], offset, axes=1))


def fill_network(net, rule="B"):
    state = {k: fill(k, tuple(v.shape), rule) for k, v in net.state_dict().items()}
    net.load_state_dict(state)
    return net.eval()


@dataclass
class Vector:
    """What a network must give; `check` compares the sampled voxels and the moments of the whole."""

    spec: dict
    outputs: list
    stored: dict

    @classmethod
    def read(cls, path):
        with np.load(path) as data:
            spec = json.loads(str(data["spec"]))
            stored = {i: torch.from_numpy(data[f"in{i}"]) for i in range(len(spec["inputs"])) if f"in{i}" in data}
            return cls(spec, [data[f"out{i}"] for i in range(len(spec["outputs"]))], stored)

    def state(self):
        return {key: fill(key, shape, self.spec["fill"]) for key, shape, _ in self.spec["state"]}

    def inputs(self):
        fields = ("seed", "dist", "shape", "scale", "shift")
        drawn = enumerate(self.spec["inputs"])
        return [self.stored[i] if i in self.stored else draw(*(entry[f] for f in fields)) for i, entry in drawn]

    def check(self, outputs):
        atol, rtol = self.spec["tolerance"]["atol"], self.spec["tolerance"]["rtol"]
        assert len(outputs) == len(self.outputs)
        for full, expected, facts in zip(outputs, self.outputs, self.spec["outputs"], strict=True):
            full = full.double().numpy()
            assert list(full.shape) == facts["shape"]
            steps = facts["sampling"]["stride"]
            flat = facts["sampling"]["kind"] == "flat"
            part = full.ravel()[::steps] if flat else full[(..., *(slice(None, None, step) for step in steps))]
            np.testing.assert_allclose(part, expected, rtol, atol)
            np.testing.assert_allclose([full.mean(), full.std()], [facts["mean"], facts["std"]], rtol, atol)


@pytest.fixture
def read_vector():
    return Vector.read


@pytest.fixture
def golden_here():
    return HERE


@pytest.fixture
def golden_shared():
    if not SHARED.is_dir():
        pytest.skip(f"the golden vectors are not beside the project ({SHARED})")
    return SHARED


@pytest.fixture(name="fill_network")
def fill_network_fixture():
    return fill_network


@pytest.fixture(name="draw")
def draw_fixture():
    return draw
