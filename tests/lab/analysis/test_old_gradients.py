"""Old gradients against the closed form of quadratic losses."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import conadv
from conadv.lab.analysis import gradient_agreement

BOWL = 0.5
SIZES = (3, 4)


class Bowl(nn.Module):
    """Of a micro-batch with the one image a: w - a, in two layers."""

    def __init__(self, weights: np.ndarray) -> None:
        super().__init__()
        first, second = np.split(weights, [SIZES[0]])
        self.first = nn.Parameter(torch.tensor(first[None]))
        self.second = nn.Parameter(torch.tensor(second[None]))

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([self.first, self.second], dim=1) - images


def bowl(outputs: Tensor, labels: Tensor) -> Tensor:
    """Its gradient is BOWL * (w - a)."""
    return BOWL / 2 * outputs.square().sum()


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    """Mean over the two layers."""
    parts = zip(np.split(one, [SIZES[0]]), np.split(other, [SIZES[0]]), strict=True)
    return float(np.mean([a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in parts]))


@pytest.mark.parametrize("rate", [0.5, 1.5, 3.0, 10.0])
def test_a_step_downhill_in_a_bowl(rate: float) -> None:
    rng = np.random.default_rng(0)
    # The second layer is much longer: layers count the same all the same.
    scale = np.repeat([1.0, 50.0], SIZES)
    centres, w = (rng.normal(size=(n, 7)) * scale for n in (5, 1))
    old = w[0] + 2 * scale
    new = old - rate * BOWL * (old - centres.mean(axis=0))
    was, now = BOWL * (old - centres), BOWL * (new - centres)
    batches = [(torch.tensor(a[None]), torch.zeros(1)) for a in centres]
    found = gradient_agreement(Bowl(old), Bowl(new), batches, bowl)
    pairs = list(zip(was, now, strict=True))
    assert found.whole == pytest.approx(np.mean([cosine(a, b) for a, b in pairs]), abs=1e-5)
    # A step goes along what all share: past the lowest point it points the other way, ...
    assert found.shared == pytest.approx(np.sign(1 - rate * BOWL), abs=1e-5)
    # ... while in a bowl nothing changes about what is a micro-batch's own.
    assert found.own == pytest.approx(1, abs=1e-5)
    others = [cosine(was[i], now[(i + 1) % 5]) for i in range(5)]
    assert found.other == pytest.approx(np.mean(others), abs=1e-5)
    way = np.linalg.norm(new - old) / np.linalg.norm(old)
    assert found.moved == pytest.approx(way, rel=1e-5)
    assert found.micro_batches == 5


def test_models_stay_as_they_are() -> None:
    torch.manual_seed(0)
    model = conadv.split_norms(
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(1))
    )
    model.append(nn.Linear(144, 3)).eval()
    model[2].train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batches = [(torch.randn(8, 1, 8, 8), torch.randint(3, (8,))) for _ in range(3)]
    random = torch.get_rng_state()
    found = gradient_agreement(model, model, batches, branch="adversarial")
    # The same weights and the same dropout: nothing is old.
    assert found.whole == pytest.approx(1, abs=1e-5) == found.own == found.shared
    assert found.other is not None and found.other < 0.9
    assert found.moved == 0
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert [module.training for module in model] == [False, False, True, False, False]
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for p in model.parameters())


def test_one_micro_batch_has_no_part_of_its_own() -> None:
    model = Bowl(np.ones(7))
    found = gradient_agreement(model, model, [(torch.zeros(1, 7), torch.zeros(1))], bowl)
    assert found.own is None and found.other is None and found.shared == pytest.approx(1)


def test_what_cannot_be() -> None:
    model = Bowl(np.ones(7))
    with pytest.raises(ValueError, match="no images"):
        gradient_agreement(model, model, [], bowl)
    with pytest.raises(ValueError, match="once only"):
        gradient_agreement(model, model, iter([]), bowl)
