"""Which runtimes load an artifact and which of them it speeds up. Free of torch.

What was not run in the job is said from the runtimes' own documents and is marked ``checked: false``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compression.anatomy.graph import CHANNEL
from compression.anatomy.hidden_width import HIDDEN
from compression.anatomy.structures import GRANULARITIES as STRUCTURES
from compression.anatomy.varied import RANK
from compression.anatomy.vocabulary import VOCABULARY
from compression.specification import n_m


def runtimes(
    task: str,
    granularity: str,
    versions: Mapping[str, str],
    *,
    verified: bool,
    latency_ratio: float | None,
    gguf: bool = False,
    layout: str | None = None,
    graph: bool = False,
) -> list[dict[str, Any]]:
    """One entry a runtime: ``name``, ``version``, ``loads``, ``faster``, ``checked``, ``note``.

    ``faster`` is yes, no or depends: than the dense model in the same runtime. ``gguf``: whether the
    artifact has a GGUF file; ``layout`` how layers with widths of their own, low-rank weights and weights on
    skip connections are written (None: there are none); ``graph`` whether the model is a file of ONNX.
    """
    if granularity == CHANNEL:
        return _graph_runtimes(versions, verified, latency_ratio)
    if graph:
        return _sparse_graph_runtimes(versions, granularity, verified, latency_ratio)
    layers = granularity == "layer" or granularity in STRUCTURES
    rows = granularity == VOCABULARY
    measured = "" if latency_ratio is None else f" Measured here: {latency_ratio:.2f} times the dense time."
    if granularity == "expert":
        note = "A token takes as many experts as before: less memory, about the same speed." + measured
    elif layers:
        what = "Fewer layers" if granularity == "layer" else "Smaller matrices"
        note = f"{what} are computed, so every runtime is faster." + measured
    elif rows:
        note = (
            "Layers compute as before; look-up and head are smaller. The folder's own tokenizer is needed."
            + measured
        )
    else:
        note = "Zeros are multiplied like any other number." + measured
    if granularity == RANK or (layout == "packaged" and granularity in _CODED):
        return _coded_runtimes(versions.get("transformers", ""), granularity, measured, checked=verified)
    if layout == "packaged":
        return _packaged_runtimes(versions.get("transformers", ""), measured, checked=verified, gguf=gguf)
    if layout == "padded":
        note = "Layers are as wide as the widest; zeros up to that are multiplied." + measured
    faster = "yes" if layers else "no"
    if granularity == "expert" or layout == "padded" or rows:
        faster = "depends"
    found = [
        _entry("transformers", versions.get("transformers", ""), "yes", faster, note, checked=verified),
        *_of_task(task, faster, gguf),
        _entry(
            "ONNX Runtime",
            "1.x",
            "after export",
            faster,
            "The exported graph is dense: sparse initialisers would be expanded when it is loaded.",
        ),
    ]
    pattern = n_m(granularity)
    if pattern is not None:
        found.append(_semi_structured(pattern))
    return found


def _graph_runtimes(
    versions: Mapping[str, str], verified: bool, latency_ratio: float | None
) -> list[dict[str, Any]]:
    """Those of a network that is a file of ONNX."""
    measured = "" if latency_ratio is None else f" Measured here: {latency_ratio:.2f} times the dense time."
    less = "Fewer channels are computed; what that saves depends on shapes and device."
    return [
        _entry(
            "ONNX Runtime",
            versions.get("onnxruntime", ""),
            "yes",
            "depends",
            less + measured,
            checked=verified,
        ),
        _entry("OpenVINO", "current", "yes", "depends", "Reads ONNX files as they are. " + less),
        _entry(
            "TensorRT", "current", "after conversion", "depends", "Builds engines from ONNX files. " + less
        ),
    ]


def _sparse_graph_runtimes(
    versions: Mapping[str, str], granularity: str, verified: bool, latency_ratio: float | None
) -> list[dict[str, Any]]:
    """Those of a file of ONNX with zeros."""
    measured = "" if latency_ratio is None else f" Measured here: {latency_ratio:.2f} times the dense time."
    note = "Zeros are multiplied like any other number." + measured
    two_four = n_m(granularity) == (2, 4)
    sparse = (
        "Built with sparse weights enabled, 2:4 along the channels can be faster on NVIDIA GPUs with sparse "
        "tensor cores; measure first."
        if two_four
        else "Its sparse kernels know the pattern 2:4 alone."
    )
    return [
        _entry("ONNX Runtime", versions.get("onnxruntime", ""), "yes", "no", note, checked=verified),
        _entry("OpenVINO", "current", "yes", "no", "Reads ONNX files as they are; zeros are multiplied."),
        _entry("TensorRT", "current", "after conversion", "depends" if two_four else "no", sparse),
    ]


def _entry(
    name: str, version: str, loads: str, faster: str, note: str, *, checked: bool = False
) -> dict[str, Any]:
    return {
        "name": name,
        "version": version,
        "loads": loads,
        "faster": faster,
        "checked": checked,
        "note": note,
    }


def _packaged_runtimes(version: str, measured: str, *, checked: bool, gguf: bool) -> list[dict[str, Any]]:
    code = "trust_remote_code=True runs modeling_secateur.py of the artifact, which builds stock layers."
    other = "Its models have one width for all layers. Choose output.layout padded, or allocation uniform."
    return [
        _entry(
            "transformers", version, "with the code in the artifact", "yes", code + measured, checked=checked
        ),
        *(_entry(name, "current", "no", "no", other) for name in ("vLLM", "Text Generation Inference")),
        _entry("llama.cpp", "current", "yes", "yes", "model.gguf says the widths of every layer (deci).")
        if gguf
        else _entry(
            "llama.cpp", "current", "no", "no", "Ask for the format gguf, where the model offers it."
        ),
    ]


_CODED = {
    RANK: (
        "two linear maps",
        "Its models have one weight where this one has two. Multiplied out, it is as large as before.",
    ),
    HIDDEN: (
        "a linear map on each skip connection",
        "Its models have no weights on skip connections. Choose options.rotation shared.",
    ),
}
"""Of granularities that packaged code alone loads: what it adds to stock layers, and why others do not."""


def _coded_runtimes(version: str, granularity: str, measured: str, *, checked: bool) -> list[dict[str, Any]]:
    adds, other = _CODED[granularity]
    code = f"trust_remote_code=True runs modeling_secateur.py of the artifact: stock layers, {adds}."
    return [
        _entry(
            "transformers", version, "with the code in the artifact", "yes", code + measured, checked=checked
        ),
        *(
            _entry(name, "current", "no", "no", other)
            for name in ("vLLM", "Text Generation Inference", "llama.cpp")
        ),
    ]


def _of_task(task: str, faster: str, gguf: bool) -> list[dict[str, Any]]:
    if task == "text-generation":
        return _decoder_runtimes(faster, gguf)
    if task == "text2text-generation":
        return _both_runtimes(faster)
    # No runtime that serves texts takes images.
    return [] if task == "image-classification" else _encoder_runtimes(faster)


def _both_runtimes(faster: str) -> list[dict[str, Any]]:
    """Those of encoders with a decoder, of which no whole layer is removed."""
    return [
        _entry(
            "CTranslate2",
            "4.x",
            "after conversion",
            faster,
            "Convert with ct2-transformers-converter.",
        ),
        _entry(
            "llama.cpp",
            "current",
            "after conversion to GGUF",
            faster,
            "Convert with its own script; quantisation does not keep count of zeros.",
        ),
    ]


def _decoder_runtimes(faster: str, gguf: bool) -> list[dict[str, Any]]:
    loads, how = "after conversion to GGUF", "Convert with its own script"
    if gguf:
        loads, how = "yes", "model.gguf is in the artifact"
    zeros = "A plain checkpoint with an ordinary config.json."
    return [
        _entry(
            "vLLM",
            "0.19.1 and later",
            "yes",
            faster,
            zeros if faster != "no" else zeros + " Support for 2:4 weights was removed in 0.19.1.",
        ),
        _entry("Text Generation Inference", "3.x", "yes", faster, zeros),
        _entry(
            "llama.cpp",
            "current",
            loads,
            faster,
            f"{how}; quantisation does not keep count of zeros.",
        ),
    ]


def _encoder_runtimes(faster: str) -> list[dict[str, Any]]:
    return [
        _entry(
            "sentence-transformers",
            "6.x",
            "yes",
            faster,
            "The same folder, when the model is an encoder without a head.",
        ),
        _entry(
            "Text Embeddings Inference",
            "1.x",
            "yes",
            faster,
            "A plain checkpoint with an ordinary config.json.",
        ),
    ]


def _semi_structured(pattern: tuple[int, int]) -> dict[str, Any]:
    if pattern == (2, 4):
        return _entry(
            "torch semi-structured (CUDA)",
            "2.13",
            "after conversion",
            "depends",
            "torch.sparse.to_sparse_semi_structured takes 2:4 weights on NVIDIA GPUs with sparse tensor "
            "cores (Ampere and later). Users report no gain for small batches and on Hopper: measure first.",
        )
    return _entry(
        "sparse tensor cores",
        "",
        "no",
        "no",
        f"Hardware that skips zeros knows the pattern 2:4 and not {pattern[0]}:{pattern[1]}.",
    )
