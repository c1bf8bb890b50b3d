"""Handwritten digits from scikit-learn, and a convolutional network that learns them quickly."""

from __future__ import annotations

import time
from functools import cache
from typing import Literal

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

SIDE = 16  # the 8x8 images are drawn at this size
CLASSES = 10
Split = Literal["train", "test"]


@cache
def _splits() -> dict[str, tuple[Tensor, Tensor]]:
    pixels, digits = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    images = F.interpolate(images, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    images = (images - 0.31) / 0.35
    labels = torch.tensor(digits, dtype=torch.long)
    # Seeded: 1347 to train on, 450 to test.
    train, test = train_test_split(range(len(labels)), test_size=0.25, random_state=0)
    return {"train": (images[train], labels[train]), "test": (images[test], labels[test])}


def tensors(split: Split) -> tuple[Tensor, Tensor]:
    """Images float32 (N, 1, 16, 16) of about zero mean and unit spread, labels int64 (N)."""
    return _splits()[split]


def batches(split: Split, batch_size: int = 64, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """The split in one shuffled order, as (images, labels)."""
    images, labels = tensors(split)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return [(images[part], labels[part]) for part in order.split(batch_size)]


class Block(nn.Module):
    """Two convolutions around a shortcut; the second one grouped or depthwise."""

    def __init__(self, channels: int, out_channels: int, stride: int, groups: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out_channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, groups=groups, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.conv3 = nn.Conv2d(out_channels, out_channels, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != out_channels:
            self.shortcut = nn.Conv2d(channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        return F.relu(self.norm3(self.conv3(y)) + self.shortcut(x))


class DigitsNet(nn.Module):
    """A residual network with dense, grouped and depthwise convolutions: (N, 1, 16, 16) -> (N, 10).

    Wide for its task, so that how much of it is needed is the question a compiler answers.
    """

    def __init__(self, widths: tuple[int, int, int] = (32, 64, 128)) -> None:
        super().__init__()
        first, second, third = widths
        self.stem = nn.Conv2d(1, first, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(first)
        self.stage1 = nn.Sequential(Block(first, first, 1, groups=4))
        self.stage2 = nn.Sequential(Block(first, second, 2, second), Block(second, second, 1, 4))
        self.stage3 = nn.Sequential(Block(second, third, 2, third), Block(third, third, 1, 8))
        self.head = nn.Linear(third, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(images)))
        x = self.stage3(self.stage2(self.stage1(x)))
        return self.head(x.mean(dim=(2, 3)))


def train(model: nn.Module, epochs: int = 8, learning_rate: float = 0.003, seed: int = 0) -> float:
    """Train in place on the training split by cross-entropy; gives the seconds it took.

    Runs on one thread: the same seed then gives the same weights whatever else the machine does,
    and two threads that share a busy core are slower than one. The model is left in eval mode.
    """
    began = time.perf_counter()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    steps = epochs * len(batches("train"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    try:
        for epoch in range(epochs):
            for images, labels in batches("train", seed=seed + epoch):
                # Up to one pixel of the 8x8 image in each direction.
                shift = torch.randint(-2, 3, (2,), generator=generator).tolist()
                logits = model(torch.roll(images, shift, dims=(2, 3)))
                optimizer.zero_grad()
                F.cross_entropy(logits, labels, label_smoothing=0.1).backward()
                optimizer.step()
                schedule.step()
    finally:
        torch.set_num_threads(threads)
    model.eval()
    return time.perf_counter() - began


def trained(seed: int = 0) -> DigitsNet:
    """A DigitsNet trained from a seeded start, in eval mode: over 98 % of the test split."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DigitsNet()
    train(model, seed=seed)
    return model


@torch.no_grad()
def accuracy(model: nn.Module, split: Split = "test") -> float:
    """The share of a split's images that are classified rightly, between 0 and 1."""
    images, labels = tensors(split)
    training = model.training
    model.eval()
    right = (model(images).argmax(dim=1) == labels).float().mean().item()
    model.train(training)
    return right
