"""Small objectives for the tests of flatness."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from yolo_os.flatness.operator import Objective, times


def classifier(seed=0, hidden=5, batches=2):
    """A small network with a bend, and its cross entropy over batches of unequal size."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, hidden), nn.Tanh(), nn.Linear(hidden, 3)).double()
    data = [(torch.randn(6 + 3 * index, 4).double(), torch.randint(0, 3, (6 + 3 * index,))) for index in range(batches)]
    total = sum(len(y) for _, y in data)
    objective = Objective(
        dict(model.named_parameters()),
        [len(y) / total for _, y in data],
        lambda batch: {"logits": model(data[batch][0]), "feats": [data[batch][0]]},
        lambda batch, made: cross_entropy(made["logits"], data[batch][1]),
    )
    return model, data, objective


def columns(matrix):
    return torch.stack([times(matrix, each) for each in torch.eye(matrix.objective.size).double()], 1)
