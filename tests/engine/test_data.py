"""Datasets as batches: sequences, padding, sampling, the held-out fifth and overlaps."""

from __future__ import annotations

import json

import pytest
import torch

from compression.errors import DatasetInsufficient, DatasetInvalid
from compression.loading import data as data_module
from compression.loading.data import Corpus, DataPlan, overlap, text_key
from compression.loading.dataset_files import iter_documents
from compression.loading.streamed import read_config
from compression.loading.text import TextEncoder
from tests.engine.corpora import write_texts
from tests.tiny_models import tiny_bert, tiny_llama


def _decoder(tmp_path, datasets, **options):
    folder = tiny_llama(tmp_path / "decoder")
    return DataPlan(folder, read_config(folder), "text-generation", datasets, **options)


def _classifier(tmp_path, datasets, labels=("neg", "pos"), **options):
    folder = tiny_bert(tmp_path / "classifier", labels=list(labels))
    return DataPlan(folder, read_config(folder), "text-classification", datasets, **options)


def test_evaluation_is_all_text_in_order_joined_by_the_end_token(tmp_path):
    path = write_texts(tmp_path / "d.jsonl", 5)
    plan = _decoder(tmp_path, {"d": path})
    found = plan.evaluation("d", None, 32, batch_size=4)
    ids = torch.cat([batch["input_ids"].flatten() for batch in found.batches]).tolist()
    encoder = TextEncoder(tmp_path / "decoder", {"vocab_size": 264, "eos_token_id": 0})
    expected: list[int] = []
    for number, (_, part) in enumerate(encoder.stream(iter_documents(path), special=False)):
        expected += ([0] if number else []) + part
    assert ids == expected
    assert found.tokens == len(expected)
    assert all(batch["input_ids"].shape[1] == 32 for batch in found.batches[:-1])
    assert "attention_mask" not in found.batches[0]


def test_evaluation_stops_at_the_samples_asked_for(tmp_path):
    plan = _decoder(tmp_path, {"d": write_texts(tmp_path / "d.jsonl", 50)})
    found = plan.evaluation("d", 3, 16, batch_size=2)
    assert [tuple(batch["input_ids"].shape) for batch in found.batches] == [(2, 16), (1, 16)]
    assert found.documents < 10


def test_logits_of_a_batch_stay_small(tmp_path, monkeypatch):
    monkeypatch.setattr(data_module, "LOGITS_BYTES", 2 * 16 * 264 * 4)
    plan = _decoder(tmp_path, {"d": write_texts(tmp_path / "d.jsonl", 50)})
    assert plan.evaluation("d", 8, 16).batches[0]["input_ids"].shape == (2, 16)


def test_calibration_depends_on_the_seed_and_not_on_the_order_of_the_file(tmp_path):
    path = write_texts(tmp_path / "d.jsonl", 60)
    turned = tmp_path / "turned.jsonl"
    turned.write_text("\n".join(reversed(path.read_text().splitlines())) + "\n")
    plan = _decoder(tmp_path, {"d": path, "t": turned})
    first = plan.calibration("d", 8, 32, 0, 4)
    assert first.digest == plan.calibration("d", 8, 32, 0, 4).digest
    assert first.digest == plan.calibration("t", 8, 32, 0, 4).digest
    assert first.digest != plan.calibration("d", 8, 32, 1, 4).digest
    assert all(tuple(batch["input_ids"].shape) == (4, 32) for batch in first.batches)


def test_a_small_dataset_gives_fewer_rows_of_full_length(tmp_path):
    plan = _decoder(tmp_path, {"d": write_texts(tmp_path / "d.jsonl", 3)})
    found = plan.calibration("d", 500, 64, 0, 8)
    assert 0 < found.sequences < 500
    assert all(batch["input_ids"].shape[1] == 64 for batch in found.batches)
    short = plan.calibration("d", 500, 5000, 0, 8)
    assert short.sequences == 1


def test_sampling_keeps_a_bounded_number_of_characters(tmp_path):
    corpus = Corpus(write_texts(tmp_path / "d.jsonl", 200))
    few, more = corpus.sample("all", 0, characters=500), corpus.sample("all", 0, characters=2000)
    assert 500 <= sum(len(document.text) for document in few) < 1000
    assert [document.text for document in more[: len(few)]] == [document.text for document in few]
    assert corpus.sample("all", 0, documents=len(few)) == few


def test_the_held_out_fifth_and_the_rest_share_nothing(tmp_path):
    path = write_texts(tmp_path / "d.jsonl", 100)
    path.write_text(path.read_text() * 2)
    corpus = Corpus(path)
    held = [text_key(document.text) for document in corpus.documents("held-out")]
    rest = [text_key(document.text) for document in corpus.documents("rest")]
    assert not set(held) & set(rest)
    assert (len(held), len(rest)) == (40, 160)
    plan = _decoder(tmp_path, {"d": path}, held_out=["d"])
    evaluation = plan.evaluation("d", None, 32)
    assert overlap(plan.calibration("d", 8, 32, 0, 4), evaluation) == 0
    assert overlap(plan.training("d", 8, 32, 0), evaluation) == 0


def test_shared_texts_are_counted_whatever_their_white_space(tmp_path):
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    one.write_text('{"text": "a b  c"}\n{"text": "only here"}\n')
    two.write_text('{"text": "a b c"}\n{"text": "only there"}\n')
    plan = _decoder(tmp_path, {"1": one, "2": two})
    assert overlap(plan.calibration("1", 4, 8, 0, 4), plan.evaluation("2", None, 8)) == 1


def test_a_single_document_cannot_be_divided(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text('{"text": "alone"}\n')
    plan = _decoder(tmp_path, {"d": path}, held_out=["d"])
    with pytest.raises(DatasetInsufficient, match="single document"):
        plan.evaluation("d", None, 8)


def test_encoders_see_documents_padded_and_masked(tmp_path):
    path = write_texts(tmp_path / "d.jsonl", 10, labels=["neg", "pos"])
    plan = _classifier(tmp_path, {"d": path})
    found = plan.evaluation("d", None, 24, batch_size=4)
    assert [batch["input_ids"].shape[0] for batch in found.batches] == [4, 4, 2]
    for batch in found.batches:
        mask = batch["attention_mask"].bool()
        assert bool((batch["input_ids"][~mask] == 0).all())
        assert bool((batch["input_ids"][:, 0] == 2).all())  # [CLS]
        assert batch["input_ids"].shape[1] <= 24
    assert found.batches[0]["labels"].tolist() == [0, 1, 0, 1]
    assert found.labels == ("neg", "pos")


@pytest.mark.parametrize(("label", "message"), [("other", "'other'"), (7, "7"), (None, "no label")])
def test_labels_that_the_model_does_not_have_are_named(tmp_path, label, message):
    path = tmp_path / "d.jsonl"
    row = {"text": "a"} if label is None else {"text": "a", "label": label}
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(DatasetInvalid, match=message):
        _classifier(tmp_path, {"d": path}).evaluation("d", None, 8)


def test_labels_may_be_numbers(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text('{"text": "a", "label": 1}\n{"text": "b", "label": 0}\n')
    found = _classifier(tmp_path, {"d": path}).evaluation("d", None, 8)
    assert found.batches[0]["labels"].tolist() == [1, 0]


def test_training_rows_are_addressed_by_number(tmp_path):
    path = write_texts(tmp_path / "d.jsonl", 40, labels=["neg", "pos"])
    plan = _classifier(tmp_path, {"d": path})
    rows = plan.training("d", 30, 16, seed=3)
    again = plan.training("d", 30, 16, seed=3)
    assert len(rows) == 30
    batch = rows.batch([5, 2, 5])
    assert all(torch.equal(value, again.batch([5, 2, 5])[name]) for name, value in batch.items())
    assert torch.equal(batch["input_ids"][0], batch["input_ids"][2])
    assert batch["labels"].shape == (3,)
    decoder = _decoder(tmp_path, {"d": path}).training("d", 10, 16, seed=3)
    assert set(decoder.batch([0, 1])) == {"input_ids"}


def test_a_dataset_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DatasetInvalid, match="'x'"):
        _decoder(tmp_path, {}).evaluation("x", None, 8)


def test_tokens_beyond_the_vocabulary_are_refused(tmp_path):
    folder = tiny_llama(tmp_path / "m")
    config = read_config(folder) | {"vocab_size": 100}
    plan = DataPlan(folder, config, "text-generation", {"d": write_texts(tmp_path / "d.jsonl", 5)})
    with pytest.raises(DatasetInvalid, match="vocabulary has 100"):
        plan.evaluation("d", None, 8)
