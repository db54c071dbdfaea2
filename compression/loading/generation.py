"""Rewrites generation_config.json from an allow-list of keys. No torch."""

from __future__ import annotations

from typing import Any

from compression.anatomy.families.reader import is_number, is_whole
from compression.errors import ConfigInvalid
from compression.loading.config import refuse_code
from compression.loading.json_files import read_object, write_object
from compression.loading.sources import FileSource

MAXIMUM_GENERATION = 1 << 20

_KEPT = frozenset({
    "bos_token_id", "decoder_start_token_id", "do_sample", "early_stopping", "eos_token_id",
    "length_penalty", "max_length", "max_new_tokens", "min_length", "min_new_tokens", "min_p",
    "no_repeat_ngram_size", "num_beams", "num_return_sequences", "pad_token_id", "repetition_penalty",
    "temperature", "top_k", "top_p", "typical_p", "use_cache",
})  # fmt: skip


def rewrite_generation(source: FileSource, file: str = "generation_config.json") -> bytes:
    """The bytes to store in place of generation_config.json: plain numbers and switches only. Raises
    ConfigInvalid."""
    raw = read_object(source, file, MAXIMUM_GENERATION, ConfigInvalid)
    refuse_code(
        {key: value for key, value in raw.items() if key != "cache_implementation"}, file, ConfigInvalid
    )
    kept: dict[str, Any] = {}
    for key in sorted(_KEPT & raw.keys()):
        value = raw[key]
        tokens = isinstance(value, list) and len(value) <= 64 and all(is_whole(item) for item in value)
        if value is not None and not isinstance(value, bool) and not is_number(value) and not tokens:
            raise ConfigInvalid(f"{file}: {key} must be a number, true or false.", pointer=f"/{key}")
        kept[key] = value
    return write_object(kept)
