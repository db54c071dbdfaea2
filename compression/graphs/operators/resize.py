"""Resizing of the spatial axes: nearest, linear and cubic."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from compression.graphs.graph import Node
from compression.graphs.operators.table import Circumstances, Inputs, operator, refuse

MODES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric")


@operator("Resize")
def resize(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    """Axis by axis, each as a matrix that takes the old places to the new ones (the operator is
    separable)."""
    rank = x[0].ndim
    listed = node.integers("axes")
    axes = list(range(rank)) if listed is None else [axis % rank for axis in listed]
    scales, sizes = x.optional(2), x.integers(3)
    if node.integer("antialias", 0) or node.text("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise refuse(node, "antialiasing or a policy of the aspect ratio")
    made = x[0]
    for place, axis in enumerate(axes):
        before = x[0].shape[axis]
        if scales is not None and scales.numel():
            scale = float(scales[place])
            after = math.floor(before * scale)
        else:
            after = (sizes or [])[place]
            scale = after / before
        if after != before or scale != 1:
            matrix = _matrix(node, before, after, scale).to(made.device, made.dtype)
            made = torch.movedim(torch.movedim(made, axis, -1) @ matrix.T, -1, axis)
    return made


def _places(node: Node, before: int, after: int, scale: float) -> Tensor:
    """Where each new place lies among the old ones; float64 [after]."""
    mode = node.text("coordinate_transformation_mode", "half_pixel")
    new = torch.arange(after, dtype=torch.float64)
    if mode not in MODES:
        raise refuse(node, f"coordinate_transformation_mode {mode!r}")
    if mode == "align_corners":
        return new * (before - 1) / (after - 1) if after > 1 else torch.zeros_like(new)
    if mode == "asymmetric":
        return new / scale
    if mode == "pytorch_half_pixel" and after == 1:
        return torch.zeros_like(new)
    places = (new + 0.5) / scale - 0.5
    if mode == "half_pixel_symmetric":
        places = places + before / 2 * (1 - after / (scale * before))
    return places


def _matrix(node: Node, before: int, after: int, scale: float) -> Tensor:
    """The weights of the old places for every new one; float64 [after, before]."""
    places, mode = _places(node, before, after, scale), node.text("mode", "nearest")
    if mode == "nearest":
        return torch.eye(before, dtype=torch.float64)[
            _nearest(node, places).clamp(0, before - 1).to(torch.int64)
        ]
    if mode not in {"linear", "cubic"}:
        raise refuse(node, f"mode {mode!r}")
    low = torch.floor(places)
    part = places - low
    a = node.number("cubic_coeff_a", -0.75)
    offsets = (0, 1) if mode == "linear" else (-1, 0, 1, 2)
    matrix = torch.zeros(after, before, dtype=torch.float64)
    for offset in offsets:
        distance = (part - offset).abs()
        weight = 1 - distance if mode == "linear" else _cubic(distance, a)
        index = low + offset
        if node.integer("exclude_outside", 0):
            weight = torch.where((index >= 0) & (index < before), weight, 0.0)
        matrix.scatter_add_(1, index.clamp(0, before - 1).to(torch.int64)[:, None], weight[:, None])
    return matrix / matrix.sum(1, keepdim=True) if node.integer("exclude_outside", 0) else matrix


def _nearest(node: Node, places: Tensor) -> Tensor:
    mode = node.text("nearest_mode", "round_prefer_floor")
    if mode == "floor":
        return torch.floor(places)
    if mode == "ceil":
        return torch.ceil(places)
    return torch.ceil(places - 0.5) if mode == "round_prefer_floor" else torch.floor(places + 0.5)


def _cubic(distance: Tensor, a: float) -> Tensor:
    """Keys' kernel."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, torch.zeros_like(far)))
