"""Small networks and helpers that several tests of the branches share."""

import copy

import torch
from torch import nn

NAMES = ("clean", "adversarial")


def perturb_norms(model, seed=0):
    """Give every norm parameter and statistic a value of its own, so that branches differ."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            for name, value in (*module._parameters.items(), *module._buffers.items()):
                if value is None or value.ndim > 1 or not value.is_floating_point():
                    continue
                noise = torch.rand(value.shape, generator=generator, dtype=torch.float64)
                value.copy_(noise + 0.5 if name in ("weight", "running_var") else noise - 0.5)
    return model


def conv_net():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.Tanh(),
        nn.Conv2d(6, 4, 3, padding=1, stride=2),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(64, 8),
        nn.BatchNorm1d(8),
        nn.Linear(8, 5),
    )


def images(n=8):
    return torch.rand(n, 3, 8, 8)


def twin(model):
    return copy.deepcopy(model)
