"""A network given as a graph (ONNX), as far as its structure alone tells, in the terms of other models. No
torch.

What can be cut in it, and its multiply-accumulates, take its shapes, which only a job sees.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compression.anatomy.graph_sites import GraphSite
from compression.anatomy.inspection import Inspection

FAMILY = "graph"
CHANNEL = "channel"
FORMAT = "onnx"
BLOCK = 8
"""Channels that runtimes compute at once: 8 or 16 numbers of float32 fill a register."""


def read_inspection(data: Mapping[str, Any]) -> Inspection:
    """The inspection of a model of any format, from its JSON data."""
    return graph_inspection(data) if data.get("kind") == "graph" else Inspection.from_json(data)


def is_graph(inspection: Inspection) -> bool:
    """Whether a model is a graph."""
    return inspection.family == FAMILY


def graph_inspection(data: Mapping[str, Any]) -> Inspection:
    """The inspection of a graph (compression/loading/onnx/inspection.py) as that of a model without layers.
    `not_prunable` has the operators that the engine does not know; `sites` are matrices of single weights."""
    image, classes, labels = data.get("image"), data.get("classes"), data.get("labels")
    if labels is None and classes is not None:
        labels = [f"LABEL_{number}" for number in range(classes)]
    return Inspection(
        family=FAMILY,
        architecture="OnnxGraph",
        task=data["task"],
        layers=0,
        hidden=0,
        heads=0,
        key_value_heads=0,
        head_dim=0,
        ffn=0,
        vocabulary=0,
        context=1,
        tied_embeddings=False,
        has_tokenizer=False,
        labels=None if labels is None else tuple(labels),
        has_pooler=False,
        layer_prefix="",
        layer_parameters=0,
        sites=tuple(GraphSite.from_json(each) for each in data.get("sites", ())),
        prunable_parameters=data["parameters"],
        granularities=tuple(data["granularities"]),
        not_prunable=tuple(
            {"name": _named(each), "reason": str(each["reason"])} for each in data["unknown_operators"]
        ),
        image=None if image is None else (image[0], image[1], image[2]),
        preprocessing=data.get("preprocessing"),
        parameters=data["parameters"],
        bytes=data["bytes"],
        dtype=data["dtype"],
        formats=(FORMAT,),
        batch_norms=int(data.get("operators", {}).get("BatchNormalization", 0)),
    )


def _named(each: Mapping[str, Any]) -> str:
    """An operator with its nodes, in words."""
    domain = "" if each["domain"] == "ai.onnx" else f" of {each['domain']}"
    return f"{each['operator']}{domain} ({', '.join(each['nodes'])})"
