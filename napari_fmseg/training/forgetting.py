"""Learning new classes without forgetting the old ones.

Three ways, which may be joined: cases of before are shown again (the safest, where they are there); the weights are
held near those of before (L2-SP: Li et al., Explicit inductive bias for transfer learning, ICML 2018); or the model of
before, kept beside, says on the new cases what it would have answered about the old classes (learning without
forgetting, Li and Hoiem 2016), where everything new counts as background.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from napari_fmseg.nets.traits import probabilities
from napari_fmseg.training.tasks.base import make_loss, make_structure_loss

__all__ = ["Teacher", "class_merging_matrix", "l2sp_penalty"]


def class_merging_matrix(labels: Sequence[str], onto: Sequence[str]) -> Tensor:
    """Return the matrix that adds up classes: (1 + len(onto), 1 + len(labels)) float32.

    A class that is not in `onto` goes to the background.
    """
    matrix = torch.zeros(1 + len(onto), 1 + len(labels))
    matrix[0, 0] = 1
    for i, name in enumerate(labels, 1):
        matrix[1 + onto.index(name) if name in onto else 0, i] = 1
    return matrix


class Teacher:
    """The previous network, whose predictions of the shared classes are to be kept (distillation).

    Parameters
    ----------
    net
        It. Frozen, in evaluation mode.
    labels
        Its classes by label.
    wanted
        The classes that are learned now, in order.
    """

    def __init__(self, net: nn.Module, labels: Mapping[int, str], wanted: Sequence[str]) -> None:
        device = next(net.parameters()).device
        own = [labels.get(i, f"label {i}") for i in range(1, 1 + max(labels))]
        shared = [name for name in own if name in wanted]
        self.net = net.eval()
        self.n_new = 1 + len(wanted)
        self._theirs, self._ours = (class_merging_matrix(names, shared).to(device) for names in (own, wanted))
        self._back = class_merging_matrix(wanted, own).to(device)
        self._criterion, self._of_structures = make_loss("dice_ce"), make_structure_loss("dice_ce")

    def loss(self, found: Tensor, inputs: Sequence[Tensor]) -> Tensor:
        """Compare probabilities (b, classes, z, y, x) with those of the previous network for the same inputs.

        Where structures may overlap for one of the two networks (no background), they are compared one by one.
        """
        asked = [self._mix(self._back, x) if i and x.shape[1] == self.n_new else x for i, x in enumerate(inputs)]
        with torch.no_grad():
            answer = self._mix(self._theirs, probabilities(self.net, self.net(*asked)))
        ours, n = self._mix(self._ours, found), len(self._ours)
        if n == ours.shape[1] == answer.shape[1]:
            loss: Tensor = self._criterion(ours, answer)
            return loss
        return self._of_structures(ours[:, -(n - 1) :], answer[:, -(n - 1) :])

    @staticmethod
    def _mix(matrix: Tensor, values: Tensor) -> Tensor:
        if values.shape[1] == matrix.shape[1] - 1:  # no background: structures that may overlap
            matrix = matrix[1:, 1:]
        return torch.einsum("oc,bczyx->bozyx", matrix.to(values.dtype), values)


def l2sp_penalty(net: nn.Module, anchors: Mapping[str, Tensor]) -> Tensor:
    """Return half the squared distance of the weights from the previous ones (L2-SP)."""
    parts = [(p - anchors[name]).square().sum() for name, p in net.named_parameters() if name in anchors]
    return 0.5 * torch.stack(parts).sum() if parts else torch.zeros(())
