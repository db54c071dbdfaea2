"""Checks the tokenizer's files and rewrites their settings. No torch, and the vocabulary itself is not
parsed here."""

from __future__ import annotations

import re
from typing import Any

from compression.errors import TokenizerInvalid
from compression.loading.config import refuse_code
from compression.loading.json_files import read_object, write_object
from compression.loading.sources import Files

MAXIMUM_TOKENIZER = 64 << 20
MAXIMUM_SETTINGS = 16 << 20
MAXIMUM_TEMPLATE = 256 << 10

_KEPT = re.compile(
    r"(?:(?:bos|eos|pad|unk|sep|cls|mask|image|audio|video)_token"
    r"|add_(?:bos_token|eos_token|prefix_space|special_tokens|dummy_prefix_space)"
    r"|additional_special_tokens|extra_special_tokens|model_specific_special_tokens|added_tokens_decoder"
    r"|clean_up_tokenization_spaces|spaces_between_special_tokens|split_special_tokens|use_default_system_prompt"
    r"|model_max_length|max_length|stride|padding|padding_side|truncation|truncation_side|truncation_strategy"
    r"|pad_to_multiple_of|pad_token_type_id|model_input_names|tokenizer_class|backend|legacy|errors"
    r"|do_lower_case|lowercase|do_basic_tokenize|strip_accents|tokenize_chinese_chars|never_split|wordpieces_prefix"
    r"|chat_template)",
    re.ASCII,
)
_CLASS = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}", re.ASCII)


def check_tokenizer(files: Files) -> tuple[bool, dict[str, bytes]]:
    """Checks the tokenizer's files: (whether there is a tokenizer.json, files to store in place of those
    uploaded). Settings that name files or code are left out or refused. Raises TokenizerInvalid."""
    rewritten: dict[str, bytes] = {}
    for file in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        if file in files:
            settings = read_object(files[file], file, MAXIMUM_SETTINGS, TokenizerInvalid)
            refuse_code(settings, file, TokenizerInvalid)
            if file == "tokenizer_config.json":
                rewritten[file] = write_object(_settings(settings, file))
    if "chat_template.jinja" in files and files["chat_template.jinja"].size > MAXIMUM_TEMPLATE:
        raise TokenizerInvalid(
            f"chat_template.jinja: more than the {MAXIMUM_TEMPLATE:,} bytes allowed.",
            pointer="chat_template.jinja",
        )
    if "tokenizer.json" in files:
        _check_tokenizer_json(files)
    return "tokenizer.json" in files, rewritten


def _check_tokenizer_json(files: Files) -> None:
    source = files["tokenizer.json"]
    if source.size > MAXIMUM_TOKENIZER:
        raise TokenizerInvalid(
            f"tokenizer.json: {source.size:,} bytes, more than the {MAXIMUM_TOKENIZER:,} allowed.",
            pointer="tokenizer.json",
        )
    head, tail = source.read(0, 64).lstrip(), source.read(max(0, source.size - 64), 64).rstrip()
    if not head.startswith(b"{") or not tail.endswith(b"}"):
        raise TokenizerInvalid(
            "tokenizer.json: not a JSON object; it is damaged or cut off, upload it again.",
            pointer="tokenizer.json",
        )


def _settings(settings: dict[str, Any], file: str) -> dict[str, Any]:
    kept = {key: value for key, value in settings.items() if _KEPT.fullmatch(key)}
    name = kept.get("tokenizer_class")
    if name is not None and (not isinstance(name, str) or not _CLASS.fullmatch(name)):
        raise TokenizerInvalid(f"{file}: tokenizer_class is no name of a class.", pointer="/tokenizer_class")
    template = kept.get("chat_template")
    if template is not None and len(str(template)) > MAXIMUM_TEMPLATE:
        raise TokenizerInvalid(
            f"{file}: chat_template is longer than the {MAXIMUM_TEMPLATE:,} characters allowed.",
            pointer="/chat_template",
        )
    return kept
