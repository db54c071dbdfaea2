"""Networks with attention or mixing in the place of it, written by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Attention of `heads` over `pairs` keys and values (fewer: grouped queries), and a feed-forward part, in
    front of each a norm."""

    def __init__(self, width: int, heads: int, pairs: int, gated: bool = False, rotary: bool = False) -> None:
        super().__init__()
        self.heads, self.pairs, self.size = heads, pairs, width // heads
        self.q, self.k, self.v = (nn.Linear(width, one * self.size) for one in (heads, pairs, pairs))
        self.out, self.gated, self.rotary = nn.Linear(width, width), gated, rotary
        self.norms = nn.ModuleList((nn.RMSNorm if gated else nn.LayerNorm)(width) for _ in range(2))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(2 * width if gated else 4 * width, width)

    def turned(self, x: Tensor) -> Tensor:
        """Rotary positions."""
        if not self.rotary:
            return x
        half = x.shape[-1] // 2
        angles = torch.arange(x.shape[2])[:, None] / 100 ** (torch.arange(half) / half)
        one, two = x[..., :half], x[..., half:]
        return torch.cat(
            [one * angles.cos() - two * angles.sin(), two * angles.cos() + one * angles.sin()], -1
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms[0](x)
        q, k, v = (
            layer(y).unflatten(-1, (-1, self.size)).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        q, k = self.turned(q), self.turned(k)
        if self.pairs < self.heads:
            k, v = (one.repeat_interleave(self.heads // self.pairs, 1) for one in (k, v))
        scores = (q @ k.transpose(-1, -2)) * self.size**-0.5
        x = x + self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        y = self.up(self.norms[1](x))
        return x + self.down(F.silu(y.chunk(2, -1)[0]) * y.chunk(2, -1)[1] if self.gated else F.gelu(y))


class Patches(nn.Module):
    """Patches of an image as tokens through blocks, then their mean."""

    def __init__(self, width: int, *blocks: nn.Module) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, width, 4, 4), nn.Sequential(*blocks)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.stem(x).flatten(2).transpose(1, 2))).mean(1))


class Mixer(nn.Module):
    """MLP-Mixer's block: tokens, then channels."""

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.tokens = nn.Sequential(nn.Linear(tokens, 64), nn.GELU(), nn.Linear(64, tokens))
        self.channels = nn.Sequential(nn.Linear(width, 96), nn.GELU(), nn.Linear(96, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norms[1](x))


class Linear(nn.Module):
    """Linear attention: keys and values are multiplied first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.qkv, self.out, self.heads = nn.Linear(width, 3 * width), nn.Linear(width, width), heads
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = F.elu(q) + 1, F.elu(k) + 1
        y = torch.einsum("bhnd,bhde->bhne", q, torch.einsum("bhnd,bhne->bhde", k, v))
        y = y / torch.einsum("bhnd,bhd->bhn", q, k.sum(2))[..., None]
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.mlp(x)


class Spatial(nn.Module):
    """gMLP's block: half of the channels gate the others after they are mixed along tokens."""

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = (
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.Linear(2 * width, width),
        )
        self.inner, self.along = nn.LayerNorm(2 * width), nn.Linear(tokens, tokens)

    def forward(self, x: Tensor) -> Tensor:
        one, two = F.gelu(self.up(self.norm(x))).chunk(2, -1)
        two = self.along(self.inner(two).transpose(1, 2)).transpose(1, 2)
        return x + self.down(one * two)


class NonLocal(nn.Module):
    """Convolutions and one non-local block: attention over places with 1x1 convolutions."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem, self.after = nn.Conv2d(3, width, 3, 2, 1), nn.Conv2d(width, width, 3, 2, 1)
        self.theta, self.phi, self.g = (nn.Conv2d(width, width // 2, 1) for _ in range(3))
        self.out, self.head = nn.Conv2d(width // 2, width, 1), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        theta, phi, g = (layer(x).flatten(2) for layer in (self.theta, self.phi, self.g))
        y = (theta.transpose(1, 2) @ phi).softmax(-1) @ g.transpose(1, 2)
        y = y.transpose(1, 2).reshape(x.shape[0], -1, *x.shape[2:])
        return self.head(F.relu(self.after(x + self.out(y))).mean((2, 3)))


class Cross(nn.Module):
    """DETR in small: queries learnt attend to a map's places, then boxes and classes of each."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, width, 3, 2, 1))
        self.queries = nn.Parameter(torch.randn(7, width))
        layer = nn.TransformerDecoderLayer(width, 4, 96, dropout=0.0, batch_first=True)
        self.decoder = nn.TransformerDecoder(layer, 2)
        self.classes, self.boxes = (
            nn.Linear(width, 6),
            nn.Sequential(nn.Linear(width, 48), nn.ReLU(), nn.Linear(48, 4)),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        places = self.body(x).flatten(2).transpose(1, 2)
        y = self.decoder(self.queries.expand(x.shape[0], -1, -1), places)
        return self.classes(y), self.boxes(y).sigmoid()


class Hybrid(nn.Module):
    """Conformer's block: half a feed-forward, attention, gated depthwise convolution, half a feed-forward."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(20, width), nn.Linear(width, 12)
        self.feeds = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 128), nn.SiLU(), nn.Linear(128, width))
            for _ in range(2)
        )
        self.norm, self.attend = nn.LayerNorm(width), nn.MultiheadAttention(width, 4, batch_first=True)
        self.before, self.up, self.down = (
            nn.LayerNorm(width),
            nn.Conv1d(width, 2 * width, 1),
            nn.Conv1d(width, width, 1),
        )
        self.depth, self.batch = nn.Conv1d(width, width, 9, padding=4, groups=width), nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + 0.5 * self.feeds[0](x)
        y = self.norm(x)
        x = x + self.attend(y, y, y, need_weights=False)[0]
        y = F.glu(self.up(self.before(x).transpose(1, 2)), 1)
        x = x + self.down(F.silu(self.batch(self.depth(y)))).transpose(1, 2)
        return self.head(x + 0.5 * self.feeds[1](x))


def listed() -> Iterator[tuple[Any, ...]]:
    """Name, what builds it, and inputs."""
    kinds: dict[str, Callable[[], nn.Module]] = {
        "vision transformer": lambda: Patches(48, Attention(48, 4, 4), Attention(48, 4, 4)),
        "grouped-query attention": lambda: Patches(
            48, Attention(48, 6, 2, True, True), Attention(48, 6, 2, True, True)
        ),
        "multi-query attention": lambda: Patches(48, Attention(48, 4, 1), Attention(48, 4, 1)),
        "torch's encoder layers": lambda: Patches(
            48, *(nn.TransformerEncoderLayer(48, 4, 96, 0.0, batch_first=True) for _ in range(2))
        ),
        "MLP-Mixer": lambda: Patches(48, Mixer(48, 64), Mixer(48, 64)),
        "gMLP": lambda: Patches(48, Spatial(48, 64), Spatial(48, 64)),
        "linear attention": lambda: Patches(48, Linear(48, 4), Linear(48, 4)),
        "non-local block": NonLocal,
        "DETR-like": Cross,
    }
    for name, build in kinds.items():
        yield name, build, ("image:1x3x32x32",)
    yield "Conformer", Hybrid, ("spectra:1x25x20",)
