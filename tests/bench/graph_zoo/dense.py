"""Networks written by hand that give maps, several outputs, or take several inputs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.bench.graph_zoo.convolutional import Block, conv


class UNet(nn.Module):
    """Three levels down and up, skips put together."""

    def __init__(self, interpolated: bool) -> None:
        super().__init__()
        self.down = nn.ModuleList([conv(3, 16), conv(16, 24), conv(24, 32)])
        self.ups = nn.ModuleList(
            nn.Conv2d(a, b, 1) if interpolated else nn.ConvTranspose2d(a, b, 2, 2)
            for a, b in ((32, 24), (24, 16))
        )
        self.after, self.out = nn.ModuleList([conv(48, 24), conv(32, 16)]), nn.Conv2d(16, 2, 1)
        self.interpolated = interpolated

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for number, step in enumerate(self.down):
            x = step(F.max_pool2d(x, 2) if number else x)
            kept.append(x)
        for up, after, skip in zip(self.ups, self.after, reversed(kept[:-1]), strict=True):
            if self.interpolated:
                x = F.interpolate(x, scale_factor=2, mode="nearest")
            x = after(torch.cat([up(x), skip], 1))
        return self.out(x)


class Pyramid(nn.Module):
    """A feature pyramid with heads that are shared over levels: classes and boxes of each."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([conv(3, 24, 3, 2), conv(24, 32, 3, 2), conv(32, 48, 3, 2)])
        self.sides = nn.ModuleList(nn.Conv2d(width, 24, 1) for width in (24, 32, 48))
        self.tower, self.classes, self.boxes = conv(24, 24), nn.Conv2d(24, 6, 1), nn.Conv2d(24, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        maps = []
        for stage, side in zip(self.stages, self.sides, strict=True):
            x = stage(x)
            maps.append(side(x))
        for level in (1, 0):
            maps[level] = maps[level] + F.interpolate(maps[level + 1], scale_factor=2, mode="nearest")
        towers = [self.tower(one) for one in maps]
        classes = [self.classes(one).flatten(2).transpose(1, 2) for one in towers]
        boxes = [self.boxes(one).flatten(2).transpose(1, 2).exp() for one in towers]
        return torch.cat(classes, 1), torch.cat(boxes, 1)


class Yolo(nn.Module):
    """A cross-stage block, fast spatial pyramid pooling, one head whose map is cut into anchors."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = conv(3, 24, 3, 2), conv(24, 16, 1), conv(24, 16, 1)
        self.middle, self.join = Block(16, 16), conv(32, 32, 1)
        self.before, self.after = conv(32, 16, 1), conv(64, 32, 1)
        self.head = nn.Conv2d(32, 3 * 7, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.stem(x))
        x = self.join(torch.cat([self.middle(self.left(x)), self.right(x)], 1))
        x = self.before(x)
        pooled = [x]
        for _ in range(3):
            pooled.append(F.max_pool2d(pooled[-1], 5, 1, 2))
        x = self.head(self.after(torch.cat(pooled, 1)))
        batch, _, height, width = x.shape
        x = x.view(batch, 3, 7, height, width).permute(0, 1, 3, 4, 2).sigmoid()
        return x.reshape(batch, -1, 7)


class DeepLab(nn.Module):
    """Dilated branches and the mean of the whole map, stretched again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 24, 3, 2), conv(24, 32))
        self.branches = nn.ModuleList(nn.Conv2d(32, 16, 3, padding=rate, dilation=rate) for rate in (1, 2, 4))
        self.whole, self.join, self.out = nn.Conv2d(32, 16, 1), conv(64, 24, 1), nn.Conv2d(24, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        whole = F.interpolate(
            F.relu(self.whole(F.adaptive_avg_pool2d(y, 1))), size=y.shape[2:], mode="bilinear"
        )
        y = self.join(torch.cat([*(branch(y) for branch in self.branches), whole], 1))
        return F.interpolate(self.out(y), size=x.shape[2:], mode="bilinear", align_corners=False)


class Siamese(nn.Module):
    """Two images through one tower; similar or not."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(conv(3, 24, 3, 2), Block(24, 24), conv(24, 32, 3, 2))
        self.embed, self.head = nn.Linear(32, 24), nn.Linear(24, 1)

    def forward(self, one: Tensor, two: Tensor) -> Tensor:
        a, b = (self.embed(self.tower(x).mean((2, 3))) for x in (one, two))
        return self.head((a - b).abs())


class Twins(nn.Module):
    """Two images through one tower, whose embeddings are of length one: the cosine."""

    def __init__(self) -> None:
        super().__init__()
        self.tower, self.embed = nn.Sequential(conv(3, 24, 3, 2), conv(24, 32, 3, 2)), nn.Linear(32, 24)

    def forward(self, one: Tensor, two: Tensor) -> Tensor:
        a, b = (F.normalize(self.embed(self.tower(x).mean((2, 3))), dim=1) for x in (one, two))
        return (a * b).sum(1, keepdim=True)


class Several(nn.Module):
    """One trunk, three tasks: classes, a number, a map."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(conv(3, 32), Block(32, 32), conv(32, 48, 3, 2))
        self.classes, self.number, self.map = nn.Linear(48, 10), nn.Linear(48, 1), nn.Conv2d(48, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.trunk(x)
        pooled = x.mean((2, 3))
        return self.classes(pooled).log_softmax(1), self.number(pooled), self.map(x)


class Fusion(nn.Module):
    """An image and a row of numbers: features are scaled and shifted by what the row says (FiLM)."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.after = conv(3, 32, 3, 2), conv(32, 48, 3, 2)
        self.row = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 64))
        self.head = nn.Linear(48, 10)

    def forward(self, image: Tensor, row: Tensor) -> Tensor:
        scale, shift = self.row(row)[:, :, None, None].chunk(2, 1)
        return self.head(self.after(self.body(image) * (1 + scale) + shift).mean((2, 3)))


class Variational(nn.Module):
    """Mean and log-variance of an encoder, and what a decoder makes of the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            conv(3, 24, 3, 2), conv(24, 32, 3, 2), nn.Flatten(), nn.Linear(32 * 64, 48)
        )
        self.mean, self.spread = nn.Linear(48, 8), nn.Linear(48, 8)
        self.decoder = nn.Sequential(
            nn.Linear(8, 32 * 64),
            nn.ReLU(),
            nn.Unflatten(1, (32, 8, 8)),
            nn.ConvTranspose2d(32, 24, 4, 2, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(24, 3, 4, 2, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        code = F.relu(self.encoder(x))
        mean = self.mean(code)
        return self.decoder(mean), mean, self.spread(code)


def super_resolution() -> nn.Module:
    """Residual blocks without norms, pixel shuffle (EDSR)."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        Plain(32),
        Plain(32),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.PixelShuffle(2),
        nn.Conv2d(16, 3, 3, padding=1),
    )


class Plain(nn.Module):
    """A residual block without norms."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * self.two(F.relu(self.one(x)))


def autoencoder() -> nn.Module:
    """Down by strides, up by transposed convolutions."""
    return nn.Sequential(
        conv(3, 24, 3, 2),
        conv(24, 48, 3, 2),
        nn.ConvTranspose2d(48, 24, 3, 2, 1, output_padding=1),
        nn.InstanceNorm2d(24, affine=True),
        nn.LeakyReLU(0.2),
        nn.ConvTranspose2d(24, 3, 4, 2, 1),
        nn.Tanh(),
    )


def generator() -> nn.Module:
    """DCGAN's generator: a vector becomes an image."""
    return nn.Sequential(
        nn.ConvTranspose2d(16, 48, 4, bias=False),
        nn.BatchNorm2d(48),
        nn.ReLU(),
        nn.ConvTranspose2d(48, 32, 4, 2, 1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.ConvTranspose2d(32, 3, 4, 2, 1),
        nn.Tanh(),
    )


def listed() -> Iterator[tuple[Any, ...]]:
    """Name, what builds it, and inputs."""
    image = ("image:1x3x32x32",)
    yield "U-Net, transposed", lambda: UNet(False), image
    yield "U-Net, interpolated", lambda: UNet(True), image
    yield "feature pyramid", Pyramid, image
    yield "YOLO-like", Yolo, image
    yield "DeepLab-like", DeepLab, image
    yield "siamese", Siamese, ("one:1x3x32x32", "two:1x3x32x32")
    yield "twin embeddings", Twins, ("one:1x3x32x32", "two:1x3x32x32")
    yield "three outputs", Several, image
    yield "image and row", Fusion, ("image:1x3x32x32", "row:1x6")
    yield "variational autoencoder", Variational, image
    yield "super-resolution", super_resolution, image
    yield "autoencoder", autoencoder, image
    yield "DCGAN generator", generator, ("code:1x16x1x1",)
