"""Text: copies of a sentence's embeddings, in a network of one's own.

    python examples/by_feature/text.py

The images of `mix` are perturbations, zeros to begin with; the tokens travel with the labels.
`conadv.integrations.transformers` does this for models of Hugging Face.
"""

import torch
from base import criterion
from torch import nn

import conadv

WORDS, WIDTH, LENGTH = 50, 16, 8


class Sentences(nn.Module):
    """Is the first word among the words that follow? Tokens and a perturbation to logits."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, WIDTH)
        self.layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, tokens: torch.Tensor, perturbation: torch.Tensor) -> torch.Tensor:  # +
        return self.head(self.layer(self.table(tokens) + perturbation)[:, 0])  # +


def sentences(count: int = 12, size: int = 32) -> list[tuple[torch.Tensor, torch.Tensor]]:
    made = []
    for _ in range(count):
        tokens = torch.randint(WORDS, (size, LENGTH))
        labels = (tokens[:, 1:] == tokens[:, :1]).any(1).long()
        made.append((tokens, labels))
    return made


def main() -> None:
    torch.manual_seed(0)
    model = conadv.split_norms(Sentences(), layer_norm=True)
    attack = conadv.Attack(epsilon=0.05, norm="l2", pixel_range=None)  # +
    adversary = conadv.Adversary(model, attack)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for tokens, labels in sentences():
        nothing = torch.zeros(*tokens.shape, WIDTH)  # +
        mixed = adversary.mix(nothing, {"tokens": tokens, "labels": labels})  # +
        logits = model(mixed.labels["tokens"], mixed.images)  # +
        loss = criterion(logits, mixed.labels["labels"])
        loss.backward()
        adversary.collect()
        optimizer.step()
        optimizer.zero_grad()
    size = adversary.preview[1].flatten(1).norm(dim=1).mean()  # type: ignore[index]
    print(f"loss {loss.item():.3f}, copies moved by {size:.3f}")


if __name__ == "__main__":
    main()
