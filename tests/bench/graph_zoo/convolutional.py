"""Convolutional networks written by hand, as their papers and torchvision have them, in small widths."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class Pooled(nn.Module):
    """A body, the mean over space, a linear layer."""

    def __init__(self, width: int, *body: nn.Module) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(*body), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


class Block(nn.Module):
    """ResNet's basic block; its shortcut is option A (zeros) or B (a convolution)."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, padded: bool = False) -> None:
        super().__init__()
        self.one, self.two = conv(inputs, outputs, 3, stride), conv(outputs, outputs)[:2]
        self.extra, self.stride = outputs - inputs, stride
        self.short = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 and not padded else None

    def forward(self, x: Tensor) -> Tensor:
        short = self.short(x) if self.short is not None else x
        if self.short is None and self.stride > 1:
            short = F.pad(
                x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.extra // 2, self.extra // 2)
            )
        return F.relu(short + self.two(self.one(x)))


class Dense(nn.Module):
    """DenseNet-BC: bottlenecks, everything before is read again; a transition halves."""

    def __init__(self, width: int, growth: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(width + growth * place),
                nn.ReLU(),
                nn.Conv2d(width + growth * place, 4 * growth, 1, bias=False),
                conv(4 * growth, growth)[0],
                nn.BatchNorm2d(growth),
                nn.ReLU(),
            )
            for place in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return x


class Inception(nn.Module):
    """GoogLeNet's module: four branches side by side."""

    def __init__(self, inputs: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        a, b, c, d, e, f = widths
        self.branches = nn.ModuleList(
            [
                conv(inputs, a, 1),
                nn.Sequential(conv(inputs, b, 1), conv(b, c)),
                nn.Sequential(conv(inputs, d, 1), conv(d, e, 5)),
                nn.Sequential(nn.MaxPool2d(3, 1, 1), conv(inputs, f, 1)),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class Fire(nn.Module):
    """SqueezeNet's module."""

    def __init__(self, inputs: int, squeezed: int, side: int) -> None:
        super().__init__()
        self.squeeze = conv(inputs, squeezed, 1)
        self.small, self.large = conv(squeezed, side, 1), conv(squeezed, side)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(x)
        return torch.cat([self.small(x), self.large(x)], 1)


def shuffled(x: Tensor, groups: int) -> Tensor:
    """Channels of groups in turns."""
    batch, channels, height, width = x.shape
    x = x.view(batch, groups, channels // groups, height, width).transpose(1, 2)
    return x.reshape(batch, channels, height, width)


class ShuffleUnit(nn.Module):
    """ShuffleNet's unit; in its second version half of the channels pass."""

    def __init__(self, width: int, groups: int, second: bool) -> None:
        super().__init__()
        self.second, self.groups = second, 2 if second else groups
        inner = width // 2
        wide = inner if second else width
        share = 1 if second else groups
        self.first, self.last = conv(wide, inner, 1, 1, share), conv(inner, wide, 1, 1, share)[:2]
        self.depth = conv(inner, inner, 3, 1, inner)[:2]

    def forward(self, x: Tensor) -> Tensor:
        if self.second:
            one, two = x.chunk(2, 1)
            return shuffled(torch.cat([one, F.relu(self.last(self.depth(self.first(two))))], 1), 2)
        return F.relu(x + self.last(self.depth(shuffled(self.first(x), self.groups))))


class Excited(nn.Module):
    """A residual block with squeeze and excitation, written with linear layers as in SENet."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(width, width), conv(width, width)[:2])
        self.gate = nn.Sequential(
            nn.Linear(width, width // 4), nn.ReLU(), nn.Linear(width // 4, width), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        batch, channels, _, _ = y.shape
        gate = self.gate(F.adaptive_avg_pool2d(y, 1).view(batch, channels)).view(batch, channels, 1, 1)
        return F.relu(x + y * gate.expand_as(y))


class Attending(nn.Module):
    """CBAM: what matters among channels by mean and maximum, then among places by a convolution over both."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = conv(width, width)
        self.shared = nn.Sequential(
            nn.Conv2d(width, width // 4, 1), nn.ReLU(), nn.Conv2d(width // 4, width, 1)
        )
        self.places = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        y = y * torch.sigmoid(
            self.shared(F.adaptive_avg_pool2d(y, 1)) + self.shared(F.adaptive_max_pool2d(y, 1))
        )
        both = torch.cat([y.mean(1, keepdim=True), y.amax(1, keepdim=True)], 1)
        return x + y * torch.sigmoid(self.places(both))


class Selective(nn.Module):
    """Selective kernels: a softmax over two branches weighs them, channel by channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList([conv(width, width, 3), conv(width, width, 5)])
        self.squeeze, self.excite = nn.Linear(width, width // 2), nn.Linear(width // 2, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.stack([branch(x) for branch in self.branches], 1)
        gate = self.excite(F.relu(self.squeeze(parts.sum(1).mean((2, 3)))))
        gate = gate.view(-1, 2, x.shape[1]).softmax(1)
        return (parts * gate[:, :, :, None, None]).sum(1)


class Multiscale(nn.Module):
    """Res2Net: groups of channels one after the other, each reads the one before."""

    def __init__(self, width: int, parts: int = 4) -> None:
        super().__init__()
        self.first, self.last = conv(width, width, 1), conv(width, width, 1)[:2]
        self.steps = nn.ModuleList(conv(width // parts, width // parts) for _ in range(parts - 1))
        self.parts = parts

    def forward(self, x: Tensor) -> Tensor:
        pieces = self.first(x).chunk(self.parts, 1)
        made, last = [pieces[0]], pieces[0]
        for piece, step in zip(pieces[1:], self.steps, strict=True):
            last = step(piece + last)
            made.append(last)
        return F.relu(x + self.last(torch.cat(made, 1)))


class Ghost(nn.Module):
    """GhostNet's module: half of the channels are cheap copies of the others, and a part is taken."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.outputs, half = outputs, -(-outputs // 2)
        self.main, self.cheap = conv(inputs, half, 1), conv(half, half, 3, 1, half)

    def forward(self, x: Tensor) -> Tensor:
        one = self.main(x)
        return torch.cat([one, self.cheap(one)], 1)[:, : self.outputs]


class Inverted(nn.Module):
    """MobileNet 2's block."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        inner, self.same = 4 * inputs, stride == 1 and inputs == outputs
        self.body = nn.Sequential(
            conv(inputs, inner, 1), conv(inner, inner, 3, stride, inner), conv(inner, outputs, 1)[:2]
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.same else self.body(x)


class Net3d(nn.Module):
    """Video [3, 8, 32, 32]: convolutions over time and space apart (R(2+1)D)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv3d(3, 24, (1, 3, 3), (1, 2, 2), (0, 1, 1)),
            nn.BatchNorm3d(24),
            nn.ReLU(),
            nn.Conv3d(24, 32, (3, 1, 1), 1, (1, 0, 0)),
            nn.BatchNorm3d(32),
            nn.ReLU(),
            nn.MaxPool3d(2),
            nn.Conv3d(32, 48, 3, 1, 1),
            nn.ReLU(),
        )
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.adaptive_avg_pool3d(self.body(x), 1).flatten(1))


def alexnet() -> nn.Module:
    """Convolutions with two groups, local response norm, linear layers on the map."""
    return nn.Sequential(
        nn.Conv2d(3, 24, 7, 2, 3),
        nn.ReLU(),
        nn.LocalResponseNorm(5),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(24, 48, 5, 1, 2, groups=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(48, 64, 3, 1, 1),
        nn.ReLU(),
        nn.Conv2d(64, 48, 3, 1, 1, groups=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(7),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(48 * 49, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def resnet(padded: bool) -> nn.Module:
    """ResNet for CIFAR, 8 convolutions."""
    return Pooled(
        64, conv(3, 16), Block(16, 16), Block(16, 32, 2, padded), Block(32, 32), Block(32, 64, 2, padded)
    )


def densenet() -> nn.Module:
    """Two dense blocks."""
    return Pooled(24 + 48, conv(3, 24), Dense(24, 12, 4), conv(72, 36, 1), nn.AvgPool2d(2), Dense(36, 9, 4))


def resnext() -> nn.Module:
    """Bottlenecks of eight groups."""
    return Pooled(48, conv(3, 32, 3, 2), conv(32, 64, 1), conv(64, 64, 3, 1, 8), conv(64, 48, 1))


def listed() -> Iterator[tuple[Any, ...]]:
    """Name, what builds it, and inputs."""
    image = ("image:1x3x32x32",)
    yield (
        "VGG",
        lambda: nn.Sequential(
            conv(3, 32),
            conv(32, 32),
            nn.MaxPool2d(2),
            conv(32, 64),
            nn.MaxPool2d(2),
            conv(64, 64),
            nn.Flatten(),
            nn.Linear(4096, 96),
            nn.ReLU(),
            nn.Linear(96, 10),
        ),
        image,
    )
    yield "AlexNet", alexnet, ("image:1x3x64x64",)
    yield "ResNet, shortcut A", lambda: resnet(True), image
    yield "ResNet, shortcut B", lambda: resnet(False), image
    yield "ResNeXt", resnext, image
    yield "DenseNet", densenet, image
    yield (
        "GoogLeNet",
        lambda: Pooled(
            72,
            conv(3, 24, 3, 2),
            Inception(24, (16, 16, 24, 4, 8, 8)),
            Inception(56, (16, 24, 32, 8, 12, 12)),
        ),
        image,
    )
    yield "SqueezeNet", lambda: Pooled(64, conv(3, 24, 3, 2), Fire(24, 8, 24), Fire(48, 12, 32)), image
    yield (
        "ShuffleNet",
        lambda: Pooled(48, conv(3, 48, 3, 2), ShuffleUnit(48, 3, False), ShuffleUnit(48, 3, False)),
        image,
    )
    yield (
        "ShuffleNet 2",
        lambda: Pooled(
            48, conv(3, 48, 3, 2), ShuffleUnit(48, 2, True), ShuffleUnit(48, 2, True), conv(48, 48, 1)
        ),
        image,
    )
    yield (
        "MobileNet 2",
        lambda: Pooled(64, conv(3, 16, 3, 2), Inverted(16, 24, 2), Inverted(24, 24, 1), conv(24, 64, 1)),
        image,
    )
    yield "SENet", lambda: Pooled(32, conv(3, 32, 3, 2), Excited(32), Excited(32)), image
    yield "CBAM", lambda: Pooled(32, conv(3, 32, 3, 2), Attending(32), conv(32, 32)), image
    yield "SKNet", lambda: Pooled(32, conv(3, 32, 3, 2), Selective(32), conv(32, 32)), image
    yield "Res2Net", lambda: Pooled(48, conv(3, 48, 3, 2), Multiscale(48), Multiscale(48)), image
    yield "GhostNet", lambda: Pooled(49, conv(3, 16, 3, 2), Ghost(16, 33), Ghost(33, 49)), image
    yield "3-d convolutions", Net3d, ("video:1x3x8x32x32",)
