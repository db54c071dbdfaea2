"""Tokenizers in GGUF files: a plain reader of the file cuts text as the model's own does; all others are
refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from compression.errors import FormatImpossible
from compression.export.gguf import readback
from compression.export.gguf.pieces import prefix_space, scores
from compression.export.gguf.pretokenizers import recognise
from compression.export.gguf.tokenizer import read_tokenizer
from tests.engine.plain_gguf_tokenizer import encode, keys
from tests.engine.test_gguf import write
from tests.tiny_models import tiny_llama

TEXTS = (
    "Hello world", "  two  spaces\n\n and 12345 numbers, don't stop! ", "naïve café — Привет мир, 我们",
    "I've SEEN it's\t\ttabs\r\n\r\n x", "a  b   c\n\n\nd 3 33 3333", "🚀 \u200d",
)  # fmt: skip
CORPUS = [*TEXTS * 5, *("the cat sat on the mat and don't the numbers 1234 12345 there then".split() * 20)]
SPECIALS = ["<|endoftext|>", "<s>", "</s>"]
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def by_expression(expression: str) -> Any:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(expression), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def byte_level(pre_tokenizer: Any, ignore_merges: bool = False) -> Tokenizer:
    """A byte-level tokenizer trained on the texts."""
    made = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    made.pre_tokenizer, made.decoder = pre_tokenizer, decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(CORPUS, trainer)
    return made


def sentencepiece(gemma: bool) -> dict[str, Any]:
    """tokenizer.json of BPE as it is converted from SentencePiece: every way to make a piece is a merge."""
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    letters = sorted(set("".join(CORPUS[6:])) | set("▁ Helowrd"))
    pieces += [letter for letter in letters if letter != " "]
    pieces += [
        "th",
        "▁th",
        "the",
        "▁the",
        "at",
        "▁c",
        "▁cat",
        "on",
        "an",
        "nd",
        "and",
        "12",
        "34",
        "1234",
        "▁▁",
        "en",
    ]
    vocabulary = {piece: number for number, piece in enumerate(["<unk>", "<s>", "</s>", *pieces])}
    merges = [
        [piece[:cut], piece[cut:]]
        for piece in pieces[256:]
        for cut in range(1, len(piece))
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary
    ]
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    prepend = {"type": "Prepend", "prepend": "▁"}
    model = {
        "type": "BPE", "vocab": vocabulary, "merges": merges, "byte_fallback": True, "fuse_unk": True,
        "unk_token": "<unk>",
    }  # fmt: skip
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [
        {"id": number, "content": text, "special": True, **flags}
        for number, text in enumerate(["<unk>", "<s>", "</s>"])
    ]
    return {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": replace if gemma else {"type": "Sequence", "normalizers": [prepend, replace]},
        "pre_tokenizer": None,
        "model": model,
    }


def folder_of(root: Path, data: dict[str, Any], settings: dict[str, Any] | None = None) -> Path:
    folder = tiny_llama(root / "model", vocabulary=600, tokenizer=False)
    (folder / "tokenizer.json").write_text(json.dumps(data))
    settings = {"bos_token": "<s>", "eos_token": {"content": "</s>"}} if settings is None else settings
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


DIGITS = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
)
KINDS: dict[str, Callable[[], dict[str, Any]]] = {
    "gpt-2": lambda: json.loads(byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False)).to_str()),
    "smollm": lambda: json.loads(byte_level(DIGITS).to_str()),
    "llama-bpe": lambda: json.loads(byte_level(by_expression(LLAMA3), True).to_str()),
    "dbrx": lambda: json.loads(byte_level(by_expression(LLAMA3)).to_str()),
    "qwen2": lambda: json.loads(byte_level(by_expression(LLAMA3.replace("{1,3}", ""))).to_str()),
    "default": lambda: sentencepiece(gemma=False),
    "default-gemma": lambda: sentencepiece(gemma=True),
}


@pytest.mark.parametrize("name", KINDS)
def test_text_is_cut_as_the_model_does(tmp_path: Path, name: str) -> None:
    data = KINDS[name]()
    path = write(folder_of(tmp_path, data))
    assert readback.faults(path) == []
    found = keys(path)
    assert found["tokenizer.ggml.pre"] == name.split("-gemma")[0]
    own = Tokenizer.from_str(json.dumps(data))
    for text in TEXTS:
        assert encode(found, text) == own.encode(text, add_special_tokens=False).ids, text
    assert (found["tokenizer.ggml.bos_token_id"], found["tokenizer.ggml.eos_token_id"]) == (1, 2)
    tokens, kinds = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
    assert len(tokens) == len(kinds) == len(set(tokens)) == 600
    assert (kinds[1], kinds[-1]) == (3, 5)
    good = path.read_bytes()
    path.write_bytes(good.replace(b"[PAD599]", b"[PAD598]", 1))
    assert readback.faults(path) == [
        "model.gguf: the key tokenizer.ggml.tokens is not what config.json and tokenizer.json say"
    ]


def test_first_and_last_tokens_template_and_padding(tmp_path: Path) -> None:
    made = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))
    made.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)]),
        ]
    )
    made.normalizer = normalizers.NFC()
    data = json.loads(made.to_str())
    data["added_tokens"][0]["lstrip"] = True
    chat = {"name": "default", "template": "{{ messages }}"}
    folder = folder_of(tmp_path, data, {"chat_template": [chat], "pad_token": "</s>"})
    config = {"vocab_size": 600, "bos_token_id": 1, "eos_token_id": [2, 0]}
    found = read_tokenizer(folder, config)
    fields = {field.key.removeprefix("tokenizer."): field.value for field in found.fields}
    assert (fields["ggml.add_bos_token"], fields["ggml.add_eos_token"]) == (True, False)
    assert (fields["ggml.bos_token_id"], fields["ggml.eos_token_id"], fields["ggml.padding_token_id"]) == (
        1,
        2,
        2,
    )
    assert fields["chat_template"] == "{{ messages }}"
    assert [
        remark for remark in found.remarks if "NFC" in remark or "<|endoftext|>" in remark
    ] == found.remarks
    endless = read_tokenizer(folder, {"vocab_size": 600})
    assert [remark for remark in endless.remarks if "takes token 11" in remark]
    (folder / "tokenizer.json").unlink()
    bare = read_tokenizer(folder, config)
    assert [field.value for field in bare.fields] == ["none"]
    assert "token ids only" in bare.remarks[0]


def _edit(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda data: {**data, **changes}


def _model(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda data: {**data, "model": {**data["model"], **changes}}


METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_model(type="Unigram", vocab=[["a", 0.0]]), "only BPE is written"),
        (_edit(pre_tokenizer={"type": "Whitespace"}), "no name for here"),
        (_edit(pre_tokenizer=None), "no name for here"),
        (_model(ignore_merges=True), "no name for here"),
        (_edit(normalizer={"type": "Lowercase"}), "normalises text (Lowercase)"),
        (_model(continuing_subword_prefix="##"), "marks or drops parts of words"),
        (_model(vocab={"a": 600}), "the token id 600, but the model has 600 embeddings"),
        (_model(vocab={"": 5}), "an empty token"),
        (_model(vocab={"[PAD9]": 5}), "the same one twice"),
        (_model(byte_fallback=True), "treats spaces in another way"),
    ],
)
def test_what_llama_cpp_has_no_tokenizer_for(
    tmp_path: Path, change: Callable[[dict[str, Any]], dict[str, Any]], why: str
) -> None:
    data = json.loads(Tokenizer(models.BPE(vocab={"a": 5}, merges=[])).to_str())
    data["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    folder = folder_of(tmp_path, change(data))
    with pytest.raises(FormatImpossible, match="No GGUF can be written") as caught:
        read_tokenizer(folder, {"vocab_size": 600})
    assert why in caught.value.message
    assert str(tmp_path) not in caught.value.message


def test_merges_that_no_scores_can_say() -> None:
    vocabulary = {piece: number for number, piece in enumerate(["a", "b", "c", "ab", "bc", "abc", "ca"])}
    complete = [["a", "b"], ["b", "c"], ["a", "bc"], ["ab", "c"], ["c", "a"]]
    found = scores({"vocab": vocabulary, "merges": complete}, set())
    assert found == {"ab": 0.0, "bc": -1.0, "abc": -2.0, "ca": -3.0}
    apart = [["a", "bc"], ["c", "a"], ["ab", "c"], ["a", "b"], ["b", "c"]]
    assert "at ranks apart" in str(scores({"vocab": vocabulary, "merges": apart}, set()))
    assert "does not merge 'a' and 'bc'" in str(scores({"vocab": vocabulary, "merges": complete[:2]}, set()))
    assert isinstance(scores({"vocab": vocabulary, "merges": complete[:2]}, {"abc", "ca"}), dict)


def test_spaces_and_splits_by_their_spelling() -> None:
    assert prefix_space({"pre_tokenizer": METASPACE}) is None
    assert prefix_space({"pre_tokenizer": {**METASPACE, "split": False}}) is True
    assert prefix_space({"pre_tokenizer": {**METASPACE, "split": False, "prepend_scheme": "never"}}) is False
    byte = {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}
    assert recognise(byte, False) is None
    assert recognise({**byte, "add_prefix_space": False}, False) == "gpt-2"
    removed = {"type": "Split", "pattern": {"Regex": LLAMA3}, "behavior": "Removed", "invert": False}
    last = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    assert recognise({"type": "Sequence", "pretokenizers": [removed, last]}, True) is None
    assert recognise({"type": "Sequence", "pretokenizers": [{**removed, "behavior": "Isolated"}, last]}, True)
