"""Gradients block by block against back-propagation through the stock model in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from compression.anatomy import inspect
from compression.checkpoint import Store
from compression.gradients import (
    KINDS,
    GradientFiles,
    NoLoss,
    difference_step,
    exact,
    sequence_loss,
    single_sequences,
    step_name,
    total_loss,
    zeroth_order,
)
from compression.loading.streamed import StreamedModel, read_config
from compression.loading.weights import WeightReader
from compression.seeds import site_generator
from tests.tiny_models import tiny_bert, tiny_llama

TERMS = {"mean": lambda g: g, "absolute": torch.abs, "square": torch.square}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {
        "llama": tiny_llama(root / "llama"),
        "qwen": tiny_llama(root / "qwen", architecture="Qwen2ForCausalLM", tied=True),
        "bert": tiny_bert(root / "bert", labels=["a", "b", "c"]),
        "headless": tiny_bert(root / "headless"),
    }


def _sites(folder):
    return list(inspect(read_config(folder), WeightReader(folder).names()).sites)


def _batches(padded: bool, labelled: bool, seed: int = 1) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    batches = [{"input_ids": torch.randint(1, 257, (3, 20), generator=generator)} for _ in range(2)]
    for number, batch in enumerate(batches):
        if padded:
            mask = torch.ones(3, 20, dtype=torch.int64)
            mask[1, 9:] = 0
            mask[2, 2 + number :] = 0
            batch["attention_mask"] = mask
        if labelled:
            batch["labels"] = torch.randint(0, 3, (3,), generator=generator)
    return batches


def _stock(folder, labelled: bool):
    import transformers

    kind = "AutoModelForSequenceClassification" if labelled else "AutoModelForCausalLM"
    return getattr(transformers, kind).from_pretrained(folder, dtype=torch.float64).eval()


def _stock_loss(stock, batch: dict[str, Tensor], row: int) -> Tensor:
    """The loss of one sequence, cut to its real tokens."""
    mask = batch.get("attention_mask")
    real = torch.ones(20, dtype=torch.bool) if mask is None else mask[row].bool()
    tokens = batch["input_ids"][row][real][None]
    if "labels" in batch:
        return functional.cross_entropy(stock(input_ids=tokens).logits, batch["labels"][row : row + 1])
    return stock(input_ids=tokens, labels=tokens).loss


def _stock_gradients(folder, batches, limit: int) -> dict[str, list[Tensor]]:
    stock = _stock(folder, "labels" in batches[0])
    parameters = dict(stock.named_parameters())
    names = [site.name for site in _sites(folder)]
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    for batch in batches:
        for row in range(3):
            if len(found[names[0]]) < limit:
                loss = _stock_loss(stock, batch, row)
                values = torch.autograd.grad(loss, [parameters[name] for name in names])
                for name, value in zip(names, values, strict=True):
                    found[name].append(value)
    return found


class Silent:
    def __init__(self):
        self.heard = []

    def __call__(self, done: int, total: int) -> None:
        assert 0 < done <= total
        self.heard.append((done, total))


CASES = [("llama", False), ("llama", True), ("qwen", True), ("bert", False), ("bert", True)]


@pytest.mark.parametrize(("kind", "padded"), CASES)
def test_exact_gradients_are_those_of_the_whole_model(folders, tmp_path, kind, padded):
    folder, batches = folders[kind], _batches(padded, kind == "bert")
    singles = single_sequences(batches, 5)
    heard = Silent()
    files = exact(lambda: StreamedModel(folder), _sites(folder), singles, Store(tmp_path, "k"), KINDS, heard)
    expected = _stock_gradients(folder, batches, 5)
    for site in _sites(folder):
        found = files.of(site)
        assert set(found) == set(KINDS)
        for name, term in TERMS.items():
            wanted = torch.stack([term(value) for value in expected[site.name]]).mean(0)
            assert len(expected[site.name]) == 5
            assert found[name].dtype == torch.float32
            edge = float(wanted.abs().max())
            assert edge > 0
            torch.testing.assert_close(found[name].double(), wanted, rtol=1e-4, atol=1e-5 * edge)
    assert heard.heard == [(1, 2), (2, 2)]


def test_only_the_kinds_that_are_asked_for_are_kept(folders, tmp_path):
    folder, sites = folders["llama"], _sites(folders["llama"])
    singles = single_sequences(_batches(False, False), 2)
    files = exact(
        lambda: StreamedModel(folder), sites[:3], singles, Store(tmp_path, "k"), ("square",), Silent()
    )
    assert set(files.of(sites[0])) == {"square"}
    assert Store(tmp_path, "k").names() == [step_name(0), step_name(1)]


def _by(method: str, folder, store, progress):
    singles = single_sequences(_batches(True, True), 3)
    arguments = (lambda: StreamedModel(folder), _sites(folder), singles, store, KINDS)
    if method == "exact":
        return exact(*arguments, progress)
    return zeroth_order(*arguments, 3, 5, progress)


@pytest.mark.parametrize("method", ["exact", "zeroth-order"])
def test_going_on_after_any_step_gives_the_same_bytes(folders, tmp_path, method):
    class Stop(Exception):
        pass

    folder = folders["bert"]
    _by(method, folder, Store(tmp_path / "whole", "k"), Silent())
    files = sorted(path.name for path in (tmp_path / "whole").iterdir())
    for steps in (1,) if method == "exact" else (1, 2):
        left = [steps]

        def stop(done: int, total: int, left=left) -> None:
            left[0] -= 1
            if not left[0]:
                raise Stop

        root = tmp_path / f"resumed{steps}"
        with pytest.raises(Stop):
            _by(method, folder, Store(root, "k"), stop)
        kept = {path.name: path.read_bytes() for path in root.iterdir()}
        assert 0 < len(kept) < len(files)
        _by(method, folder, Store(root, "k"), Silent())
        assert sorted(path.name for path in root.iterdir()) == files
        for name in files:
            assert (root / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_finished_gradients_are_not_computed_again(folders, tmp_path):
    folder = folders["bert"]
    _by("exact", folder, Store(tmp_path, "k"), Silent())
    again = Silent()
    files = _by("exact", folder, Store(tmp_path, "k"), again)
    assert again.heard == []
    assert files.of(_sites(folder)[0])


@pytest.mark.parametrize("method", ["exact", "zeroth-order"])
def test_a_model_without_a_head_has_no_loss(folders, tmp_path, method):
    with pytest.raises(NoLoss, match="no predictions"):
        _by(method, folders["headless"], Store(tmp_path, "k"), Silent())


# -- forward passes alone


def _slopes(folder, directions: int, root, seed: int = 0, sequences: int = 4) -> tuple[list[float], Store]:
    batches = single_sequences(_batches(False, False), sequences)
    store = Store(root, "k")
    model = StreamedModel(folder)
    zeroth_order(lambda: model, _sites(folder), batches, store, ("mean",), directions, seed, Silent())
    step = difference_step(model.dtype)
    return [store.data(f"slope-{number:04d}")["slope"] / step for number in range(directions)], store


@pytest.mark.parametrize(("dtype", "error"), [("float32", 0.01), ("bfloat16", 0.4), ("float16", 0.01)])
def test_slopes_are_those_of_autograd_along_the_same_directions(tmp_path, dtype, error):
    folder = tiny_llama(tmp_path / "m", dtype=dtype)
    found, _ = _slopes(folder, 8, tmp_path / "steps")
    stock = _stock(folder, False)
    batches = _batches(False, False)
    loss = sum(_stock_loss(stock, batches[row // 3], row % 3) for row in range(4)) / 4
    loss.backward()
    parameters = dict(stock.named_parameters())
    expected = []
    for number in range(8):
        slope = 0.0
        for site in _sites(folder):
            generator = site_generator(0, f"direction {number} {site.name}")
            direction = torch.randn(site.shape, generator=generator).double()
            weight = parameters[site.name]
            slope += float((weight.grad * direction).sum() * weight.detach().square().mean().sqrt())
        expected.append(slope)
    difference = torch.tensor(found, dtype=torch.float64) - torch.tensor(expected, dtype=torch.float64)
    assert float(difference.norm()) < error * float(torch.tensor(expected).norm())


def test_zeroth_order_is_right_on_average(tmp_path):
    folder = tiny_llama(tmp_path / "m", layers=1, hidden=8, heads=2, key_value_heads=1, ffn=8)
    directions = 200
    _, store = _slopes(folder, directions, tmp_path / "steps", sequences=1)
    files = GradientFiles(store, ("mean",))
    expected = _stock_gradients(folder, _batches(False, False), 1)
    # With d numbers and n directions, the error of an unbiased estimate is about sqrt(d / n) of its norm, all
    # weights being scaled to the same size; a part of the estimate along the gradient is 1 on average.
    scale = {
        site.name: float(WeightReader(folder).tensor(site.name).double().square().mean().sqrt())
        for site in _sites(folder)
    }
    found = torch.cat([(files.of(site)["mean"] * scale[site.name]).flatten() for site in _sites(folder)])
    wanted = torch.cat(
        [torch.stack(expected[site.name]).mean(0).flatten() * scale[site.name] for site in _sites(folder)]
    )
    along = float(found.double() @ wanted / (wanted @ wanted))
    error = float((found - wanted).norm() / wanted.norm())
    noise = (wanted.numel() / directions) ** 0.5
    assert abs(along - 1) < 4 * (2 / directions) ** 0.5
    assert 0.7 * noise < error < 1.4 * noise


def test_the_same_seed_gives_the_same_bytes_and_another_one_others(folders, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        _slopes(folders["llama"], 2, tmp_path / name, seed)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    name = f"{step_name(0)}.safetensors"
    assert (tmp_path / "a" / name).read_bytes() != (tmp_path / "c" / name).read_bytes()


# -- losses and sequences


@pytest.mark.parametrize(("kind", "padded"), CASES)
def test_the_loss_is_that_of_the_stock_model(folders, kind, padded):
    batches = _batches(padded, kind == "bert")
    stock = _stock(folders[kind], kind == "bert")
    with torch.no_grad():
        expected = sum(float(_stock_loss(stock, batch, row)) for batch in batches for row in range(3)) / 6
    singles = single_sequences(batches, 99)
    found = total_loss(StreamedModel(folders[kind]), singles, lambda block: None)
    assert found == pytest.approx(expected, rel=1e-6)


def test_a_classifier_without_labels_is_judged_by_its_own_answer():
    logits = torch.tensor([[0.5, 2.0, -1.0]])
    batch = {"input_ids": torch.ones(1, 4, dtype=torch.int64)}
    expected = -torch.log_softmax(logits, -1)[0, 1]
    assert torch.equal(sequence_loss(logits, batch), expected)
    assert sequence_loss(logits, {**batch, "labels": torch.tensor([0])}) == pytest.approx(
        float(-torch.log_softmax(logits, -1)[0, 0])
    )


def test_a_sequence_that_predicts_nothing_costs_nothing():
    logits = torch.randn(1, 1, 7, requires_grad=True)
    loss = sequence_loss(logits, {"input_ids": torch.ones(1, 1, dtype=torch.int64)})
    assert float(loss.detach()) == 0.0
    (slope,) = torch.autograd.grad(loss, logits)
    assert not bool(slope.any())
    masked = {
        "input_ids": torch.ones(1, 3, dtype=torch.int64), "attention_mask": torch.tensor([[1, 0, 0]])
    }  # fmt: skip
    assert float(sequence_loss(torch.randn(1, 3, 7), masked)) == 0.0


def test_sequences_come_one_by_one_without_their_padding():
    batches = _batches(True, True)
    singles = single_sequences(batches, 4)
    assert [tuple(one["input_ids"].shape) for one in singles] == [(1, 20), (1, 9), (1, 2), (1, 20)]
    assert not any("attention_mask" in one for one in singles)
    assert torch.equal(singles[1]["input_ids"], batches[0]["input_ids"][1:2, :9])
    assert torch.equal(singles[3]["labels"], batches[1]["labels"][:1])
    left = {
        "input_ids": torch.arange(8).view(1, 8),
        "attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1, 0, 0]]),
    }
    (one,) = single_sequences([left], 3)
    assert one["input_ids"].tolist() == [[0, 1, 2, 3, 4, 5]]
    assert one["attention_mask"].tolist() == [[0, 0, 1, 1, 1, 1]]
    assert single_sequences(batches, 0) == []
