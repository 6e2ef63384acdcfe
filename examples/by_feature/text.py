"""Text: copies of a sentence's embeddings.

    python examples/by_feature/text.py

`at` names the layer whose output is perturbed; the table goes on training.
"""

import torch
from base import criterion, report
from torch import nn

import conadv

WORDS, WIDTH, LENGTH = 50, 16, 8
ATTACK = conadv.Attack(epsilon=0.05, norm="l2", per="token", at="table")


class Sentences(nn.Module):
    """Is the first word among the words that follow?"""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, WIDTH)
        self.layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(self.table(tokens))[:, 0])


def sentences(count: int = 12, size: int = 32) -> list[tuple[torch.Tensor, torch.Tensor]]:
    made = []
    for _ in range(count):
        tokens = torch.randint(WORDS, (size, LENGTH))
        labels = (tokens[:, 1:] == tokens[:, :1]).any(1).long()
        made.append((tokens, labels))
    return made


def main() -> None:
    torch.manual_seed(0)
    model = conadv.split_norms(Sentences(), layer_norm=True)  # +
    adversary = conadv.Adversary(model, ATTACK)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for tokens, labels in sentences():  # +
        loss = adversary.loss(tokens, labels, criterion)  # +
        loss.backward()
        adversary.collect()
        optimizer.step()
        optimizer.zero_grad()
    report(adversary)


if __name__ == "__main__":
    main()
