"""Convolutional networks as they are published, small: halves of a chunk, shuffles, branches that
are folded. Each is a class with an `example()` of its input."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvBlock(nn.Module):
    def __init__(self, c1: int, c2: int, k: int = 1, s: int = 1, g: int = 1, act: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(c1, c2, k, s, k // 2, groups=g, bias=False)
        self.bn, self.act = nn.BatchNorm2d(c2), nn.SiLU() if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    def __init__(self, c: int, shortcut: bool):
        super().__init__()
        self.cv1, self.cv2, self.add = ConvBlock(c, c, 3), ConvBlock(c, c, 3), shortcut

    def forward(self, x: Tensor) -> Tensor:
        return x + self.cv2(self.cv1(x)) if self.add else self.cv2(self.cv1(x))


class C2f(nn.Module):
    """YOLOv8's stage: the halves of a chunk, one of them refined."""

    def __init__(self, c1: int, c2: int, n: int = 1, shortcut: bool = False):
        super().__init__()
        self.c = c2 // 2
        self.cv1, self.cv2 = ConvBlock(c1, c2), ConvBlock((2 + n) * self.c, c2)
        self.m = nn.ModuleList(Bottleneck(self.c, shortcut) for _ in range(n))

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.cv1(x).chunk(2, 1))
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))


class SPPF(nn.Module):
    def __init__(self, c1: int, c2: int):
        super().__init__()
        self.cv1, self.cv2 = ConvBlock(c1, c1 // 2), ConvBlock(c1 * 2, c2)
        self.m = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = [self.cv1(x)]
        y.extend(self.m(y[-1]) for _ in range(3))
        return self.cv2(torch.cat(y, 1))


class DFL(nn.Module):
    """The expectation over bins of a distance."""

    def __init__(self, bins: int):
        super().__init__()
        self.conv, self.bins = nn.Conv2d(bins, 1, 1, bias=False), bins
        self.conv.weight.data[:] = torch.arange(bins, dtype=torch.float).view(1, bins, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, _, a = x.shape
        return self.conv(x.view(b, 4, self.bins, a).transpose(2, 1).softmax(1)).view(b, 4, a)


class Detect(nn.Module):
    def __init__(self, classes: int, ch: tuple[int, ...], bins: int = 8):
        super().__init__()
        self.nc, self.no, self.bins = classes, classes + bins * 4, bins
        wide = max(16, ch[0] // 4, bins * 4)
        self.cv2 = nn.ModuleList(
            nn.Sequential(ConvBlock(c, wide, 3), nn.Conv2d(wide, 4 * bins, 1)) for c in ch
        )
        self.cv3 = nn.ModuleList(
            nn.Sequential(ConvBlock(c, ch[0], 3), nn.Conv2d(ch[0], classes, 1)) for c in ch
        )
        self.dfl = DFL(bins)

    def forward(self, x: list[Tensor]) -> Tensor:
        y = [torch.cat((self.cv2[i](f), self.cv3[i](f)), 1) for i, f in enumerate(x)]
        flat = torch.cat([f.view(f.shape[0], self.no, -1) for f in y], 2)
        box, scores = flat.split((self.bins * 4, self.nc), 1)
        left, right = self.dfl(box).chunk(2, 1)
        return torch.cat(((right - left) / 2, right + left, scores.sigmoid()), 1)


class YoloLike(nn.Module):
    """YOLOv8: C2f backbone, SPPF, a neck up and down (PAN), a detection head with DFL."""

    def __init__(self) -> None:
        super().__init__()
        self.b0, self.b1 = ConvBlock(3, 16, 3, 2), ConvBlock(16, 32, 3, 2)
        self.b2, self.b3 = C2f(32, 32, 1, True), ConvBlock(32, 48, 3, 2)
        self.b4, self.b5 = C2f(48, 48, 1, True), SPPF(48, 48)
        self.n1, self.n2 = C2f(48 + 32, 32), ConvBlock(32, 32, 3, 2)
        self.n3, self.head = C2f(32 + 48, 48), Detect(4, (32, 48))

    def forward(self, x: Tensor) -> Tensor:
        p2 = self.b2(self.b1(self.b0(x)))
        p3 = self.b5(self.b4(self.b3(p2)))
        up = self.n1(torch.cat([F.interpolate(p3, scale_factor=2.0), p2], 1))
        down = self.n3(torch.cat([self.n2(up), p3], 1))
        return self.head([up, down])

    @staticmethod
    def example(batch: int = 2) -> Tensor:
        return torch.randn(batch, 3, 32, 32)


class ShuffleUnit(nn.Module):
    def __init__(self, c1: int, c2: int, stride: int):
        super().__init__()
        self.stride, half = stride, c2 // 2
        if stride > 1:
            self.branch1 = nn.Sequential(
                ConvBlock(c1, c1, 3, stride, c1, act=False), ConvBlock(c1, half)
            )
        self.branch2 = nn.Sequential(
            ConvBlock(c1 if stride > 1 else half, half),
            ConvBlock(half, half, 3, stride, half, act=False),
            ConvBlock(half, half),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            x1, x2 = x.chunk(2, dim=1)
            out = torch.cat((x1, self.branch2(x2)), dim=1)
        else:
            out = torch.cat((self.branch1(x), self.branch2(x)), dim=1)
        b, c, h, w = out.shape
        return out.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)


class ShuffleNetLike(nn.Module):
    """ShuffleNetV2: half of the channels pass by, then all are shuffled."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvBlock(3, 12, 3, 2)
        self.stages = nn.Sequential(
            ShuffleUnit(12, 24, 2), ShuffleUnit(24, 24, 1), ShuffleUnit(24, 48, 2),
            ShuffleUnit(48, 48, 1),
        )  # fmt: skip
        self.last, self.fc = ConvBlock(48, 64), nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.last(self.stages(self.stem(x))).mean((2, 3)))

    @staticmethod
    def example(batch: int = 2) -> Tensor:
        return torch.randn(batch, 3, 32, 32)


class RepBlock(nn.Module):
    """RepVGG's and MobileOne's block in training form: 3x3, 1x1 and identity summed."""

    def __init__(self, c1: int, c2: int, stride: int = 1):
        super().__init__()
        self.dense = ConvBlock(c1, c2, 3, stride, act=False)
        self.point = ConvBlock(c1, c2, 1, stride, act=False)
        self.identity = nn.BatchNorm2d(c1) if c1 == c2 and stride == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.dense(x) + self.point(x)
        return F.relu(y if self.identity is None else y + self.identity(x))


class RepLike(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.Sequential(
            RepBlock(3, 16, 2), RepBlock(16, 16), RepBlock(16, 32, 2), RepBlock(32, 32)
        )
        self.fc = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.stages(x).mean((2, 3)))

    @staticmethod
    def example(batch: int = 2) -> Tensor:
        return torch.randn(batch, 3, 16, 16)
