"""Which hidden channels stay and which directions they are, against the stock model in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from compression.anatomy.families import family_of
from compression.block_pruning import StructureSettings
from compression.channel_pruning import ChannelPruner, principal_directions
from compression.channel_statistics import measure_channels
from compression.checkpoint import Store
from compression.criteria.base import ActivationsNotFinite
from compression.criteria.structures import structure_criteria
from compression.loading.admission import admit_model, folder_sources
from compression.loading.streamed import StreamedModel
from compression.loading.weights import WeightReader
from tests.engine.jobs import Recorder
from tests.engine.test_channels import load
from tests.tiny_families import tiny_family

HIDDEN, KEPT = 32, 20
LENGTHS = (9, 5, 12)
CASES = ("Qwen3ForCausalLM", "Gemma2ForCausalLM", "MixtralForCausalLM")


def _batches() -> list[dict[str, Tensor]]:
    """Two batches of sequences of several lengths, the shorter ones padded."""
    generator = torch.Generator().manual_seed(3)
    found = []
    for lengths in (LENGTHS, LENGTHS[::-1]):
        tokens = torch.randint(3, 131, (len(lengths), max(lengths)), generator=generator)
        mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        found.append({"input_ids": tokens.where(mask, 0), "attention_mask": mask.long()})
    return found


class Reference:
    """The stock model in float64, sequence by sequence without padding: what every norm of the stream is
    given and gives."""

    def __init__(self, folder: Path) -> None:
        self.model = load(folder, torch.float64)
        reading = ["input_layernorm", "post_attention_layernorm"]
        if "gemma2" in self.model.config.model_type:
            reading[1] = "pre_feedforward_layernorm"
        self.seen: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
        for name, module in self.model.named_modules():
            if name == "model.norm" or name.rpartition(".")[2] in reading:
                module.register_forward_hook(self._note(name))
        for batch in _batches():
            for ids, mask in zip(*batch.values(), strict=True):
                with torch.no_grad():
                    self.model(ids[mask.bool()][None])

    def _note(self, name: str) -> Any:
        def noted(module: Any, args: Any, output: Tensor) -> None:
            self.seen.setdefault(name, []).append((args[0][0].numpy(), output[0].numpy()))

        return noted

    def products(self) -> np.ndarray:
        """The mean over norms and tokens of n n^T, n being of mean square 1."""
        rows = np.concatenate([given for found in self.seen.values() for given, _ in found])
        rows = rows / np.sqrt((rows**2).mean(1, keepdims=True) + self.model.config.rms_norm_eps)
        return rows.T @ rows / len(rows)

    def scores(self, criterion: str) -> np.ndarray:
        if criterion == "activation-energy":
            return np.diag(self.products())
        if criterion == "magnitude":
            return np.sqrt(sum(self._squares(*item) for item in self.model.named_parameters()))
        return sum(
            np.sqrt(sum(np.abs(given).mean(0) ** 2 for _, given in found)) for found in self.seen.values()
        )

    def _squares(self, name: str, parameter: Tensor) -> Any:
        """The squares of a tensor, summed over all axes but that of the residual stream."""
        values = parameter.detach().numpy() ** 2
        if any(part in name for part in ("q_norm", "k_norm")) or HIDDEN not in values.shape:
            return 0.0
        writes = name.endswith(("o_proj.weight", "down_proj.weight", "o_proj.bias", "experts.down_proj"))
        axis = values.ndim - 2 if writes and values.ndim > 1 else values.ndim - 1
        return values.sum(axis=tuple(number for number in range(values.ndim) if number != axis))


class Tiny:
    def __init__(self, folder: Path, case: str) -> None:
        # No other width than that of the stream, so that its axis shows.
        self.folder = tiny_family(folder, case, head_dim=24, num_attention_heads=4)
        self.admission = admit_model(folder_sources(self.folder))
        names = WeightReader(self.folder).names()
        self.stream = family_of(self.admission.architecture).stream(self.admission.config, names)
        self.reference = Reference(self.folder)

    def model(self) -> StreamedModel:
        return StreamedModel(self.folder, self.admission.config, self.admission.family)

    def choice(self, store: Path, criterion: str, *, rotated: bool = False) -> dict[str, Tensor]:
        settings = StructureSettings(criterion, {"hidden": KEPT})
        reader = WeightReader(self.folder)
        kept = Store(store, "key")
        pruner = ChannelPruner(
            self.model, self.stream, reader, settings, _batches(), kept, Recorder(), rotated=rotated
        )
        pruner.run(())
        return kept.load("channels")[0]


@pytest.fixture(scope="module", params=CASES)
def tiny(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return Tiny(tmp_path_factory.mktemp("model") / "model", request.param)


@pytest.mark.parametrize("criterion", ["activation-norm", "activation-energy", "magnitude"])
def test_the_best_channels_stay(criterion: str, tiny: Tiny, tmp_path: Path) -> None:
    judges = {entry.name for entry in structure_criteria if "hidden" in entry.kinds}
    assert judges == {"activation-norm", "activation-energy", "magnitude", "random"}
    wanted = tiny.reference.scores(criterion)
    found = tiny.choice(tmp_path, criterion)["kept"].tolist()
    assert found == sorted(np.argsort(wanted)[::-1][:KEPT].tolist())


def test_the_statistics_themselves(tiny: Tiny) -> None:
    told: list[tuple[int, int]] = []
    found = measure_channels(
        tiny.model(), tiny.stream, _batches(), lambda *step: told.append(step), products=True
    )
    steps = 2 * tiny.stream.layers
    assert told == [(step, steps) for step in range(1, steps + 1)]
    assert found.products is not None
    assert np.allclose(found.products.numpy(), tiny.reference.products(), rtol=0, atol=2e-5)
    for values, criterion in (
        (found.energies, "activation-energy"), (found.magnitudes, "activation-norm"),
    ):  # fmt: skip
        assert np.allclose(values.numpy(), tiny.reference.scores(criterion), rtol=2e-5, atol=0)


def test_the_first_principal_directions_stay(tiny: Tiny, tmp_path: Path) -> None:
    if any(one.role == "after" for one in tiny.stream.axes):
        pytest.skip("its stream is not turned")
    found = tiny.choice(tmp_path, "activation-energy", rotated=True)
    assert found["kept"].tolist() == list(range(KEPT))
    values, vectors = np.linalg.eigh(tiny.reference.products())
    assert np.allclose(found["energies"].numpy(), values[::-1], rtol=0, atol=1e-4)
    basis = found["basis"].numpy()
    assert np.allclose(basis.T @ basis, np.eye(HIDDEN), rtol=0, atol=1e-12)
    # Directions have no sign of their own: the planes that they span are compared.
    first, best = basis[:, :KEPT], vectors[:, ::-1][:, :KEPT]
    assert np.allclose(first @ first.T, best @ best.T, rtol=0, atol=1e-2)
    lost = np.trace(tiny.reference.products() @ (np.eye(HIDDEN) - first @ first.T))
    assert lost == pytest.approx(values[: HIDDEN - KEPT].sum(), rel=1e-4)


def test_principal_directions_by_hand() -> None:
    values, vectors = principal_directions(torch.tensor([[2.0, 0.0], [0.0, 8.0]]))
    assert values.tolist() == [8.0, 2.0]
    assert vectors.tolist() == [[0.0, 1.0], [1.0, 0.0]]
    values, vectors = principal_directions(torch.zeros(3, 3))
    assert values.tolist() == [0.0, 0.0, 0.0]
    assert torch.equal((vectors.T @ vectors).round(decimals=12), torch.eye(3, dtype=torch.float64))


def test_a_stream_that_overflows_is_named(tmp_path: Path) -> None:
    tiny = Tiny(tmp_path / "model", "Qwen3ForCausalLM")

    def broken() -> StreamedModel:
        model = tiny.model()
        first = model.load_block

        def load_block(index: int) -> Any:
            block = first(index)
            block.module.input_layernorm.weight.data.fill_(float("inf"))
            return block

        model.load_block = load_block  # type: ignore[method-assign]
        return model

    with pytest.raises(ActivationsNotFinite, match=r"of model\.layers\.0\.input_layernorm\.weight is not"):
        measure_channels(broken(), tiny.stream, _batches(), lambda done, total: None)
