"""Tiny networks that hang together in odd ways. Each takes images [batch, 3, 16, 16] if nothing else is
said.
"""

from __future__ import annotations

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


class Classifier(nn.Module):
    """A body of `width` channels, pooled and read by a linear layer."""

    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.two = (
            conv(width, width),
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.two(self.one(x)))


class PaddedShortcut(nn.Module):
    """Option A of the first ResNets: every second pixel, channels padded by zeros on both sides."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.one, self.two = (
            conv(inputs, outputs, stride=2),
            nn.Sequential(nn.Conv2d(outputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs)),
        )
        self.extra = (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.extra, self.extra))
        return F.relu(short + self.two(self.one(x)))


class Dense(nn.Module):
    def __init__(self, width: int, growth: int, depth: int) -> None:
        super().__init__()
        widths = [width + growth * place for place in range(depth)]
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(one), nn.ReLU(), nn.Conv2d(one, growth, 3, padding=1))
            for one in widths
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return F.avg_pool2d(x, 2)


class Inception(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(
            [
                conv(width, 4, 1),
                nn.Sequential(conv(width, 6, 1), conv(6, 8)),
                nn.Sequential(nn.MaxPool2d(3, 1, 1), conv(width, 4, 1)),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part(x) for part in self.parts], 1)


class Shuffle(nn.Module):
    """ShuffleNet's unit: grouped 1x1, channel shuffle, depthwise, grouped 1x1, sum."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.squeeze, self.expand = (
            conv(width, width // 2, 1, groups=groups),
            nn.Conv2d(width // 2, width, 1, groups=groups),
        )
        self.depth = nn.Conv2d(width // 2, width // 2, 3, padding=1, groups=width // 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.squeeze(x)
        batch, channels, height, width = y.shape
        y = y.view(batch, self.groups, channels // self.groups, height, width).transpose(1, 2)
        y = self.depth(y.reshape(batch, channels, height, width))
        return F.relu(x + self.expand(y))


class Halves(nn.Module):
    """ShuffleNet 2: half of the channels pass, the others are worked on, all are shuffled."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.branch = nn.Sequential(
            conv(half, half, 1), nn.Conv2d(half, half, 3, padding=1, groups=half), conv(half, half, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        one, two = x.chunk(2, 1)
        y = torch.cat([one, self.branch(two)], 1)
        batch, channels, height, width = y.shape
        return (
            y.view(batch, 2, channels // 2, height, width)
            .transpose(1, 2)
            .reshape(batch, channels, height, width)
        )


class SqueezeExcite(nn.Module):
    """MobileNet's inverted residual with squeeze and excitation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = width * 2
        self.expand, self.depth = conv(width, inner, 1), conv(inner, inner, groups=inner)
        self.squeeze, self.excite, self.project = (
            nn.Conv2d(inner, 4, 1),
            nn.Conv2d(4, inner, 1),
            nn.Conv2d(inner, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.depth(self.expand(x))
        gate = F.hardsigmoid(self.excite(F.silu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))))
        return x + self.project(y * gate)


class UNet(nn.Module):
    """Down, up by transposed convolution and by interpolation, with skips. Gives a map of 2 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = conv(3, 6), conv(6, 8, stride=2), conv(8, 10, stride=2)
        self.up, self.four = nn.ConvTranspose2d(10, 8, 2, 2), conv(16, 8)
        self.five, self.out = conv(14, 6), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.one(x)
        two = self.two(one)
        four = self.four(torch.cat([self.up(self.three(two)), two], 1))
        wide = F.interpolate(four, size=one.shape[2:], mode="bilinear", align_corners=False)
        return self.out(self.five(torch.cat([wide, one], 1)))


class Mixer(nn.Module):
    """MLP-Mixer: tokens are mixed across space, then channels."""

    def __init__(self, width: int = 8, tokens: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 4, 4)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.tokens = nn.Sequential(nn.Linear(tokens, 12), nn.GELU(), nn.Linear(12, tokens))
        self.channels = nn.Sequential(nn.Linear(width, 20), nn.GELU(), nn.Linear(20, width))
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(self.norms[1](x))
        return self.head(x.mean(1))


class Recurrent(nn.Module):
    """Sequences [batch, 7, 6]: a bidirectional LSTM, a GRU, and a linear layer on the last step."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 8, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(16, 10, batch_first=True)
        self.head = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.gru(self.lstm(x)[0])
        return self.head(y[:, -1])


class Attention(nn.Module):
    """Attention of `heads` over `pairs` keys and values, as vision transformers write it."""

    def __init__(self, width: int, heads: int, pairs: int, size: int, fused: bool) -> None:
        super().__init__()
        self.heads, self.pairs, self.size, self.fused = heads, pairs, size, fused
        self.qkv = nn.Linear(width, (heads + 2 * pairs) * size)
        self.out = nn.Linear(heads * size, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        if self.fused:  # timm: one reshape into [3, heads, size]
            q, k, v = (
                self.qkv(x).reshape(batch, length, 3, self.heads, self.size).permute(2, 0, 3, 1, 4).unbind(0)
            )
        else:
            widths = [self.heads * self.size, self.pairs * self.size, self.pairs * self.size]
            q, k, v = (
                one.view(batch, length, -1, self.size).transpose(1, 2)
                for one in self.qkv(x).split(widths, -1)
            )
            share = self.heads // self.pairs
            if share > 1:
                k, v = (
                    one[:, :, None]
                    .expand(batch, self.pairs, share, length, self.size)
                    .reshape(batch, self.heads, length, self.size)
                    for one in (k, v)
                )
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(batch, length, self.heads * self.size))


class Transformer(nn.Module):
    """Patches, a class token, positions, one pre-norm block."""

    def __init__(
        self, width: int = 16, heads: int = 4, pairs: int = 4, size: int = 4, fused: bool = False
    ) -> None:
        super().__init__()
        self.stem, self.token = nn.Conv2d(3, width, 4, 4), nn.Parameter(torch.randn(1, 1, width))
        self.places = nn.Parameter(torch.randn(1, 17, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.attention = Attention(width, heads, pairs, size, fused)
        self.mlp = nn.Sequential(nn.Linear(width, 24), nn.GELU(), nn.Linear(24, width))
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        x = x + self.attention(self.norms[0](x))
        x = x + self.mlp(self.norms[1](x))
        return self.head(self.norms[2](x)[:, 0])


class ConvNext(nn.Module):
    """Depthwise 7x7, layer norm in channels-last, two linear layers, a scale for each channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depth, self.norm = nn.Conv2d(width, width, 7, padding=3, groups=width), nn.LayerNorm(width)
        self.one, self.two = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)
        self.scale = nn.Parameter(torch.rand(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depth(x).permute(0, 2, 3, 1))
        return x + (self.scale * self.two(F.gelu(self.one(y)))).permute(0, 3, 1, 2)


class Windows(nn.Module):
    """Swin: a shifted map is cut into windows, a hidden layer works in each."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(width, 12), nn.Linear(12, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, width, side, _ = x.shape
        y = torch.roll(x.permute(0, 2, 3, 1), (-1, -1), (1, 2))
        y = y.view(batch, side // 4, 4, side // 4, 4, width).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, width)
        y = self.two(F.gelu(self.one(y)))
        y = (
            y.view(batch, side // 4, side // 4, 4, 4, width)
            .permute(0, 1, 3, 2, 4, 5)
            .reshape(batch, side, side, width)
        )
        return x + torch.roll(y, (1, 1), (1, 2)).permute(0, 3, 1, 2)


def lenet() -> nn.Module:
    """Convolutions whose map is flattened for linear layers."""
    return nn.Sequential(
        conv(3, 6), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3), nn.PReLU(8),
        nn.MaxPool2d(2, ceil_mode=True), nn.Flatten(),
        nn.Linear(72, 20), nn.Tanh(), nn.Dropout(), nn.Linear(20, 5),
    )  # fmt: skip


def odd_norms() -> nn.Module:
    """Group norm, instance norm and pixel shuffle."""
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.GroupNorm(4, 12), nn.SiLU(), nn.Conv2d(12, 8, 3, padding=1),
        nn.InstanceNorm2d(8, affine=True), nn.LeakyReLU(0.1), nn.Conv2d(8, 16, 3, padding=1),
        nn.PixelShuffle(2), nn.ELU(), nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
    )  # fmt: skip


NETWORKS = {
    "residual": lambda: Classifier(
        nn.Sequential(conv(3, 8), Residual(8), Residual(8), conv(8, 12, stride=2), Residual(12)), 12
    ),
    "option-a": lambda: Classifier(
        nn.Sequential(conv(3, 8), Residual(8), PaddedShortcut(8, 16), PaddedShortcut(16, 24)), 24
    ),
    "dense": lambda: Classifier(
        nn.Sequential(conv(3, 8), Dense(8, 4, 3), conv(20, 10, 1), Dense(10, 4, 2)), 18
    ),
    "inception": lambda: Classifier(nn.Sequential(conv(3, 8), Inception(8), Inception(16)), 16),
    "shuffle": lambda: Classifier(nn.Sequential(conv(3, 24), Shuffle(24, 3), Shuffle(24, 3)), 24),
    "shuffle-halves": lambda: Classifier(nn.Sequential(conv(3, 16), Halves(16), Halves(16)), 16),
    "resnext": lambda: Classifier(
        nn.Sequential(conv(3, 8), conv(8, 24, 1), conv(24, 24, groups=6), conv(24, 8, 1)), 8
    ),
    "inverted": lambda: Classifier(nn.Sequential(conv(3, 8), SqueezeExcite(8), SqueezeExcite(8)), 8),
    "unet": UNet,
    "mixer": Mixer,
    "recurrent": Recurrent,
    "vit": Transformer,
    "vit-fused": lambda: Transformer(fused=True),
    "grouped-queries": lambda: Transformer(heads=6, pairs=3),
    "convnext": lambda: Classifier(nn.Sequential(nn.Conv2d(3, 8, 2, 2), ConvNext(8), ConvNext(8)), 8),
    "windows": lambda: Classifier(nn.Sequential(nn.Conv2d(3, 8, 2, 2), Windows(8)), 8),
    "lenet": lenet,
    "odd-norms": odd_norms,
}
"""Every network by its name."""
INPUTS = {"recurrent": (7, 6)}
"""Shapes of samples that are not images."""


def network(name: str) -> nn.Module:
    """The network of that name, in evaluation mode, with weights and statistics that are not what they
    start as."""
    torch.manual_seed(0)
    made = NETWORKS[name]()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    return made.eval()


def samples(name: str, batch: int) -> Tensor:
    """Random inputs for a network."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, *INPUTS.get(name, (3, 16, 16)), generator=generator)
