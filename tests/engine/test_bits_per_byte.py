"""Bits per byte: what text the predicted tokens stand for, and what follows for models with other tokens."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from compression.evaluation.quality import evaluate
from compression.loading.data import DataPlan
from compression.loading.text import TextEncoder
from tests.tiny_models import write_byte_tokenizer
from tests.vocabularies import byte_fallback, unigram, wordpiece

TEXTS = ["Straße 大 ab", "x y  z", "naïve — text, of some length, so that rows are cut", "end"]
CONFIG = {"eos_token_id": 0, "pad_token_id": 0, "vocab_size": 600}


def _plan(folder: Path, task: str, rows: list[dict[str, str]]) -> DataPlan:
    (folder / "d.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return DataPlan(folder, CONFIG, task, {"d": folder / "d.jsonl"})


@pytest.fixture
def bytes_folder(tmp_path: Path) -> Path:
    """Every byte is a token, so that what is predicted can be counted by hand."""
    write_byte_tokenizer(tmp_path, context=64)
    return tmp_path


def test_of_joined_texts_all_but_first_tokens_and_ends_count(bytes_folder: Path) -> None:
    plan = _plan(bytes_folder, "text-generation", [{"text": text} for text in TEXTS])
    found = plan.evaluation("d", None, 7, count_bytes=True)
    flat = []
    for batch in found.batches:
        flat += [int(token != 0) for token in batch["input_ids"][:, 1:].flatten()]
    # A character of several bytes counts wholly to its first token, so only sums over whole texts are exact.
    assert abs((found.text_bytes or 0) - sum(flat)) <= 3 * found.sequences
    whole = plan.evaluation("d", None, 500, count_bytes=True)
    assert whole.text_bytes == len("".join(TEXTS).encode()) - 1
    assert plan.evaluation("d", None, 500).text_bytes is None


def test_of_a_decoder_behind_an_encoder_targets_count(bytes_folder: Path) -> None:
    plan = _plan(bytes_folder, "text2text-generation", [{"text": "abcdefghij"}, {"text": "klmnopqrstu"}])
    # One row of 22 tokens (one of them the end of the first text): the second half is predicted.
    assert plan.evaluation("d", None, 11, count_bytes=True).text_bytes == 11
    pairs = [{"input": "abc", "target": "dé"}, {"input": "f", "target": "ghijkl"}]
    plan = _plan(bytes_folder, "text2text-generation", pairs)
    assert plan.evaluation("d", None, 4, count_bytes=True).text_bytes == 3 + 4


@pytest.mark.parametrize("kind", [byte_fallback, unigram, wordpiece])
def test_bytes_of_tokens_add_up_to_the_text(kind: object, tmp_path: Path) -> None:
    tokenizer: Tokenizer = kind()  # type: ignore[operator]
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    encoder = TextEncoder(tmp_path, CONFIG)
    from compression.loading.dataset_files import Document

    texts = ["bade figo lu", "é大 ista", "unknown ☃ ba"]
    for text, sizes in zip(texts, encoder.token_bytes(map(Document, texts), special=False), strict=True):
        assert len(sizes) == len(tokenizer.encode(text, add_special_tokens=False).ids)
        assert sum(sizes) == len(text.encode())
        assert min(sizes) >= 0


def test_the_metric_does_not_depend_on_how_text_is_cut_into_tokens() -> None:
    """A uniform model over 256 tokens of a byte each, and one over 256^2 pairs: eight bits a byte, both."""

    class Uniform:
        def __init__(self, size: int) -> None:
            self.size = size

        def outputs(self, batches):
            for batch in batches:
                yield torch.zeros(*batch["input_ids"].shape, self.size)

    class Data:
        task = "text-generation"
        labels = None

        def __init__(self, tokens: int) -> None:
            self.batches = [{"input_ids": torch.arange(tokens)[None]}]

    single = evaluate(Uniform(256), Data(13), [], text_bytes=12)
    double = evaluate(Uniform(1 << 16), Data(7), [], text_bytes=12)
    for found in (single, double):
        assert found["metrics"]["bits_per_byte"] == pytest.approx(8.0)
        assert found["counts"]["text_bytes"] == 12
    assert single["metrics"]["perplexity"] == pytest.approx(256)
    assert math.isclose(double["metrics"]["perplexity"], 65536, rel_tol=1e-5)
    assert "bits_per_byte" not in evaluate(Uniform(8), Data(5), ["bits_per_byte"])["metrics"]
