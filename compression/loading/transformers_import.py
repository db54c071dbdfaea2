"""transformers without what only compiling and several devices need.

Importing a model's class also brings in torch's compiler and its distributed tensors, and with them sympy: a
second of processor time and 70 MB in every process that runs a job, for code that no job calls. They are left
out while transformers is imported and are there as ever afterwards, for whoever imports them.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch
import torch.compiler
import torch.distributed
from torch import nn

Function = TypeVar("Function", bound=Callable[..., Any])
COMPILER = "torch._dynamo"
# What the modules of models import of the package.
SHARED = ("transformers.modeling_utils", "transformers.generation.utils", "transformers.masking_utils")


def import_transformers() -> ModuleType:
    """The package, with what all models share imported."""
    if not sys.modules.keys() >= set(SHARED):
        with _without_compiler(), _without_distributed():
            for name in SHARED:
                importlib.import_module(name)
    return importlib.import_module("transformers")


@contextmanager
def without_storage() -> Iterator[None]:
    """Models made meanwhile have parameters of shapes alone, tied as ever, and buffers with their values.

    Making all of a model on the device "meta" would do, but arithmetic there (of rotary tables, of random
    draws) is looked up in the compiler.
    """
    register, initialize = nn.Module.register_parameter, PreTrainedModel.initialize_weights
    drawn = {name: getattr(nn.init, name) for name in nn.init.__all__ if name.endswith("_")}

    def place(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            shape = torch.empty_like(parameter, device="meta")
            parameter = nn.Parameter(shape, requires_grad=parameter.requires_grad)
        register(module, name, parameter)

    try:
        for name in drawn:
            setattr(nn.init, name, _as_it_is)
        nn.Module.register_parameter = place  # type: ignore[method-assign, assignment]
        PreTrainedModel.initialize_weights = lambda self: None
        yield
    finally:
        for name, value in drawn.items():
            setattr(nn.init, name, value)
        nn.Module.register_parameter = register  # type: ignore[method-assign]
        PreTrainedModel.initialize_weights = initialize


def _as_it_is(tensor: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return tensor


@contextmanager
def _without_distributed() -> Iterator[None]:
    """transformers asks once whether there can be several processes, and is told no."""
    available = torch.distributed.is_available
    torch.distributed.is_available = lambda: False
    try:
        yield
    finally:
        torch.distributed.is_available = available


@contextmanager
def _without_compiler() -> Iterator[None]:
    """What marks functions for the compiler leaves them as they are; nothing that is marked is ever
    compiled here."""
    disable = torch.compiler.disable
    stand_in = _Compiler(COMPILER)
    stand_in.__path__ = [str(Path(torch.__file__).parent / "_dynamo")]
    there = COMPILER in sys.modules
    if not there:
        sys.modules[COMPILER] = stand_in
        torch.compiler.disable = _unmarked  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compiler.disable = disable
        if sys.modules.get(COMPILER) is stand_in:
            del sys.modules[COMPILER]


def _unmarked(function: Function | None = None, *_: Any, **__: Any) -> Any:
    """A decorator, with or without arguments, that does nothing."""
    return function if function is not None else lambda marked: marked


class _Compiler(ModuleType):
    """Stands for the compiler's package: its submodules are found, its own code is not run. Whoever asks it
    for more than marks gets the real one."""

    allow_in_graph = staticmethod(_unmarked)
    assume_constant_result = staticmethod(_unmarked)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(COMPILER) is self:
            del sys.modules[COMPILER]
        return getattr(importlib.import_module(COMPILER), name)


def class_of(module: str, name: str) -> Any:
    """A class of one of the package's modules."""
    import_transformers()
    return getattr(importlib.import_module(module), name)


transformers = import_transformers()

from transformers.modeling_utils import PreTrainedModel  # noqa: E402
from transformers.pytorch_utils import Conv1D  # noqa: E402

__all__ = ["Conv1D", "class_of", "import_transformers", "transformers", "without_storage"]
