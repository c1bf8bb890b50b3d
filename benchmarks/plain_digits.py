"""A plain convolutional network on the 8x8 digits of scikit-learn: three convolutions, two layers.

Small enough that a whole table of prunings runs in minutes, and wide enough that most of it can go.
"""

from __future__ import annotations

from functools import cache

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 10


class PlainNet(nn.Module):
    """(N, 1, 8, 8) -> logits (N, 10); 90,250 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(64)
        self.conv3 = nn.Conv2d(64, 64, 3, padding=1)
        self.norm3 = nn.BatchNorm2d(64)
        self.linear = nn.Linear(256, 128)
        self.head = nn.Linear(128, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(images)))
        x = F.max_pool2d(F.relu(self.norm2(self.conv2(x))), 2)
        x = F.max_pool2d(F.relu(self.norm3(self.conv3(x))), 2)
        return self.head(F.relu(self.linear(x.flatten(1))))


@cache
def splits() -> dict[str, tuple[Tensor, Tensor]]:
    """Images float32 (N, 1, 8, 8) in [0, 1] and labels int64 (N): 1347 "train", 450 "test"."""
    pixels, digits = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    labels = torch.tensor(digits, dtype=torch.long)
    train, test = train_test_split(range(len(labels)), test_size=0.25, random_state=0)
    return {"train": (images[train], labels[train]), "test": (images[test], labels[test])}


def trained(seed: int = 0, epochs: int = 25) -> PlainNet:
    """A PlainNet trained from a seeded start, in eval mode: about 99.5 % of the test split."""
    images, labels = splits()["train"]
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = PlainNet()
    steps = epochs * -(-len(labels) // 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(epochs):
        for part in torch.randperm(len(labels), generator=generator).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(images[part]), labels[part]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()
