"""Tokens that stay and the tokenizer without the rest: closed sets, unchanged segmentation, ids, refusals."""

from __future__ import annotations

import json
import random
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from compression.errors import TokenizerInvalid
from compression.vocabulary.derivations import derivations, missing
from compression.vocabulary.rewriting import renumbered, token_ids, trimmed, write_companions
from compression.vocabulary.selection import Vocabulary
from compression.vocabulary.tokenizer_file import read_tokenizer
from tests.vocabularies import END, KINDS, byte_level, corpus, words

QUICK = settings(max_examples=120, deadline=None)
TEXTS = st.lists(st.sampled_from([*words(), "Zug", "日本", "\n", "  ", "ñandú", "x1<mark>", "."]), max_size=8)


def written(folder: Path, tokenizer: Tokenizer) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


@cache
def vocabulary(kind: str, folder: Path) -> tuple[Tokenizer, Vocabulary]:
    tokenizer = (
        byte_level(ignore_merges=True) if kind == "ignore-merges" else KINDS[kind]()
    )  # fmt: skip
    tokenizer.add_tokens(["<mark>"])
    path = written(folder / kind, tokenizer)
    return tokenizer, Vocabulary(read_tokenizer(path), tokenizer.get_vocab_size() + 6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokenizers")


def chosen(found: Vocabulary, seed: int, share: float) -> list[int]:
    """Rows by random worth: `share` of what can go stays."""
    chance = random.Random(seed)
    required = found.bounds(()).required
    count = len(required) + round(share * (found.rows - len(required)))
    return found.keep([chance.random() for _ in range(found.rows)], count, required)


@pytest.mark.parametrize("kind", [*KINDS, "ignore-merges"])
def test_texts_of_kept_tokens_are_segmented_as_before(kind: str, folder: Path) -> None:
    tokenizer, found = vocabulary(kind, folder)
    unknown = tokenizer.token_to_id("[UNK]")
    held = {"same": 0, "other": 0}

    @QUICK
    @given(TEXTS, st.integers(0, 5), st.sampled_from([0.0, 0.3, 0.7, 0.95]))
    def check(parts: list[str], seed: int, share: float) -> None:
        rows = chosen(found, seed, share)
        smaller = Tokenizer.from_str(json.dumps(trimmed(found.tokenizer, rows)))
        text = " ".join(parts)
        before, after = tokenizer.encode(text), smaller.encode(text)
        back = [rows[number] for number in after.ids]
        if set(before.ids) <= set(rows) and unknown not in before.ids:
            assert back == before.ids
            assert after.offsets == before.offsets
            held["same"] += 1
        else:
            held["other"] += 1
            if kind != "unigram" and unknown not in before.ids:
                assert smaller.decode(after.ids) == tokenizer.decode(before.ids), "nothing is lost"

    check()
    assert held["same"] > 3
    assert held["other"] > 3


@pytest.mark.parametrize("kind", ["byte-level", "byte-fallback", "ignore-merges"])
def test_derivations_are_what_the_library_does(kind: str, folder: Path) -> None:
    """A token has a derivation just when its text alone, by merges, becomes it."""
    _, found = vocabulary(kind, folder)
    data = json.loads(json.dumps(found.tokenizer.data))
    data |= {"normalizer": None, "pre_tokenizer": None, "post_processor": None, "added_tokens": []}
    data["model"]["ignore_merges"] = False
    plain = Tokenizer.from_str(json.dumps(data))
    names = {number: token for token, number in found.tokenizer.vocabulary.items()}
    for token, number in found.tokenizer.vocabulary.items():
        alone = plain.encode(token).ids == [number]
        assert (number in found.parts or len(token) == 1) == alone, token
    for number, (left, right) in found.parts.items():
        assert names[left] + names[right] == names[number]
        assert (names[left], names[right]) in found.tokenizer.merges


def test_a_token_that_its_own_text_never_becomes() -> None:
    """Of a b, b c, and ab + c the second merge spoils nothing: abc is made as ab + c; bcd never is."""
    from compression.vocabulary.derivations import last_merge

    ranks = {("a", "b"): 0, ("b", "c"): 1, ("ab", "c"): 2, ("c", "d"): 3, ("b", "cd"): 4}
    names = ["a", "b", "c", "d", "ab", "bc", "abc", "cd", "bcd"]
    vocabulary = {name: number for number, name in enumerate(names)}
    assert last_merge("abc", ranks, vocabulary) == ("ab", "c")
    assert last_merge("bcd", ranks, vocabulary) is None
    assert last_merge("a", ranks, vocabulary) is None
    assert last_merge("xab", ranks, vocabulary) is None


@given(st.integers(0, 99), st.floats(0, 1))
@settings(max_examples=25, deadline=None)
def test_the_kept_set_is_closed_and_has_the_size_asked_for(seed: int, share: float) -> None:
    found = _small()
    rows = chosen(found, seed, share)
    required = found.bounds(()).required
    assert len(rows) == len(set(rows)) == len(required) + round(share * (found.rows - len(required)))
    assert required <= set(rows)
    for row in rows:
        assert set(found.parts.get(row, ())) <= set(rows)
    assert rows == sorted(rows), "with all added tokens behind, the order is that of the ids"


@cache
def _small() -> Vocabulary:
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        tokenizer = byte_level(400)
        return Vocabulary(read_tokenizer(written(Path(place), tokenizer)), tokenizer.get_vocab_size() + 4)


def test_the_most_frequent_stay_with_what_they_are_made_of() -> None:
    found = _small()
    derived = sorted(found.parts, key=lambda token: len(missing(token, found.parts, set())))
    wanted = derived[-1]
    required = found.bounds(()).required
    need = missing(wanted, found.parts, set(required))
    worth = [0.0] * found.rows
    worth[wanted] = 9.0
    assert set(found.keep(worth, len(required) + len(need), required)) == required | need
    # Without room for all of it, others stay: the lowest ids that can.
    fewer = set(found.keep(worth, len(required) + len(need) - 1, required))
    assert wanted not in fewer
    with pytest.raises(ValueError, match="required"):
        found.keep(worth, len(required) - 1, required)
    # Rows without a token go first.
    most = found.keep(worth, found.rows - 4, required)
    assert max(most) == found.rows - 5


@pytest.mark.parametrize("kind", KINDS)
def test_every_reader_gets_the_same_ids(kind: str, folder: Path, tmp_path: Path) -> None:
    tokenizer, found = vocabulary(kind, folder)
    source, target = tmp_path / "dense", tmp_path / "smaller"
    written(source, tokenizer)
    decoder = {
        str(number): {"content": token.content, "special": token.special, "lstrip": False, "rstrip": False,
                      "normalized": token.normalized, "single_word": token.single_word}
        for number, token in tokenizer.get_added_tokens_decoder().items()
    }  # fmt: skip
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "added_tokens_decoder": decoder}
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    (source / "merges.txt").write_text("old")
    (source / "added_tokens.json").write_text(json.dumps({"<mark>": tokenizer.token_to_id("<mark>")}))
    (source / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [tokenizer.token_to_id("<mark>")], "pad_token_id": -1, "top_k": 50})
    )
    rows = chosen(found, 1, 0.4)
    target.mkdir()
    paths = sorted(path for path in source.rglob("*") if path.is_file())
    assert write_companions(source, target, paths, found.tokenizer, rows) == ["merges.txt"]
    place = rows.index(tokenizer.token_to_id("<mark>"))
    assert json.loads((target / "added_tokens.json").read_text()) == {"<mark>": place}
    generation = json.loads((target / "generation_config.json").read_text())
    assert generation == {"eos_token_id": [place], "pad_token_id": -1, "top_k": 50}
    dense, smaller = (AutoTokenizer.from_pretrained(path) for path in (source, target))
    plain = Tokenizer.from_file(str(target / "tokenizer.json"))
    known = [text for text in corpus(80, 9) if set(dense(text)["input_ids"]) <= set(rows)]
    for text in [*known, "<mark>", "ba<mark>ba"]:
        ids = smaller(text)["input_ids"]
        assert ids == plain.encode(text).ids
        if text in known:
            assert [rows[number] for number in ids] == dense(text)["input_ids"]
            assert smaller.decode(ids) == dense.decode(dense(text)["input_ids"])
    assert len(smaller) == len([row for row in rows if row < tokenizer.get_vocab_size()])


OWN_CLASSES = {
    "byte-level": ("gpt2", "GPT2Tokenizer"), "byte-fallback": ("llama", "LlamaTokenizer"),
    "unigram": ("t5", "T5Tokenizer"), "wordpiece": ("bert", "BertTokenizer"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_the_own_class_of_a_model_reads_the_same(kind: str, tmp_path: Path) -> None:
    """Such a class builds a tokenizer of its own from the vocabulary and the merges of the file."""
    tokenizer, (model, name) = KINDS[kind](), OWN_CLASSES[kind]
    source, target = tmp_path / "dense", tmp_path / "smaller"
    found = Vocabulary(read_tokenizer(written(source, tokenizer)), tokenizer.get_vocab_size())
    names = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), END)
    if kind != "byte-level":
        names |= {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    settings_ = {"tokenizer_class": name, **({} if kind == "wordpiece" else names)}
    (source / "tokenizer_config.json").write_text(json.dumps(settings_))
    counts = Counter(number for line in corpus(60, 4) for number in tokenizer.encode(line).ids)
    required = found.bounds(()).required
    rows = found.keep([float(counts[row]) for row in range(found.rows)], found.rows * 9 // 10, required)
    target.mkdir()
    write_companions(source, target, sorted(source.iterdir()), found.tokenizer, rows)
    for place in (source, target):
        (place / "config.json").write_text(json.dumps({"model_type": model}))
    dense, smaller = (AutoTokenizer.from_pretrained(place) for place in (source, target))
    assert type(smaller).__name__ == name
    known = [ids for line in corpus(60, 4) if set(ids := dense(line)["input_ids"]) <= set(rows)]
    read = [[rows[number] for number in smaller(line)["input_ids"]]
            for line in corpus(60, 4) if set(dense(line)["input_ids"]) <= set(rows)]  # fmt: skip
    assert read == known
    assert len(known) > 10


def test_settings_are_renumbered() -> None:
    config = {"eos_token_id": [4, 2], "bos_token_id": 4, "pad_token_id": -1, "forced_bos_token_id": None,
              "vocab_size": 9, "pad_token_type_id": 4, "suppress_token_ids": [2]}  # fmt: skip
    assert token_ids(config) == {2, 4}
    changed = renumbered(config, {4: 0, 2: 7}, "config.json")
    assert changed == config | {"eos_token_id": [0, 7], "bos_token_id": 0, "suppress_token_ids": [7]}
    with pytest.raises(TokenizerInvalid, match="it names token 4"):
        renumbered(config, {2: 0}, "config.json")


def _changed(change: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(byte_level(300).to_str())
    model = data["model"]
    match change:
        case "kind":
            data["model"] = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
        case "suffix":
            model["end_of_word_suffix"] = "</w>"
        case "dropout":
            model["dropout"] = 0.1
        case "twice":
            model["vocab"]["zzz"] = 0
        case "added":
            data["added_tokens"][0] |= {"content": "a", "id": 299}
        case "processor":
            data["post_processor"] = {"type": "Odd"}
        case "damaged":
            del model["vocab"]
    return data


@pytest.mark.parametrize(
    ("change", "words_"),
    [
        ("kind", "'WordLevel'; tokens can be removed from BPE"), ("suffix", "end_of_word_suffix"),
        ("dropout", "a dropout"), ("twice", "two tokens have one id"), ("added", "another id"),
        ("processor", "post-processor is 'Odd'"), ("damaged", "are not what the tokenizers library writes"),
    ],
)  # fmt: skip
def test_what_cannot_be_trimmed_is_refused(change: str, words_: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(_changed(change)))
    with pytest.raises(TokenizerInvalid, match=words_) as caught:
        read_tokenizer(path)
    assert str(tmp_path) not in str(caught.value)


def test_tokens_without_a_row_and_ids_that_a_reader_would_change(tmp_path: Path) -> None:
    path = written(tmp_path, byte_level(300))
    found = read_tokenizer(path)
    assert END in found.outside
    with pytest.raises(TokenizerInvalid, match="token 300 has no row"):
        Vocabulary(found, 300)
    assert derivations(found)
    # A hole in the ids of the model: readers count the added tokens from the number of the others.
    data = json.loads(path.read_text())
    data["added_tokens"][0]["id"] = 305
    path.write_text(json.dumps(data))
    rows = Vocabulary(read_tokenizer(path), 310).keep([0.0] * 310, 301, {305})
    assert rows[-1] == 305
    target = tmp_path / "smaller"
    target.mkdir()
    write_companions(tmp_path, target, [path], read_tokenizer(path), rows)
    assert Tokenizer.from_file(str(target / "tokenizer.json")).token_to_id(END) == 300
