"""What waits for a later step, against what an adversary really keeps."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import conadv
from conadv import weights
from conadv.trainer.probe.memory import bytes_of
from conadv.weights.space import WeightSpace


@pytest.mark.parametrize(
    ("schedule", "micro_batches"),
    [
        (weights.Sequential(), 0),
        (weights.Noise(), 0),
        (weights.Recycled(), 4),
        (weights.Recycled(share=0.5), 2),
        (weights.Recycled(share=conadv.PiecewiseLinear([(0, 0.5), (0.2, 1), (1, 0.5)])), 4),
        (weights.Recycled(every=2), 4),
        (weights.Slot(), 4),
        (weights.Lookahead(tau=2, share=0.5), 4),
        (weights.Lookahead(tau=2, every=2), 4),
    ],
)
def test_it_is_what_an_adversary_keeps(
    schedule: weights.WeightSchedule, micro_batches: int
) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    attack = conadv.WeightAttack(micro_batch=4)
    adversary = conadv.WeightAdversary(model, attack, schedule)
    adversary.progress = 0.2
    loader = [(torch.randn(16, 3, 2, 2), torch.randint(3, (16,))) for _ in range(5)]
    most = 0
    for images, labels in adversary.batches(loader):
        adversary.loss(images, labels, cross_entropy).backward()
        adversary.collect()
        pending = adversary.state_dict()["state"]["pending"]
        kept = [(entry["gradient"], entry["images"]) for entries in pending for entry in entries]
        most = max(most, bytes_of(kept))
    size = WeightSpace(model, attack.parameters).size
    assert size == 12 * 6 + 6 * 3
    images_bytes = 4 * 12 * 4
    found = schedule.kept_bytes(size, 4, images=images_bytes, dtype=attack.dtype)
    of_images = images_bytes if schedule.name == "recycled" else 0
    assert found == most == micro_batches * (2 * size + of_images)
