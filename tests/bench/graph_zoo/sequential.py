"""Networks of sequences, sound, tables and tokens, written by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.bench.graph_zoo.convolutional import conv


class Recurrent(nn.Module):
    """A recurrent network and a linear layer on its last step, or on all of them."""

    def __init__(self, kind: type[nn.RNNBase], every: bool, **given: Any) -> None:
        super().__init__()
        self.cell, self.every = kind(12, 32, batch_first=True, **given), every
        self.head = nn.Linear(64 if self.cell.bidirectional else 32, 5)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.cell(x)
        return self.head(states if self.every else states[:, -1])


class Crnn(nn.Module):
    """Text in images: convolutions until one row is left, a bidirectional LSTM along it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(1, 24),
            nn.MaxPool2d(2),
            conv(24, 32),
            nn.MaxPool2d((2, 1)),
            conv(32, 48),
            nn.MaxPool2d((4, 1)),
        )
        self.cell = nn.LSTM(48, 32, bidirectional=True, batch_first=True)
        self.head = nn.Linear(64, 20)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x).squeeze(2).transpose(1, 2)
        return self.head(self.cell(x)[0]).log_softmax(-1)


class Separable(nn.Module):
    """Depthwise convolution along time, then 1x1 (QuartzNet), with a residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(width, width, 9, padding=4, groups=width),
            nn.Conv1d(width, width, 1),
            nn.BatchNorm1d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.body(x))


class Causal(nn.Module):
    """WaveNet: dilated causal convolutions, tanh times sigmoid, residual and skip."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.stem = nn.Conv1d(4, width, 1)
        self.gated = nn.ModuleList(nn.Conv1d(width, 2 * width, 2, dilation=2**n) for n in range(3))
        self.back = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(3))
        self.skips = nn.ModuleList(nn.Conv1d(width, 32, 1) for _ in range(3))
        self.out = nn.Sequential(nn.ReLU(), nn.Conv1d(32, 32, 1), nn.ReLU(), nn.Conv1d(32, 8, 1))

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.stem(x), torch.zeros((), dtype=x.dtype)
        for number, (gated, back, skip) in enumerate(zip(self.gated, self.back, self.skips, strict=True)):
            one, two = gated(F.pad(x, (2**number, 0))).chunk(2, 1)
            y = torch.tanh(one) * torch.sigmoid(two)
            x, total = x + back(y), total + skip(y)
        return self.out(total)


class Spotting(nn.Module):
    """Keywords in raw sound: a frontend learnt, its energies in decibels, a small residual network."""

    def __init__(self) -> None:
        super().__init__()
        self.front, self.body = nn.Conv1d(1, 32, 64, 16), conv(1, 24, 3, 2)
        self.more, self.head = conv(24, 32), nn.Linear(32, 12)

    def forward(self, x: Tensor) -> Tensor:
        energy = torch.log1p(self.front(x) ** 2)
        return self.head(self.more(self.body(energy.unsqueeze(1))).mean((2, 3)))


class Tabular(nn.Module):
    """TabTransformer: embedded columns attend to each other, then numbers join."""

    def __init__(self) -> None:
        super().__init__()
        self.columns = nn.ModuleList(nn.Embedding(9, 32) for _ in range(5))
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Sequential(nn.Linear(164, 96), nn.ReLU(), nn.Linear(96, 3))

    def forward(self, kinds: Tensor, numbers: Tensor) -> Tensor:
        tokens = torch.stack([one(kinds[:, place]) for place, one in enumerate(self.columns)], 1)
        return self.head(torch.cat([self.encoder(tokens).flatten(1), self.norm(numbers)], 1))


class WideDeep(nn.Module):
    """Wide and deep: a linear part on all numbers beside embeddings and a deep part; cross layers (DCN)."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.wide = nn.Embedding(40, 8), nn.Linear(12, 1)
        self.deep = nn.Sequential(
            nn.Linear(44, 64), nn.ReLU(), nn.BatchNorm1d(64), nn.Linear(64, 32), nn.ReLU()
        )
        self.cross = nn.ModuleList(nn.Linear(44, 44) for _ in range(2))
        self.head = nn.Linear(76, 1)

    def forward(self, kinds: Tensor, numbers: Tensor) -> Tensor:
        x = first = torch.cat([self.table(kinds).flatten(1), numbers], 1)
        for layer in self.cross:
            x = first * layer(x) + x
        return torch.sigmoid(self.wide(numbers) + self.head(torch.cat([self.deep(first), x], 1)))


class Gated(nn.Module):
    """A tabular residual network with gated linear units and batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(10, 48)
        self.ups, self.downs = (
            nn.ModuleList(nn.Linear(a, b) for _ in range(2)) for a, b in ((48, 128), (64, 48))
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(48) for _ in range(2))
        self.head = nn.Linear(48, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for up, down, norm in zip(self.ups, self.downs, self.norms, strict=True):
            x = x + down(F.glu(up(norm(x)), 1))
        return self.head(x)


class Temporal(nn.Module):
    """A temporal convolutional network over a series, by causal convolutions cropped behind."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Conv1d(a, 32, 3, padding=2 * rate, dilation=rate) for a, rate in ((6, 1), (32, 2), (32, 4))
        )
        self.head = nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            y = layer(x)[:, :, : x.shape[2]]
            x = F.relu(y + x) if y.shape == x.shape else F.relu(y)
        return self.head(x[:, :, -1])


class Translate(nn.Module):
    """An encoder GRU, its states attended to by the last one (Bahdanau), a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.cell = nn.Embedding(50, 24), nn.GRU(24, 32, batch_first=True)
        self.query, self.key, self.score = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 1)
        self.head = nn.Linear(64, 20)

    def forward(self, tokens: Tensor) -> Tensor:
        states, last = self.cell(self.table(tokens))
        query = last[-1]
        weights = self.score(torch.tanh(self.query(query).unsqueeze(1) + self.key(states))).softmax(1)
        return self.head(torch.cat([(weights * states).sum(1), query], 1))


def audio() -> nn.Module:
    """M5: convolutions on raw sound."""
    layers: list[nn.Module] = []
    for inputs, outputs, kernel, stride in ((1, 24, 40, 4), (24, 24, 3, 1), (24, 48, 3, 1)):
        layers += [
            nn.Conv1d(inputs, outputs, kernel, stride),
            nn.BatchNorm1d(outputs),
            nn.ReLU(),
            nn.MaxPool1d(4),
        ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(48, 10))


def quartz() -> nn.Module:
    """QuartzNet on spectra."""
    return nn.Sequential(nn.Conv1d(40, 48, 5, 2, 2), Separable(48), Separable(48), nn.Conv1d(48, 20, 1))


def perceptron() -> nn.Module:
    """Linear layers on a row."""
    return nn.Sequential(
        nn.Linear(30, 64), nn.BatchNorm1d(64), nn.GELU(), nn.Linear(64, 64), nn.SELU(), nn.Linear(64, 1)
    )


def listed() -> Iterator[tuple[Any, ...]]:
    """Name, what builds it, and inputs."""
    steps = ("steps:1x9x12",)
    yield "LSTM and linear", lambda: Recurrent(nn.LSTM, False), steps
    yield (
        "two-layer bidirectional LSTM",
        lambda: Recurrent(nn.LSTM, True, num_layers=2, bidirectional=True),
        steps,
    )
    yield "GRU", lambda: Recurrent(nn.GRU, False, num_layers=2), steps
    yield "Elman network", lambda: Recurrent(nn.RNN, True), steps
    yield "CRNN", Crnn, ("image:1x1x16x48",)
    yield "attended GRU", Translate, ("tokens:1x11:int64",)
    yield "M5", audio, ("sound:1x1x2000",)
    yield "QuartzNet", quartz, ("spectra:1x40x64",)
    yield "WaveNet", Causal, ("sound:1x4x64",)
    yield "keyword spotting", Spotting, ("sound:1x1x2000",)
    yield "temporal convolutions", Temporal, ("series:1x6x32",)
    yield "perceptron", perceptron, ("row:1x30",)
    yield "TabTransformer", Tabular, ("kinds:1x5:int64", "numbers:1x4")
    yield "wide and deep, crossed", WideDeep, ("kinds:1x4:int64", "numbers:1x12")
    yield "gated tabular", Gated, ("row:1x10",)
