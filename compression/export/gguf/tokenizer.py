"""The tokenizer of a GGUF file, from tokenizer.json and tokenizer_config.json. No torch.

llama.cpp has tokenizers of its own, and takes from the file their kind, tokens and merges. Of two kinds it
can be said that they cut text as the model's own does: byte-level BPE with a pre-tokenizer that it knows by
name (`gpt2`), and BPE that was made from a SentencePiece model (`llama`). Any other is refused, never
approximated.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compression.errors import FormatImpossible
from compression.export.gguf.fields import Field
from compression.export.gguf.pieces import prefix_space, scores
from compression.export.gguf.pretokenizers import NAMES, recognise

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""llama.cpp's types of tokens."""

_ROLES = {"bos": "bos_token_id", "eos": "eos_token_id", "unk": "unknown_token_id", "pad": "padding_token_id"}
# A file of this kind must have merges; symbols begin as single characters, so these two never meet.
_NO_MERGES = ["<none> <none>"]
# What llama.cpp takes for the end where the file names none.
_USUAL_END = {"gpt2": 11, "llama": 2}
_WHITE = ("lstrip", "rstrip", "single_word")
POINTER = "/output/formats"


@dataclass(frozen=True)
class Tokenizer:
    """The keys `tokenizer.*` of a file, and what llama.cpp will do differently, as sentences."""

    fields: list[Field]
    remarks: list[str] = field(default_factory=list)


def read_tokenizer(folder: Path, config: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of the model in `folder`. Raises FormatImpossible if llama.cpp has none like it."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        kind = Field("tokenizer.ggml.model", "str", "none")
        return Tokenizer(
            [kind], ["The model came without tokenizer.json: the GGUF file takes token ids only."]
        )
    data = json.loads(path.read_text(encoding="utf-8"))
    settings = _settings(folder)
    model = data.get("model") or {}
    vocabulary = model.get("vocab")
    if model.get("type") != "BPE" or not isinstance(vocabulary, dict):
        raise _impossible(f"is of type {model.get('type')}; only BPE is written")
    tokens, kinds = _tokens(data, config["vocab_size"])
    if model.get("byte_fallback"):
        fields, remarks = _sentencepiece(data, tokens, kinds)
    else:
        fields, remarks = _byte_level(data, tokens, kinds)
    special = _special(data, settings, config)
    fields += special + _added(data, settings) + _template(folder, settings)
    return Tokenizer(fields, remarks + _endless(fields[0].value, special) + _remarks(data))


def _impossible(what: str) -> FormatImpossible:
    return FormatImpossible(
        f"No GGUF can be written: the model's tokenizer.json {what}. Leave gguf out of output.formats, or "
        "upload the model without its tokenizer: the file then takes token ids.",
        pointer=POINTER,
    )


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def _tokens(data: Mapping[str, Any], size: int) -> tuple[list[str], list[int]]:
    """Every token by its id, and its type; ids that the tokenizer does not use are filled up."""
    tokens: list[str | None] = [None] * size
    kinds = [UNUSED] * size
    found = [(text, number, NORMAL) for text, number in data["model"]["vocab"].items()]
    for token in data.get("added_tokens") or []:
        found.append((token["content"], token["id"], CONTROL if token.get("special") else USER_DEFINED))
    for text, number, kind in found:
        if not isinstance(number, int) or not 0 <= number < size:
            raise _impossible(f"has the token id {number}, but the model has {size:,} embeddings")
        tokens[number], kinds[number] = text, kind
    filled = [f"[PAD{number}]" if text is None else text for number, text in enumerate(tokens)]
    if len(set(filled)) < size or "" in filled:
        raise _impossible("has an empty token or the same one twice, which llama.cpp does not load")
    return filled, kinds


def _byte_level(
    data: Mapping[str, Any], tokens: list[str], kinds: list[int]
) -> tuple[list[Field], list[str]]:
    model, normalizer = data["model"], data.get("normalizer")
    name = recognise(data.get("pre_tokenizer"), bool(model.get("ignore_merges")))
    if name is None:
        raise _impossible(
            f"splits text in a way that llama.cpp has no name for here (known: {', '.join(NAMES)})"
        )
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix") or model.get("dropout"):
        raise _impossible("marks or drops parts of words, which llama.cpp does not do")
    composed = normalizer is not None and normalizer.get("type") == "NFC"
    if normalizer is not None and not composed:
        raise _impossible(f"normalises text ({normalizer.get('type')}), which llama.cpp does not do")
    remarks = (
        ["llama.cpp does not compose characters (NFC) before it cuts text into tokens."] if composed else []
    )
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model.get("merges") or []]
    fields = [
        Field("tokenizer.ggml.model", "str", "gpt2"),
        Field("tokenizer.ggml.pre", "str", name),
        Field("tokenizer.ggml.tokens", "[str]", tokens),
        Field("tokenizer.ggml.token_type", "[i32]", kinds),
        Field("tokenizer.ggml.merges", "[str]", merges or _NO_MERGES),
    ]
    return fields, remarks


def _sentencepiece(
    data: Mapping[str, Any], tokens: list[str], kinds: list[int]
) -> tuple[list[Field], list[str]]:
    space = prefix_space(data)
    if space is None:
        raise _impossible("treats spaces in another way than SentencePiece models do")
    added = {token["content"] for token in data.get("added_tokens") or []}
    ranks = scores(data["model"], added)
    if isinstance(ranks, str):
        raise _impossible(ranks)
    unknown = data["model"].get("unk_token")
    for number, text in enumerate(tokens):
        if len(text) == 6 and text.startswith("<0x") and text.endswith(">") and text not in added:
            kinds[number] = BYTE
        elif text == unknown:
            kinds[number] = UNKNOWN
    fields = [
        Field("tokenizer.ggml.model", "str", "llama"),
        Field("tokenizer.ggml.pre", "str", "default"),
        Field("tokenizer.ggml.tokens", "[str]", tokens),
        Field("tokenizer.ggml.scores", "[f32]", [ranks.get(text, 0.0) for text in tokens]),
        Field("tokenizer.ggml.token_type", "[i32]", kinds),
        Field("tokenizer.ggml.add_space_prefix", "bool", space),
    ]
    return fields, []


def _special(data: Mapping[str, Any], settings: Mapping[str, Any], config: Mapping[str, Any]) -> list[Field]:
    """The ids of the tokens with a part to play: by tokenizer_config.json, else by config.json."""
    ids = dict(data["model"]["vocab"]) | {one["content"]: one["id"] for one in data.get("added_tokens") or []}
    fields = []
    for role, key in _ROLES.items():
        token = settings.get(f"{role}_token")
        text = token.get("content") if isinstance(token, dict) else token
        number = ids.get(text) if isinstance(text, str) else None
        if number is None:
            number = config.get(f"{role}_token_id")
            number = number[0] if isinstance(number, list) and number else number
        if isinstance(number, int):
            fields.append(Field(f"tokenizer.ggml.{key}", "u32", number))
    return fields


def _endless(kind: str, special: list[Field]) -> list[str]:
    if any(field.key == "tokenizer.ggml.eos_token_id" for field in special):
        return []
    return [f"The model names no token that ends a text: llama.cpp takes token {_USUAL_END[kind]} for it."]


def _added(data: Mapping[str, Any], settings: Mapping[str, Any]) -> list[Field]:
    """Whether a text gets a first and a last token: as tokenizer.json's template says, else as the settings
    do."""
    template = _template_of(data.get("post_processor"))
    if template is None:
        begins, ends = (bool(settings.get(f"add_{role}_token")) for role in ("bos", "eos"))
    else:
        place = next((number for number, part in enumerate(template) if "Sequence" in part), len(template))
        begins, ends = place > 0, place + 1 < len(template)
    return [
        Field("tokenizer.ggml.add_bos_token", "bool", begins),
        Field("tokenizer.ggml.add_eos_token", "bool", ends),
    ]


def _template_of(processor: Mapping[str, Any] | None) -> list[Any] | None:
    if processor is None:
        return None
    if processor.get("type") == "Sequence":
        parts = [_template_of(part) for part in processor.get("processors") or []]
        return next((part for part in parts if part is not None), None)
    return list(processor["single"]) if processor.get("type") == "TemplateProcessing" else None


def _template(folder: Path, settings: Mapping[str, Any]) -> list[Field]:
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = {one.get("name"): one.get("template") for one in template if isinstance(one, dict)}
        template = named.get("default")
    file = folder / "chat_template.jinja"
    if file.is_file():
        template = file.read_text(encoding="utf-8")
    return [Field("tokenizer.chat_template", "str", template)] if isinstance(template, str) else []


def _remarks(data: Mapping[str, Any]) -> list[str]:
    odd = [
        token["content"]
        for token in data.get("added_tokens") or []
        if any(token.get(flag) for flag in _WHITE)
    ]
    if not odd:
        return []
    shown = ", ".join(odd[:3]) + (" and others" if len(odd) > 3 else "")
    return [f"llama.cpp leaves the white space beside the added tokens {shown} as it is."]
