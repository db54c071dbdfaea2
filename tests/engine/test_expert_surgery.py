"""Models with fewer experts are stock models: removed = never routed to, in both layouts."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from compression.anatomy import Inspection
from compression.evaluation import stock
from compression.loading.admission import admit_model, folder_sources
from compression.loading.weights import WeightReader
from tests.engine.expert_models import Cut, Unrouted, stock_model, tiny

# With and without `norm_topk_prob`; Mixtral always divides.
CASES = {
    "MixtralForCausalLM": 3,
    "MixtralForCausalLM-tied": 1,
    "Qwen2MoeForCausalLM": 2,
    "Qwen2MoeForCausalLM-windows": 4,
    "Qwen3MoeForCausalLM": 5,
    "Qwen3MoeForCausalLM-windows": 2,
}
LAYOUTS = ["apart", "fused"]
TOKENS = torch.arange(3, 3 + 2 * 9).reshape(2, 9)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
def test_removed_is_never_routed_to(case: str, layout: str, tmp_path: Path) -> None:
    dense = tiny(tmp_path / "dense", case, layout)
    cut = Cut(dense, tmp_path, "random", CASES[case])
    small = cut.write()
    model, info = stock.load_with_info(small, "text-generation")
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    whole = stock_model(dense)
    with torch.no_grad():
        found = model(TOKENS).logits
        with Unrouted(whole, dict(enumerate(cut.kept))):
            wanted = whole(TOKENS).logits
        assert (found - wanted).abs().max() <= 1e-5
        assert (found - whole(TOKENS).logits).abs().max() > 1e-3
    config = json.loads((small / "config.json").read_text())
    assert config["num_local_experts" if "Mixtral" in case else "num_experts"] == CASES[case]
    assert config["num_experts_per_tok"] == cut.admission.config["num_experts_per_tok"]
    again = admit_model(folder_sources(small))
    structure = next(one for one in cut.inspection.structures if one.kind == "expert")
    gone = (structure.count - CASES[case]) * structure.parameters * cut.inspection.layers
    assert again.parameters == cut.inspection.parameters - gone
    assert again.parameters == sum(value.numel() for value in model.parameters())


def _dense_name(name: str, kept: list[int]) -> str:
    return re.sub(r"(\.experts\.|_proj/)(\d+)", lambda found: f"{found[1]}{kept[int(found[2])]}", name)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_tensor_is_one_of_the_dense_model(layout: str, tmp_path: Path) -> None:
    cut = Cut(tiny(tmp_path / "dense", "Qwen2MoeForCausalLM", layout), tmp_path, "magnitude", 3)
    before, after = WeightReader(cut.dense), WeightReader(cut.write())
    small = Inspection.from_json(admit_model(folder_sources(cut.folder)).inspection)
    for site in small.sites:
        name = _dense_name(site.name, cut.kept[site.layer])
        assert torch.equal(after.tensor(site.name), before.tensor(name)), site.name
    for layer, kept in enumerate(cut.kept):
        gate = f"model.layers.{layer}.mlp.gate.weight"
        assert torch.equal(after.tensor(gate), before.tensor(gate)[kept])
    shared = [name for name in before.names() if "shared_expert" in name]
    assert len(shared) == 3 * 4
    assert all(torch.equal(after.tensor(name), before.tensor(name)) for name in shared)


@pytest.mark.parametrize("case", ["MixtralForCausalLM", "Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM"])
def test_it_generates_and_trains(case: str, tmp_path: Path) -> None:
    folder = Cut(tiny(tmp_path / "dense", case, "apart"), tmp_path, "magnitude", 3).write()
    model = stock_model(folder)
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    found = [
        model.generate(TOKENS, attention_mask=torch.ones_like(TOKENS), use_cache=cache, **options)
        for cache in (True, False)
    ]
    assert torch.equal(*found)
    assert found[0].shape == (2, 13)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    before = model(TOKENS, labels=TOKENS).loss
    before.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter -= 1e-3 * parameter.grad / (parameter.grad.norm() + 1e-6)
        assert float(model(TOKENS, labels=TOKENS).loss) < float(before.detach())


def test_a_fresh_process_loads_it(tmp_path: Path) -> None:
    small = Cut(tiny(tmp_path / "dense", "MixtralForCausalLM", "apart"), tmp_path, "random", 2).write()
    code = (
        "import sys, torch, transformers; "
        "model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1]); "
        "print(model.config.num_local_experts, model.generate(torch.tensor([[3, 4]]), max_new_tokens=2, "
        "attention_mask=torch.ones(1, 2), eos_token_id=None, pad_token_id=0).shape[1])"
    )
    done = subprocess.run([sys.executable, "-c", code, small], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "4"]
