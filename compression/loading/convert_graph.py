"""Turns a torch.nn.Module, or a torch.export program, into an ONNX file, on the owner's own machine, never
in the
service.

    python convert_graph.py MODULE:FACTORY OUT.onnx [--weights FILE] --input NAME:1x3x32x32[:DTYPE] ...
    python convert_graph.py PROGRAM.pt2 OUT.onnx

MODULE is imported from the current folder or the installed packages, and FACTORY() must give the module (or
be it): this runs the owner's code. Reading a .pt2 runs code in it, too: convert only programs of your own.
The first dimension of every input becomes free. Leftovers of torch.nn.utils.prune are folded; documentation,
stack traces and paths that the exporter writes down are removed. Needs torch, onnx and onnxscript; with
onnxruntime the result is compared.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import logging
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

OPSET = 18
EXTERNAL_BYTES = 1_800_000_000
"""Bytes of weights from which on they go into a file of their own: one message holds 2 GB at most."""
BATCHES = (2, 3)
"""Rows with which the result is compared; the first is exported with, because one row would become fixed."""
TOLERANCE = 1e-3
"""Largest difference between torch and ONNX Runtime, in parts of the largest output."""
DTYPES = ("float32", "float16", "float64", "int32", "int64", "bool")
_INPUT = re.compile(r"([A-Za-z_]\w{0,119}):([0-9]{1,9}(?:x[0-9]{1,9}){0,7})(?::(\w+))?", re.ASCII)


class NotConvertible(Exception):
    """The source cannot be converted; the text says why."""


@dataclass(frozen=True)
class Input:
    """An input of the network: its name in the graph, its shape with the batch first, and its type."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @classmethod
    def parse(cls, text: str) -> Input:
        """From NAME:1x3x32x32 or NAME:1x128:int64. Raises NotConvertible."""
        found = _INPUT.fullmatch(text)
        if found is None or (found[3] or "float32") not in DTYPES:
            raise NotConvertible(
                f"--input {text!r}: write NAME:1x3x32x32 (the batch first), if need be with a type behind it "
                f"({', '.join(DTYPES)}), as in tokens:1x128:int64"
            )
        return cls(found[1], tuple(map(int, found[2].split("x"))), found[3] or "float32")

    def example(self, rows: int) -> Any:
        """A tensor of so many rows: normal numbers, or zeros where they are no floats."""
        import torch

        shape = (rows, *self.shape[1:])
        dtype = getattr(torch, self.dtype)
        if not dtype.is_floating_point:
            return torch.zeros(shape, dtype=dtype)
        return torch.randn(shape, generator=torch.Generator().manual_seed(rows)).to(dtype)


def say(text: str | None, stream: TextIO = sys.stdout) -> None:
    """Tell the user something."""
    stream.write(f"{text}\n")


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def build(source: str, weights: Path | None) -> Any:
    """The module that MODULE:FACTORY gives, with its weights, plain and in evaluation mode.

    Raises: NotConvertible.
    """
    import torch

    name, _, attribute = source.partition(":")
    sys.path.insert(0, "")
    try:
        found: Any = importlib.import_module(name)
        for part in attribute.split("."):
            found = getattr(found, part)
        model = found if isinstance(found, torch.nn.Module) else found()
    except Exception as error:
        raise NotConvertible(f"{source} does not give a module: {first_line(error)}") from error
    if not isinstance(model, torch.nn.Module):
        raise NotConvertible(f"{source} gives a {type(model).__name__}, not a torch.nn.Module")
    given = {} if weights is None else fold(read_weights(weights))
    computed = any(".parametrizations." in f".{name}" for name in given)
    if not computed:
        make_plain(model)
    if weights is not None:
        try:
            model.load_state_dict(given)
        except RuntimeError as error:
            raise NotConvertible(
                f"{weights.name} does not fit {source}: {' '.join(str(error).split())[:600]}"
            ) from error
    if computed:
        make_plain(model)
    return model.eval()


def make_plain(model: Any) -> None:
    """Multiplies the masks of torch.nn.utils.prune into the weights of a module and takes the hooks away;
    what torch.nn.utils.parametrize computes weights by is replaced by what it gives."""
    from torch.nn.utils import parametrize, prune

    for module in list(model.modules()):
        for name in list(getattr(module, "parametrizations", ())):
            parametrize.remove_parametrizations(module, name)
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, prune.BasePruningMethod):
                prune.remove(module, hook._tensor_name)  # type: ignore[no-untyped-call]


def fold(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Weights by name with `x_orig` and `x_mask` as `x`, their product, and without prefixes of wrappers.

    Raises: NotConvertible where one of the two is missing.
    """
    plain = {re.sub(r"^(module\.|_orig_mod\.)+", "", name): value for name, value in tensors.items()}
    folded: dict[str, Any] = {}
    for name, value in plain.items():
        stem = name[: -len("_orig")]
        if name.endswith("_orig"):
            mask = plain.get(f"{stem}_mask")
            if mask is None:
                raise NotConvertible(f"the weights hold {name}, but no {stem}_mask")
            folded[stem] = value * mask.to(value.dtype)
        elif not (name.endswith("_mask") and f"{stem}_orig" in plain):
            folded[name] = value
    return folded


def read_weights(path: Path) -> dict[str, Any]:
    """The tensors of a safetensors file, or of a pickled one of which only plain tensors are read.

    Raises: NotConvertible.
    """
    if not path.is_file():
        raise NotConvertible(f"there is no file {path}")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return dict(load_file(path))
    pickles = neighbour("convert")
    try:
        return dict(pickles.read(path))
    except pickles.NotConvertible as error:
        raise NotConvertible(str(error)) from error


def neighbour(name: str) -> ModuleType:
    """A file beside this one: the Python that runs this may not have the package."""
    spec = importlib.util.spec_from_file_location(f"secateur_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def export(model: Any, inputs: Sequence[Input]) -> Any:
    """The ONNX program of a module, its batch free.

    Raises: NotConvertible.
    """
    import torch

    batch = torch.export.Dim("batch")
    args = tuple(each.example(BATCHES[0]) for each in inputs)
    try:
        return torch.onnx.export(
            model,
            args,
            dynamo=True,
            input_names=[each.name for each in inputs],
            dynamic_shapes=tuple({0: batch} for _ in inputs),
            opset_version=OPSET,
            verbose=False,
        )
    except Exception as error:
        raise NotConvertible(f"torch.onnx.export fails: {cause(error)}") from error


def export_program(path: Path) -> tuple[Any, Any]:
    """The ONNX program of a .pt2 file, and the program itself.

    Raises: NotConvertible.
    """
    import torch

    say(f"Reading {path.name} runs code that it holds: go on only with programs of your own.", sys.stderr)
    try:
        program = torch.export.load(path)
        return torch.onnx.export(program, dynamo=True, opset_version=OPSET, verbose=False), program
    except Exception as error:
        raise NotConvertible(f"{path.name} cannot be exported: {cause(error)}") from error


def cause(error: BaseException) -> str:
    """What lies at the bottom of an error of the exporter."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


def write(program: Any, place: Path) -> None:
    """Writes an ONNX program without functions, documentation, stack traces and paths; large weights go
    beside
    it, into `place` with .data behind its name."""
    onnx = importlib.import_module("onnx")
    inliner = importlib.import_module("onnx.inliner")
    large = sum(
        value.const_value.nbytes
        for value in program.model.graph.initializers.values()
        if value.const_value is not None
    )
    program.save(str(place), external_data=large > EXTERNAL_BYTES)
    model = onnx.load(str(place), load_external_data=False)
    if model.functions:
        model = inliner.inline_local_functions(model)
    graph = model.graph
    for part in (
        model,
        graph,
        *graph.node,
        *graph.initializer,
        *graph.input,
        *graph.output,
        *graph.value_info,
    ):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    used = {node.domain for node in graph.node} | {""}
    kept = [each for each in model.opset_import if each.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    onnx.save(model, str(place))


def compare(place: Path, model: Any, examples: Sequence[tuple[Any, ...]]) -> str:
    """Runs torch and ONNX Runtime on the same inputs; gives what came of it in words.

    Raises: NotConvertible where they differ.
    """
    import torch

    try:
        runtime = importlib.import_module("onnxruntime")
    except ImportError:
        return "not compared with torch: onnxruntime is not installed"
    session = runtime.InferenceSession(str(place), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    worst = 0.0
    for example in examples:
        with torch.no_grad():
            wanted = flatten(model(*example))
        given = session.run(None, {name: value.numpy() for name, value in zip(names, example, strict=True)})
        if len(wanted) != len(given):
            raise NotConvertible(f"torch gives {len(wanted)} outputs, the exported graph {len(given)}")
        for ours, theirs in zip(wanted, given, strict=True):
            if tuple(ours.shape) != tuple(theirs.shape):
                raise NotConvertible(
                    f"torch gives {tuple(ours.shape)}, the exported graph {tuple(theirs.shape)}"
                )
            scale = max(1.0, float(ours.double().abs().max())) if ours.numel() else 1.0
            if ours.numel():
                worst = max(
                    worst, float((ours.double() - torch.from_numpy(theirs).double()).abs().max()) / scale
                )
    if not worst <= TOLERANCE:
        raise NotConvertible(f"the exported graph differs from torch by {worst:.3g} of the largest output")
    return (
        f"differs from torch by at most {worst:.1e} of the largest output, with {len(examples)} batch sizes"
    )


def flatten(outputs: Any) -> list[Any]:
    """The tensors that a network gives, in order."""
    if isinstance(outputs, Mapping):
        outputs = list(outputs.values())
    if isinstance(outputs, list | tuple):
        return [tensor for each in outputs for tensor in flatten(each)]
    return [outputs] if hasattr(outputs, "numel") else []


def convert(source: str, place: Path, weights: Path | None, inputs: Sequence[Input]) -> str:
    """Converts one network; says how it was checked.

    Raises: NotConvertible.
    """
    if source.endswith(".pt2"):
        if weights is not None or inputs:
            raise NotConvertible("a .pt2 file has its weights and inputs: leave --weights and --input out")
        if not Path(source).is_file():
            raise NotConvertible(f"there is no file {source}")
        written, program = export_program(Path(source))
        write(written, place)
        args, others = program.example_inputs or ((), {})
        if not args or others:
            return "not compared with torch: the program has no plain example inputs"
        return compare(place, program.module(), [args])
    if not inputs:
        raise NotConvertible("say what the network takes, for example --input image:1x3x32x32")
    model = build(source, weights)
    write(export(model, inputs), place)
    return compare(place, model, [tuple(each.example(rows) for each in inputs) for rows in BATCHES])


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0 converted, 1 this Python lacks a package, 2 the source cannot be converted."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source")
    parser.add_argument("out", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--input", action="append", default=[])
    options = parser.parse_args(arguments)
    try:
        for package in ("torch", "onnx", "onnxscript"):
            importlib.import_module(package)
    except ImportError as error:
        say(
            f"error: this Python ({sys.executable}) has no {error.name}, and converting needs it:\n"
            f"  {sys.executable} -m pip install torch onnx onnxscript onnxruntime\n"
            "or name a Python that has them: secateur convert --python PATH ...",
            sys.stderr,
        )
        return 1
    warnings.simplefilter("ignore")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        inputs = [Input.parse(text) for text in options.input]
        say(convert(options.source, options.out, options.weights, inputs))
    except (NotConvertible, OSError) as error:
        say(f"error: {error}", sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
