"""Small real tokenizers of every kind, trained on made-up words, and models whose vocabulary they are."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from tests.tiny_families import tiny_family

END = "<|end|>"
SPECIALS = ["<pad>", "</s>", "<unk>"]
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_SYLLABLES = "ba de fi go lu ma ne ri so tu ka el an or int ist é ü 大".split()


def words(count: int = 400, seed: int = 0) -> list[str]:
    """Made-up words; the first are the usual ones."""
    chance = random.Random(seed)
    return ["".join(chance.choice(_SYLLABLES) for _ in range(chance.randint(1, 5))) for _ in range(count)]


def corpus(lines: int = 200, seed: int = 0) -> Iterator[str]:
    """Lines of words, the first words more often."""
    chance, known = random.Random(seed), words()
    for _ in range(lines):
        yield " ".join(known[min(int(chance.expovariate(0.01)), len(known) - 1)] for _ in range(12)) + "."


def byte_level(size: int = 480, *, ignore_merges: bool = False, merged: bool = True) -> Tokenizer:
    """Byte-level BPE as GPT-2 and Llama 3 have it, with an end token; the end token after the merged ones."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus() if merged else [], trainer)
    tokenizer.add_special_tokens([END])
    data = json.loads(tokenizer.to_str())
    data["model"]["ignore_merges"] = ignore_merges
    return Tokenizer.from_str(json.dumps(data))


def byte_fallback(size: int = 520) -> Tokenizer:
    """BPE over characters with bytes to fall back on, as Llama 2 and Gemma have it."""
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[*SPECIALS, *pieces], show_progress=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.train_from_iterator(corpus(), trainer)
    data = json.loads(tokenizer.to_str())
    data["pre_tokenizer"] = None
    data["added_tokens"] = [one for one in data["added_tokens"] if one["content"] in SPECIALS]
    return Tokenizer.from_str(json.dumps(data))


def unigram(size: int = 300) -> Tokenizer:
    """Unigram pieces with spaces as sentencepiece writes them, as T5 has them, with two sentinel tokens."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=size, special_tokens=SPECIALS, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_special_tokens(["<extra_id_0>", "<extra_id_1>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", tokenizer.token_to_id("</s>"))]
    )
    return tokenizer


def wordpiece(size: int = 320) -> Tokenizer:
    """WordPiece as BERT has it."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=BERT, show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    ids = [(name, tokenizer.token_to_id(name)) for name in ("[SEP]", "[CLS]")]
    tokenizer.post_processor = processors.BertProcessing(*ids)
    return tokenizer


KINDS = {"byte-level": byte_level, "byte-fallback": byte_fallback, "unigram": unigram, "wordpiece": wordpiece}


def with_tokenizer(folder: Path, case: str, tokenizer: Tokenizer, *, spare: int = 5, **config: Any) -> Path:
    """A tiny model of a family with this tokenizer, and `spare` rows more than it has tokens."""
    rows = tokenizer.get_vocab_size() + spare
    tiny_family(folder, case, vocab_size=rows, **config)
    if "<mark>" not in tokenizer.get_vocab():
        tokenizer.add_tokens([AddedToken("<mark>", normalized=False)])
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"pad_token": ("<pad>", "[PAD]"), "eos_token": ("</s>", END), "unk_token": ("<unk>", "[UNK]")}
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 60}
    for role, names in named.items():
        known = [name for name in names if tokenizer.token_to_id(name) is not None]
        if known:
            settings[role] = known[0]
    settings["added_tokens_decoder"] = {
        str(number): {"content": token.content, "special": token.special}
        for number, token in tokenizer.get_added_tokens_decoder().items()
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def write_corpus(path: Path, lines: int = 60, seed: int = 3) -> Path:
    """A .jsonl of lines of the corpus."""
    rows = (json.dumps({"text": f"{line} {number}"}) for number, line in enumerate(corpus(lines, seed)))
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path
