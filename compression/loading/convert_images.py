"""Turns a folder with an image classifier of transformers, or of timm, into ONNX with what says how images
become its input, on the owner's own machine, never in the service.

    python convert_images.py FOLDER OUT [--input pixel_values:1x3x224x224]

FOLDER has config.json and the weights as safetensors; OUT is a new or empty folder, which gets model.onnx,
config.json (the names of the classes) and preprocessor_config.json. Only classes that the installed packages
have are built, none from the folder. The first dimension of the input becomes free. Needs torch, onnx,
onnxscript, and transformers or timm; with onnxruntime the result is compared.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import logging
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

FILE = "model.onnx"
PIXELS = "pixel_values"
HEAD = "ForImageClassification"


def neighbour(name: str) -> ModuleType:
    """A file beside this one: the Python that runs this may not have the package."""
    spec = importlib.util.spec_from_file_location(f"secateur_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by its name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


graphs = neighbour("convert_graph")
settings = neighbour("image_settings")
NotConvertible: type[Exception] = graphs.NotConvertible


def say(text: str | None, stream: TextIO = sys.stdout) -> None:
    """Tell the user something."""
    stream.write(f"{text}\n")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no such file. Raises NotConvertible."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise NotConvertible(f"{path.name} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise NotConvertible(f"{path.name} is no JSON object")
    return found


def of_transformers(folder: Path, config: Mapping[str, Any]) -> Any:
    """The classifier of a transformers folder; its weights must be all there. Raises NotConvertible."""
    transformers = package("transformers")
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and len(names) == 1 else None
    if not isinstance(name, str) or HEAD not in name:
        raise NotConvertible(f"architectures in config.json is {names!r}; it must name one ...{HEAD} class")
    built = getattr(transformers, name, None)
    if built is None:
        raise NotConvertible(
            f"transformers {transformers.__version__} has no class {name}; architectures that come with code "
            "of their own are converted with MODULE:FACTORY"
        )
    torch = importlib.import_module("torch")
    try:
        model, told = built.from_pretrained(
            str(folder),
            local_files_only=True,
            use_safetensors=True,
            attn_implementation="eager",
            dtype=torch.float32,
            # They are looked for below, where they can be named.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except Exception as error:
        raise NotConvertible(f"transformers cannot load the folder: {graphs.first_line(error)}") from error
    for kind in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        # Evaluation does not count batches, and older files do not hold their number.
        wrong = sorted(str(key) for key in told.get(kind) or () if "num_batches_tracked" not in str(key))
        if wrong:
            raise NotConvertible(
                f"{kind.replace('_', ' ')} in the weights for {name}: {', '.join(wrong[:3])}"
            )

    class Scores(torch.nn.Module):  # type: ignore[misc, name-defined]
        """A classifier that gives its scores alone."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixel_values: Any) -> Any:
            return self.model(pixel_values=pixel_values).logits

    return Scores().eval()


def of_timm(folder: Path, config: Mapping[str, Any]) -> Any:
    """The classifier of a timm folder. Raises NotConvertible."""
    timm = package("timm")
    name = str(config["architecture"])
    arguments = dict(config.get("model_args") or {})
    if isinstance(config.get("num_classes"), int):
        arguments["num_classes"] = config["num_classes"]
    if isinstance(config.get("global_pool"), str):
        arguments["global_pool"] = config["global_pool"]
    if name not in timm.list_models():
        raise NotConvertible(f"timm {timm.__version__} has no architecture {name!r}")
    importlib.import_module("timm.layers").set_fused_attn(False)
    try:
        model = timm.create_model(name, pretrained=False, exportable=True, **arguments)
    except Exception as error:
        raise NotConvertible(f"timm cannot build {name}: {graphs.first_line(error)}") from error
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise NotConvertible(f"{folder} has {len(files)} safetensors files; a timm model is one")
    try:
        model.load_state_dict(graphs.fold(graphs.read_weights(files[0])))
    except RuntimeError as error:
        raise NotConvertible(
            f"{files[0].name} does not fit {name}: {' '.join(str(error).split())[:600]}"
        ) from error
    return model.eval()


def package(name: str) -> Any:
    """An installed package. Raises NotConvertible."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise NotConvertible(
            f"this Python ({sys.executable}) has no {error.name}, and this folder needs it:\n"
            f"  {sys.executable} -m pip install {name}\n"
            "or name a Python that has it: secateur convert --python PATH ..."
        ) from error


def convert(folder: Path, out: Path, given: Sequence[str]) -> list[str]:
    """Converts one classifier; says what came of it.

    Raises: NotConvertible.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise NotConvertible(f"{out} is there already; name a new folder")
    config = read_json(folder / "config.json")
    timm = isinstance(config.get("architecture"), str)
    if timm:
        how = settings.of_timm(config.get("pretrained_cfg") or {})
    else:
        how = settings.of_processor(read_json(folder / "preprocessor_config.json"))
    try:
        inputs = [graphs.Input.parse(text) for text in given] or [_input(config, how)]
        if len(inputs) != 1 or len(inputs[0].shape) != 4:
            raise NotConvertible(f"a classifier of images has one input: --input {PIXELS}:1x3x224x224")
        model = of_timm(folder, config) if timm else of_transformers(folder, config)
        out.mkdir(parents=True, exist_ok=True)
        graphs.write(graphs.export(model, inputs), out / FILE)
    except RecursionError as error:
        raise NotConvertible("the network is nested too deeply to be exported") from error
    labels = settings.labels(config)
    if labels:
        write_json(out / "config.json", {"id2label": labels})
    if how:
        write_json(out / "preprocessor_config.json", how)
    examples = [tuple(each.example(rows) for each in inputs) for rows in graphs.BATCHES]
    told = [graphs.compare(out / FILE, model, examples)]
    if not how:
        told.append(
            "Nothing that is known here says how images become its input: jobs with data must write "
            "preprocessing."
        )
    return told


def _input(config: Mapping[str, Any], how: Mapping[str, Any]) -> Any:
    """The input as the settings say it. Raises NotConvertible."""
    made, side = settings.output(how), config.get("image_size")
    if made is not None:
        height, width = made
    elif isinstance(side, int):
        height = width = side
    elif isinstance(side, list) and len(side) == 2:
        height, width = side
    else:
        raise NotConvertible(
            f"neither preprocessor_config.json nor config.json says how large images are: write --input "
            f"{PIXELS}:1x3x224x224"
        )
    channels = config.get("num_channels", 3)
    shape = config.get("pretrained_cfg", {}).get("input_size")
    channels = shape[0] if isinstance(shape, list) and len(shape) == 3 else channels
    return graphs.Input(PIXELS, (1, channels, height, width), "float32")


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a JSON object."""
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0 converted, 1 this Python lacks a package, 2 the source cannot be converted."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--input", action="append", default=[])
    options = parser.parse_args(arguments)
    try:
        for name in ("torch", "onnx", "onnxscript", "safetensors.torch"):
            importlib.import_module(name)
    except ImportError as error:
        say(
            f"error: this Python ({sys.executable}) has no {error.name}, and converting needs it:\n"
            f"  {sys.executable} -m pip install torch onnx onnxscript onnxruntime safetensors\n"
            "or name a Python that has them: secateur convert --python PATH ...",
            sys.stderr,
        )
        return 1
    warnings.simplefilter("ignore")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        for line in convert(options.folder, options.out, options.input):
            say(line)
    except (NotConvertible, OSError) as error:
        say(f"error: {error}", sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
