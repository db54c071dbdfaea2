"""Turns pickled PyTorch weights into a safetensors folder, on the owner's own machine, never in the service;
safetensors, too, where torch.nn.utils.prune left masks beside weights, which are multiplied in.

    python convert.py SOURCE DESTINATION

SOURCE is a folder with pytorch_model.bin (or its shards) or one .bin/.pt/.pth/.safetensors file; DESTINATION
is a new or empty folder. Only plain tensors are read (`weights_only`): a pickle that wants to run code is
refused. Tensors that share memory are written once where the configuration ties them, else as copies. Needs
torch and safetensors and nothing else, so any Python that has them can run this file.
"""

from __future__ import annotations

import importlib
import json
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

SHARD_BYTES = 5_000_000_000
PICKLES = ("pytorch_model.bin", "pytorch_model-*-of-*.bin", "*.bin", "*.pt", "*.pth", "*.ckpt")
NOT_WEIGHTS = re.compile(r"^(training_args|optimizer|scheduler|rng_state|scaler)")
KEPT = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template.*",
    "preprocessor_config.json",
)
WRAPPERS = ("state_dict", "model_state_dict", "model")
BUFFERS = ("position_ids", "rotary_emb.inv_freq", "attn.bias", "attn.masked_bias")
FLOATING = {"float32", "bfloat16", "float16"}


def say(text: str | None, stream: TextIO = sys.stdout) -> None:
    """Tell the user something."""
    stream.write(f"{text}\n")


class NotConvertible(Exception):
    """The source cannot be converted; the text says why."""


def sources(place: Path) -> list[Path]:
    """The pickled files to read, in the order of their names.

    Raises: NotConvertible.
    """
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise NotConvertible(f"there is no file or folder {place}")
    for pattern in PICKLES:
        found = sorted(
            path for path in place.glob(pattern) if path.is_file() and not NOT_WEIGHTS.match(path.name)
        )
        if found:
            return found
    stored = sorted(place.glob("*.safetensors"))
    if any(name.endswith("_orig") for path in stored for name in names_of(path)):
        return stored
    if stored:
        raise NotConvertible(f"{place} has safetensors already; it can be uploaded as it is")
    raise NotConvertible(f"{place} has no *.bin, *.pt or *.pth file")


def names_of(path: Path) -> list[str]:
    """The names of the tensors of a safetensors file, from its header alone.

    Raises: NotConvertible.
    """
    try:
        with path.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    except (OSError, ValueError, MemoryError, OverflowError) as error:
        raise NotConvertible(f"{path.name} is no safetensors file") from error
    return [name for name in header if name != "__metadata__"]


def read(path: Path) -> dict[str, Any]:
    """The tensors of one file by name, on the CPU; nothing of a pickled file is executed.

    Raises: NotConvertible.
    """
    import pickle

    import torch

    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return dict(load_file(path))
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise NotConvertible(f"{path.name} is not a file of plain tensors: {first}") from error
    for _ in range(2):
        inner = next((data[key] for key in WRAPPERS if isinstance(data, Mapping) and key in data), None)
        if isinstance(inner, Mapping):
            data = inner
    if not isinstance(data, Mapping):
        raise NotConvertible(f"{path.name} holds a {type(data).__name__}, not tensors by name")
    tensors = {str(name): value for name, value in data.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise NotConvertible(f"{path.name} holds no tensors")
    return tensors


def usual_name(name: str) -> str:
    """The name that today's checkpoints use: no wrapper in front, no gamma and beta."""
    name = re.sub(r"^(module\.|_orig_mod\.)+", "", name)
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
    return re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)


def folded(tensors: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Weights with what torch.nn.utils.prune leaves (`x_orig` and its `x_mask`, in any order and in any
    file) as `x`, their product.

    Raises: NotConvertible where one of the two is missing.
    """
    halves: dict[str, dict[str, Any]] = {}
    for name, tensor in tensors:
        stem, _, ending = name.rpartition("_")
        if ending not in ("orig", "mask") or not stem:
            yield name, tensor
            continue
        pair = halves.setdefault(stem, {})
        pair[ending] = tensor
        if len(pair) == 2:
            del halves[stem]
            say(f"{stem}: the mask that torch.nn.utils.prune left is folded")
            yield stem, pair["orig"] * pair["mask"].to(pair["orig"].dtype)
    for stem, pair in halves.items():
        if "orig" in pair:
            raise NotConvertible(f"the weights hold {stem}_orig, but no {stem}_mask")
        yield f"{stem}_mask", pair["mask"]


def weights(paths: list[Path], tied: bool) -> Iterator[tuple[str, Any]]:
    """Every weight once, contiguous, float32, bfloat16 or float16; `folded`.

    Raises: NotConvertible.
    """
    import torch

    seen: set[str] = set()
    for path in paths:
        memory: dict[tuple[int, tuple[int, ...], tuple[int, ...]], str] = {}
        # Embeddings first: of tied tensors theirs is the name that loaders look for.
        tensors = sorted(read(path).items(), key=lambda item: "embed" not in item[0])
        for stored, tensor in tensors:
            name = usual_name(stored)
            if name.endswith(BUFFERS):
                continue
            if name in seen:
                raise NotConvertible(f"{name} is in {path.name} and in a file before it")
            seen.add(name)
            place = (tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()))
            if tied and tensor.numel() and place in memory:
                say(f"{name} is tied to {memory[place]}; written once")
                continue
            memory[place] = name
            if tensor.dtype == torch.float64:
                say(f"{name}: float64 becomes float32")
                tensor = tensor.float()
            if str(tensor.dtype).removeprefix("torch.") not in FLOATING:
                raise NotConvertible(
                    f"{name} has type {tensor.dtype}; weights are float32, bfloat16 or float16"
                )
            yield name, tensor.detach().clone(memory_format=torch.contiguous_format)


def write(tensors: Iterator[tuple[str, Any]], folder: Path) -> int:
    """Write shards of at most 5 GB and, of several, their index. Returns the number of tensors."""
    from safetensors.torch import save_file

    shards: list[list[str]] = []
    batch: dict[str, Any] = {}
    size = total = 0

    def flush() -> None:
        nonlocal batch, size
        if batch:
            save_file(batch, str(folder / f"shard-{len(shards):05}.safetensors"), metadata={"format": "pt"})
            shards.append(list(batch))
        batch, size = {}, 0

    for name, tensor in tensors:
        length = tensor.numel() * tensor.element_size()
        if size + length > SHARD_BYTES:
            flush()
        batch[name] = tensor
        size += length
        total += length
    flush()
    if len(shards) == 1:
        (folder / "shard-00000.safetensors").rename(folder / "model.safetensors")
        return len(shards[0])
    weight_map = {}
    for number, names in enumerate(shards):
        final = f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
        (folder / f"shard-{number:05}.safetensors").rename(folder / final)
        weight_map.update(dict.fromkeys(names, final))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return len(weight_map)


def convert(source: Path, destination: Path) -> int:
    """Convert one model and return the number of tensors written.

    Raises: NotConvertible; the destination is then left as it was.
    """
    paths = sources(source)
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise NotConvertible(f"{destination} is there already; name a new folder")
    home = source if source.is_dir() else source.parent
    try:
        config = json.loads((home / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        config = {}
        say("There is no config.json beside the weights; the service will want one.", sys.stderr)
    except ValueError as error:
        raise NotConvertible(f"config.json is not JSON: {error}") from error
    work = destination.with_name(f".{destination.name}.converting")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        count = write(folded(weights(paths, bool(config.get("tie_word_embeddings", True)))), work)
        for pattern in KEPT:
            for path in home.glob(pattern):
                if path.is_file():
                    shutil.copyfile(path, work / path.name)
        if destination.exists():
            destination.rmdir()
        work.rename(destination)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return count


def main(arguments: list[str]) -> int:
    """Exit status: 0 converted, 1 this Python lacks a package, 2 the source cannot be converted."""
    if len(arguments) != 2:
        say(__doc__, sys.stderr)
        return 2
    try:
        for package in ("torch", "safetensors.torch"):
            importlib.import_module(package)
    except ImportError as error:
        say(
            f"error: this Python ({sys.executable}) has no {error.name}, and converting needs it:\n"
            f"  {sys.executable} -m pip install torch safetensors\n"
            "or name a Python that has both: secateur convert --python PATH ...",
            sys.stderr,
        )
        return 1
    try:
        count = convert(Path(arguments[0]), Path(arguments[1]))
    except (NotConvertible, OSError) as error:
        say(f"error: {error}", sys.stderr)
        return 2
    say(f"{arguments[1]}: {count} tensors as safetensors")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
