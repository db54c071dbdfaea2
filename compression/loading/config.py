"""Rewrites config.json from an allow-list of architectures and keys. No torch.

What transformers would execute or fetch because a config says so (auto_map, attention implementations from
a hub, ...) is refused; what it would merely store is dropped; what is kept has been checked for type and
range.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from compression.anatomy.families import architectures, family_of
from compression.anatomy.families.base import Family
from compression.anatomy.families.reader import ConfigReader, shown
from compression.errors import ArchitectureUnknown, ConfigInvalid, ModelRejected
from compression.loading.json_files import read_object
from compression.loading.sources import FileSource

MAXIMUM_CONFIG = 4 << 20
DTYPES = ("float32", "bfloat16", "float16")

_CODE = frozenset({
    "auto_map", "trust_remote_code", "custom_pipelines", "custom_generate", "custom_code", "code_revision",
    "remote_code",
})  # fmt: skip
_HARMLESS = frozenset({
    "_name_or_path", "_commit_hash", "_attn_implementation_autoset", "_num_labels",
    "_remove_final_layer_norm", "_sliding_window_pattern",
})  # fmt: skip
# Caches that transformers has itself; published Gemma models name theirs.
_CACHES = frozenset({"dynamic", "static", "hybrid", "sliding_window", "offloaded"})
_LABELS = ("id2label", "label2id")
_FORMATS = {
    "quantization_config": "the weights are quantised; upload the model in float32, bfloat16 or float16",
    "compression_config": "the weights are in a compressed format; upload the model as plain dense weights",
    "per_layer_config": "layers of different widths are not supported",
    "pruned_heads": "heads removed layer by layer are not supported",
    "adapters": "adapters are not supported; merge them into the weights first",
}


@dataclass(frozen=True)
class Rewritten:
    """A config after rewriting: `config` lacks only `dtype` if the original had none; `dropped` names the
    keys left out."""

    architecture: str
    family: Family
    config: dict[str, Any]
    dropped: tuple[str, ...]


def rewrite_config(source: FileSource, file: str = "config.json") -> Rewritten:
    """Reads, checks and rewrites config.json. Raises ConfigInvalid, ArchitectureUnknown."""
    raw = read_object(source, file, MAXIMUM_CONFIG, ConfigInvalid)
    refuse_code(raw, file, ConfigInvalid)
    for key, reason in _FORMATS.items():
        if raw.get(key):
            raise ConfigInvalid(f"{file}: {key}: {reason}.", pointer=f"/{key}")
    for key in raw:
        if key.startswith("_") and key not in _HARMLESS:
            raise ConfigInvalid(
                f"{file}: {key[:80]!r} is a private setting of transformers; remove it.",
                pointer=f"/{key[:80]}",
            )
    architecture = _architecture(raw, file)
    family = family_of(architecture)
    reader = ConfigReader(raw, file)
    model_type = family.architectures[architecture].model_type
    reader.word("model_type", (model_type,), model_type)
    config: dict[str, Any] = {"architectures": [architecture], "model_type": model_type}
    config |= family.rewrite(architecture, reader)
    dtype = _dtype(reader)
    if dtype is not None:
        config["dtype"] = dtype
    dropped = tuple(sorted(key for key in raw if key not in config and key != "torch_dtype"))
    return Rewritten(architecture, family, config, dropped)


def refuse_code(value: Mapping[str, Any], file: str, error: type[ModelRejected]) -> None:
    """Raises `error` if a setting, at any depth, would make a loader run or fetch code."""

    def refuse(path: str, key: str) -> NoReturn:
        raise error(
            f"{file}: {key[:80]!r} refers to code; models are only loaded by stock transformers classes, "
            "without code from elsewhere. Remove it.",
            pointer=path,
        )

    stack: list[tuple[str, Any]] = [("", value)]
    while stack:
        path, item = stack.pop()
        if isinstance(item, list):
            stack.extend((f"{path}/{index}", inner) for index, inner in enumerate(item))
        elif isinstance(item, Mapping):
            for key, inner in item.items():
                name = key.lower()
                if name in _CODE or (inner is not None and _implementation(name, inner)):
                    refuse(f"{path}/{key[:80]}", key)
                if not (path == "" and key in _LABELS):
                    stack.append((f"{path}/{key[:80]}", inner))


def _implementation(name: str, value: Any) -> bool:
    if name == "cache_implementation" and isinstance(value, str) and value in _CACHES:
        return False
    return "_implementation" in name and name != "_attn_implementation_autoset"


_CONVERT = (
    "it is an image classifier that goes in as ONNX. Convert the folder on your machine: secateur convert "
    "FOLDER OUT, and upload OUT."
)


def _architecture(raw: Mapping[str, Any], file: str) -> str:
    given = raw.get("architectures")
    known = ", ".join(architectures())
    if given is None and isinstance(raw.get("architecture"), str):
        raise ArchitectureUnknown(
            f"{file}: {raw['architecture'][:80]!r} is an architecture of timm: {_CONVERT}",
            pointer="/architecture",
        )
    if given is None:
        raise ArchitectureUnknown(
            f"{file}: 'architectures' is missing; it must name the model's class, one of {known}.",
            pointer="/architectures",
        )
    if not isinstance(given, list) or len(given) != 1 or not isinstance(given[0], str):
        raise ArchitectureUnknown(
            f"{file}: 'architectures' is {shown(given)}; it must be a list with one of {known}.",
            pointer="/architectures",
        )
    if "ForImageClassification" in given[0] and given[0] not in architectures():
        raise ArchitectureUnknown(
            f"{file}: the architecture {given[0][:80]!r} is not taken in as it is: {_CONVERT}",
            pointer="/architectures",
        )
    return given[0]


def _dtype(reader: ConfigReader) -> str | None:
    for key in ("dtype", "torch_dtype"):
        if reader.given(key) and reader.config[key] != "auto":
            return reader.word(key, DTYPES, "")
    return None
