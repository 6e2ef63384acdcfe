"""A small network of text, and training it with perturbed embeddings."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

import conadv

WORDS, WIDTH, CLASSES, LENGTH = 11, 6, 5, 4
ATTACK = conadv.Attack(0.1, at="table")


class Text(nn.Module):
    """Mean pooling; its padding counts, unless a mask is given."""

    def __init__(self, checkpointed: bool = False) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, WIDTH)
        self.inner = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())
        self.head = nn.Linear(WIDTH, CLASSES)
        self.checkpointed = checkpointed

    def features(self, tokens: Tensor) -> Tensor:
        return self.inner(self.table(tokens))

    def forward(self, tokens: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        if self.checkpointed:
            found = checkpoint(self.features, tokens, use_reentrant=False)
        else:
            found = self.features(tokens)
        if attention_mask is None:
            return self.head(found.mean(1))
        mask = attention_mask[..., None].to(found.dtype)
        return self.head((found * mask).sum(1) / mask.sum(1))


def text(**options: Any) -> Text:
    torch.manual_seed(0)
    return Text(**options)


def batches(lengths: tuple[int, ...] = (LENGTH,) * 3, size: int = 3) -> list[tuple[dict, Tensor]]:
    """Dicts of inputs, each row masked from a place of its own, and labels."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for length in lengths:
        tokens = torch.randint(WORDS, (size, length), generator=generator)
        mask = (torch.arange(length) < torch.arange(2, 2 + size)[:, None]).long()
        labels = torch.randint(CLASSES, (size,), generator=generator)
        found.append(({"tokens": tokens, "attention_mask": mask}, labels))
    return found


def train(
    model: nn.Module,
    data: Any,
    schedule: Any,
    attack: Any = ATTACK,
    wrapped: Any = None,
    dtype: torch.dtype | None = None,
    scaler: Any = None,
    **options: Any,
) -> Any:
    """The adversary after a step for each batch; `dtype` of autocast, None: without it."""
    scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
    adversary = conadv.Adversary(wrapped or model, attack, schedule, **options)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for inputs, labels in data:
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            loss = adversary.loss(inputs, labels, cross_entropy)
        scaler.scale(loss).backward()
        if not adversary.auto_collect:
            adversary.collect()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    return adversary


def pending(adversary: conadv.Adversary) -> dict:
    [found] = adversary.schedule.state_dict()["pending"]
    return found
