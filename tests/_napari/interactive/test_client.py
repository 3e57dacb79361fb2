"""Prompts reach the server as its protocol has them, and what goes wrong is told in a sentence."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from napari_fmseg._napari.interactive.client import Box, Mask, Point, PromptServer
from napari_fmseg._napari.interactive.prompts import box_of, lasso_of, point_of
from napari_fmseg.core.errors import FmsegError

SHAPE = (6, 8, 10)


@pytest.fixture
def server(stub: Any) -> PromptServer:
    made = PromptServer(stub.address)
    made.set_image(np.arange(480, dtype=np.int16).reshape(SHAPE))
    yield made
    made.close()


def test_each_prompt_comes_back_as_the_mask_that_the_server_found(server: PromptServer, stub: Any) -> None:
    np.testing.assert_array_equal(stub.image[0], np.arange(480).reshape(SHAPE))
    assert server.add(Point((3, 4, 5)))[3, 4, 5] == 1
    assert server.add(Point((3, 4, 5), include=False)).sum() == 0
    assert server.add(Box((2, 1, 1), (3, 4, 5))).sum() == 12
    scribble = np.zeros(SHAPE, bool)
    scribble[4, 2, 2:7] = True
    assert server.add(Mask(scribble))[4, 2, 6] == 1
    assert server.add(Mask(scribble, is_lasso=True)).sum() == 17
    assert [kind for kind, *_ in stub.prompts] == ["point", "point", "box", "scribble", "lasso"]
    assert stub.prompts[0] == ("point", True, [3, 4, 5])
    assert stub.prompts[2][2] == [[2, 3], [1, 4], [1, 5]]
    server.undo()
    assert server.undo().sum() == 12
    server.reset()
    assert stub.found.sum() == 0


def test_the_licence_of_the_weights_is_the_servers_else_that_of_the_published_ones(stub: Any) -> None:
    stub.licence = "CC0"
    one = PromptServer(stub.address)
    stub.licence = "!!MISSING!!"
    other = PromptServer(stub.address)
    assert (one.licence, other.licence) == ("CC0", "CC BY-NC-SA 4.0")
    one.close()
    other.close()


def test_what_goes_wrong_is_told_with_what_to_do(stub: Any) -> None:
    with pytest.raises(FmsegError, match="No server of nnInteractive answers"):
        PromptServer("http://127.0.0.1:9")
    with pytest.raises(FmsegError, match="No server of nnInteractive answers"):
        PromptServer("nonsense")
    stub.key = "secret"
    with pytest.raises(FmsegError, match="Check the API key"):
        PromptServer(stub.address, "wrong")
    with PromptServerOf(stub.address, "secret") as server:
        server.set_image(np.zeros(SHAPE, np.float32))
        stub.expired = True
        with pytest.raises(FmsegError, match="has ended the session"):
            server.add(Point((1, 1, 1)))
    stub.expired, stub.most = False, 0
    with pytest.raises(FmsegError, match="as many people as it can"):
        PromptServer(stub.address, "secret")


class PromptServerOf:
    def __init__(self, *arguments: str) -> None:
        self.server = PromptServer(*arguments)

    def __enter__(self) -> PromptServer:
        return self.server

    def __exit__(self, *_: object) -> None:
        self.server.close()


def test_the_client_does_not_load_torch(stub: Any) -> None:
    program = f"""
import sys
from napari_fmseg._napari.interactive.client import PromptServer
PromptServer({stub.address!r}).close()
assert "torch" not in sys.modules
import importlib.util
assert importlib.util.find_spec("torch")
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=240)


def test_a_point_beside_the_image_is_no_prompt() -> None:
    assert point_of((1.2, 2.6, 3.0), SHAPE, include=True) == Point((1, 3, 3))
    assert point_of((-1, 2, 3), SHAPE, include=True) is None
    assert point_of((1, 2, 10), SHAPE, include=True) is None


def test_a_rectangle_is_a_box_of_one_slice_within_the_image() -> None:
    corners = np.array([[2, 1, 1], [2, 1, 6], [2, 9, 6], [2, 9, 1]], float)
    assert box_of(corners, SHAPE, include=False) == Box((2, 1, 1), (3, 8, 7), include=False)
    assert box_of(corners + np.array((0, 20, 0)), SHAPE, include=True) is None


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_lasso_holds_what_it_surrounds_in_its_slice(axis: int) -> None:
    outline = np.insert(np.array([[0.5, 0.5], [0.5, 4.5], [4.5, 4.5], [4.5, 0.5]]), axis, 3.0, axis=1)
    found = lasso_of(outline, SHAPE, include=True)
    assert found is not None
    assert found.is_lasso
    assert found.mask.sum() == 16
    assert found.mask.any(tuple(a for a in range(3) if a != axis)).tolist().index(True) == 3
    assert lasso_of(outline + 50, SHAPE, include=True) is None
