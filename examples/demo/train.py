"""Trains a small Llama-type model on bytes, within a given time, and proves that it has learned something.

    python train.py --data DIR --out DIR [--seconds 60]

DIR with data holds train.jsonl and validation.jsonl. The result is a plain transformers folder. The last
line on standard output is JSON: steps, seconds, perplexity, unigram_perplexity, parameters.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections import Counter
from pathlib import Path

import corpus
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

END = "<|endoftext|>"
CONTEXT = 256
BATCH, LENGTH = 4, 128
LEARNING_RATE = 3e-3
VALIDATION_TOKENS = 32_768
MARGIN = 0.6
"""The model must be below this fraction of the unigram perplexity, or there would be nothing to show."""


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and one that ends a document (number 0)."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([END, *alphabet])}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=END, model_max_length=CONTEXT)


def tokens(texts: list[str], encoder: PreTrainedTokenizerFast) -> Tensor:
    """All texts as one int64 vector, each ended by token 0."""
    stream: list[int] = []
    for ids in encoder(texts)["input_ids"]:
        stream += ids
        stream.append(0)
    return torch.tensor(stream)


def configuration(vocabulary: int) -> LlamaConfig:
    """Four query heads share two key/value heads; widths are multiples of 8, so every n:m pattern fits."""
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=None,
        dtype="float32",
    )


def train(model: LlamaForCausalLM, data: Tensor, seconds: float, seed: int) -> int:
    """AdamW for the given time; the rate warms up and then falls to nothing, by the clock. Returns steps."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.01)
    offsets = torch.arange(LENGTH)
    begun, steps, told = time.monotonic(), 0, 0.0
    model.train()
    while (spent := (time.monotonic() - begun) / seconds) < 1:
        rate = LEARNING_RATE * min(1.0, spent / 0.03) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * spent)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        starts = torch.randint(len(data) - LENGTH, (BATCH, 1), generator=generator)
        batch = data[starts + offsets]
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        steps += 1
        if spent - told >= 0.25:
            told = spent
            print(
                f"  {spent:4.0%}  step {steps}  training perplexity {loss.exp().item():.1f}", file=sys.stderr
            )
    return steps


@torch.no_grad()
def perplexity(model: LlamaForCausalLM, data: Tensor) -> float:
    """exp of the mean negative log likelihood of all predicted tokens of data [n], in rows of the context."""
    model.eval()
    rows = data[: len(data) // CONTEXT * CONTEXT].view(-1, CONTEXT)
    total = sum(
        model(input_ids=batch, labels=batch).loss.item() * len(batch) for batch in torch.split(rows, 16)
    )
    return math.exp(total / len(rows))


def unigram_perplexity(train_data: Tensor, data: Tensor, vocabulary: int) -> float:
    """Perplexity of data under the token frequencies of the training text (add-one smoothing)."""
    counts = Counter(train_data.tolist())
    total = len(train_data) + vocabulary
    frequencies = torch.tensor(
        [(counts[number] + 1) / total for number in range(vocabulary)], dtype=torch.float64
    )
    return math.exp(-frequencies.log()[data].mean().item())


def main() -> int:
    parser = argparse.ArgumentParser(description="Train the demonstration's model.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # One thread: two that share cores with other processes are slower than one.
    torch.set_num_threads(1)
    torch.manual_seed(given.seed)
    encoder = tokenizer()
    train_data = tokens(corpus.read(given.data / "train.jsonl"), encoder)
    validation = tokens(corpus.read(given.data / "validation.jsonl"), encoder)[:VALIDATION_TOKENS]
    model = LlamaForCausalLM(configuration(len(encoder)))
    begun = time.monotonic()
    steps = train(model, train_data, given.seconds, given.seed)
    result = {
        "steps": steps,
        "seconds": round(time.monotonic() - begun, 1),
        "parameters": model.num_parameters(),
        "perplexity": round(perplexity(model, validation), 3),
        "unigram_perplexity": round(unigram_perplexity(train_data, validation, len(encoder)), 3),
    }
    model.save_pretrained(given.out)
    encoder.save_pretrained(given.out)
    print(json.dumps(result))
    if result["perplexity"] > MARGIN * result["unigram_perplexity"]:
        print("The model has not learned enough; give it more --seconds.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
