"""Gradients and attention of every family against the stock model in float64."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch.nn import functional

from compression.anatomy import Inspection
from compression.checkpoint import Store
from compression.gradients import exact, single_sequences
from compression.loading.admission import admit_model, folder_sources
from compression.loading.architectures import ARCHITECTURES
from compression.loading.rows import target_batch
from compression.loading.streamed import StreamedModel
from compression.token_weights import received_attention
from tests.tiny_families import CASES, architecture_of, tiny_family

# One weight for all experts of a layer has no gradient of its own in the stock model.
DENSE = [case for case in CASES if "Moe" not in case and "Mixtral" not in case]
HEADED = [case for case in DENSE if "For" in case or "LMHead" in case]


def _batch(case: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, 131, (3, 12), generator=generator)
    mask = torch.ones(3, 12, dtype=torch.int64)
    mask[1, 7:] = 0
    batch = {"input_ids": tokens.masked_fill(mask == 0, 1), "attention_mask": mask}
    if "ForConditional" in case:
        lengths = (9, 5, 12)
        targets = [torch.randint(3, 131, (length,), generator=generator) for length in lengths]
        batch |= target_batch(targets, 0, 0)
    return batch


def _stock(folder, case: str, attention: str | None = None):
    name = architecture_of(case)
    stock = getattr(importlib.import_module(ARCHITECTURES[name].module), name)
    return stock.from_pretrained(folder, dtype=torch.float64, attn_implementation=attention).eval()


def _loss(stock, one: dict[str, torch.Tensor]) -> torch.Tensor:
    tokens = one["input_ids"]
    if "decoder_input_ids" in one:
        # The stock model shifts the labels itself.
        return stock(input_ids=tokens, labels=one["labels"]).loss
    logits = stock(input_ids=tokens).logits
    if logits.dim() == 2:
        return functional.cross_entropy(logits, logits.detach().argmax(-1))
    return functional.cross_entropy(logits[0, :-1], tokens[0, 1:])


@pytest.mark.parametrize("case", HEADED)
def test_gradients_are_those_of_the_whole_model(tmp_path, case):
    folder = tiny_family(tmp_path / "m", case)
    sites = Inspection.from_json(admit_model(folder_sources(folder)).inspection).sites
    singles = single_sequences([_batch(case)], 3)
    files = exact(
        lambda: StreamedModel(folder),
        sites,
        singles,
        Store(tmp_path, "k"),
        ("mean", "square"),
        lambda *_: None,
    )
    stock = _stock(folder, case)
    parameters = dict(stock.named_parameters())
    start = f"{stock.base_model_prefix}."
    own = [site.name if site.name in parameters else start + site.name for site in sites]
    gradients = [
        torch.autograd.grad(_loss(stock, one), [parameters[name] for name in own]) for one in singles
    ]
    for place, site in enumerate(sites):
        found = files.of(site)
        for kind, term in (("mean", lambda g: g), ("square", torch.square)):
            wanted = torch.stack([term(values[place]) for values in gradients]).mean(0)
            wanted = wanted.T if site.transposed else wanted
            assert found[kind].shape == site.shape
            edge = float(wanted.abs().max())
            torch.testing.assert_close(found[kind].double(), wanted, rtol=1e-3, atol=1e-4 * edge + 1e-12)


@pytest.mark.parametrize("case", DENSE)
def test_attention_is_what_the_stock_model_gives_each_token(tmp_path, case):
    folder = tiny_family(tmp_path / "m", case)
    model, batch = StreamedModel(folder), _batch(case)
    states = model.start([batch])
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with torch.no_grad():
        output = _stock(folder, case, "eager")(**inputs, output_attentions=True)
    both = "decoder_input_ids" in batch
    attentions = output.encoder_attentions + output.decoder_attentions if both else output.attentions
    # Of Falcon with ALiBi, the stock implementations differ from each other by a hundredth.
    layers = 1 if case == "FalconForCausalLM-alibi" else model.layers
    for index in range(layers):
        block = model.load_block(index)
        model.advance(states, index)
        side = "decoder_" if both and index >= len(output.encoder_attentions) else ""
        real = batch[f"{side}attention_mask"].bool()[:, None, :, None]
        expected = attentions[index].masked_fill(~real, 0.0).sum((1, 2))
        found = received_attention(model, block, states, 0)
        torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4)
        if side:
            crossed = output.cross_attentions[index - len(output.encoder_attentions)]
            expected = crossed.masked_fill(~real, 0.0).sum((1, 2))
            found = received_attention(model, block, states, 0, memory=True)
            torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4)
        model.run_block(block, states)
