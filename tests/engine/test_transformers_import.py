"""What a process that runs jobs does not import, and that it can be imported afterwards."""

from __future__ import annotations

import subprocess
import sys

JOB = """
import sys
import torch
available, disable = torch.distributed.is_available, torch.compiler.disable
import compression.pipeline
from compression.evaluation import nursery
from compression.device import prepare_device
nursery._load()
prepare_device("cpu", 1)
assert torch.are_deterministic_algorithms_enabled()
found = {"sympy", "torch._dynamo", "torch.distributed.tensor"} & set(sys.modules)
assert not found, found
assert torch.distributed.is_available is available and torch.compiler.disable is disable
"""

COMPILED = """
import torch._dynamo
torch.manual_seed(0)
from torch.distributed.tensor import DTensor
compiled = torch.compile(lambda x: x.sin() + 1, backend="eager", fullgraph=True)
assert torch.equal(compiled(torch.zeros(3)), torch.ones(3))
from transformers import LlamaConfig, LlamaForCausalLM
model = LlamaForCausalLM(LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                                     num_attention_heads=1, num_key_value_heads=1)).eval()
tokens = torch.tensor([[1, 2, 3]])
compiled = torch.compile(model, backend="eager")
assert torch.allclose(compiled(tokens).logits, model(tokens).logits, atol=1e-6)
assert model.generate(tokens, max_new_tokens=2, min_new_tokens=2, do_sample=False).shape == (1, 5)
"""


def run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_job_imports_neither_compiler_nor_distributed_tensors() -> None:
    run(JOB)


def test_both_are_there_for_who_imports_them_later() -> None:
    run(JOB + COMPILED)


def test_with_the_compiler_imported_before_all_stays_as_it_is() -> None:
    run("import torch._dynamo as before\nimport sys\nfrom compression.loading import transformers_import\n"
        "assert sys.modules['torch._dynamo'] is before")  # fmt: skip
