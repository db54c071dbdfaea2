"""How the parameters of a stock model are called in its files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from safetensors import safe_open
from torch import nn

from compression.loading.architectures import ARCHITECTURES
from compression.loading.weights import OLD_NAMES


def tensor_names(folder: Path) -> set[str]:
    """Names of all tensors in the ``*.safetensors`` files of ``folder``."""
    names: set[str] = set()
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            names.update(file.keys())
    return names


def file_names(model: nn.Module, available: Iterable[str]) -> dict[str, list[str]]:
    """Parameter name -> the names under which the files hold it; tied parameters have several, or none.

    Base checkpoints loaded into a class with a head (and the reverse) differ by the base model's prefix, and
    files of some architectures call parts otherwise than the classes do.
    Parameters that the files lack (made by the loader) are left out, and so are those of experts, which are
    one parameter in memory whichever way they are stored: recoveries leave experts as they are.
    """
    have = set(available)
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    architecture = ARCHITECTURES.get(type(model).__name__)
    renames = architecture.renames if architecture is not None else ()
    first: dict[int, str] = {}
    found: dict[str, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owner = first.setdefault(id(parameter), name)
        if ".experts." in name:
            continue
        older = name
        for new, old in renames:
            older = older.replace(new, old)
        forms = [form for way in (name, older) for form in (way, prefix + way, way.removeprefix(prefix))]
        for candidate in (*forms, OLD_NAMES.get(name, name)):
            if candidate in have:
                if candidate not in found.setdefault(owner, []):
                    found[owner].append(candidate)
                break
    return {name: files for name, files in found.items() if files}
