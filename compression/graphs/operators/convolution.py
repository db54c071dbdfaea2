"""Convolution and pooling over 1 to 3 spatial axes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from compression.graphs.errors import GraphInvalid
from compression.graphs.graph import Node
from compression.graphs.operators.table import Circumstances, Inputs, operator, refuse

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def window(
    node: Node, sizes: Sequence[int], kernel: Sequence[int]
) -> tuple[list[int], list[int], list[int], list[int]]:
    """(strides, dilations, padding before, padding after) over the spatial axes of these sizes."""
    rank = len(sizes)
    if rank not in _CONV:
        raise refuse(node, f"{rank} spatial axes")
    strides = list(node.integers("strides") or (1,) * rank)
    dilations = list(node.integers("dilations") or (1,) * rank)
    pads = list(node.integers("pads") or (0,) * (2 * rank))
    mode = node.text("auto_pad", "NOTSET")
    if mode in {"SAME_UPPER", "SAME_LOWER"}:
        before, after = [], []
        for size, width, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
            total = max((math.ceil(size / stride) - 1) * stride + (width - 1) * dilation + 1 - size, 0)
            less, more = total // 2, total - total // 2
            before.append(less if mode == "SAME_UPPER" else more)
            after.append(more if mode == "SAME_UPPER" else less)
        return strides, dilations, before, after
    if mode == "VALID":
        pads = [0] * (2 * rank)
    if len(pads) != 2 * rank or len(strides) != rank or len(dilations) != rank:
        raise GraphInvalid(f"{node.label}: pads, strides or dilations do not fit {rank} spatial axes")
    return strides, dilations, pads[:rank], pads[rank:]


def padded(x: Tensor, before: Sequence[int], after: Sequence[int], value: float) -> Tensor:
    """`x` with so much put before and after its last axes."""
    pairs = [amount for pair in reversed(list(zip(before, after, strict=True))) for amount in pair]
    return F.pad(x, pairs, value=value) if any(pairs) else x


@operator("Conv")
def conv(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    weight = x[1]
    strides, dilations, before, after = window(node, x[0].shape[2:], weight.shape[2:])
    data, padding = (
        (x[0], before) if before == after else (padded(x[0], before, after, 0.0), [0] * len(before))
    )
    group = node.integer("group", 1)
    return _CONV[len(strides)](data, weight, x.optional(2), strides, padding, dilations, group)


@operator("ConvTranspose")
def conv_transpose(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    if node.text("auto_pad", "NOTSET") not in {"NOTSET", "VALID"} or node.integers("output_shape"):
        raise refuse(node, "padding by a mode or by the shape of the output")
    weight = x[1]
    strides, dilations, before, after = window(node, x[0].shape[2:], weight.shape[2:])
    rank = len(strides)
    extra = list(node.integers("output_padding") or (0,) * rank)
    group = node.integer("group", 1)
    made = _TRANSPOSED[rank](x[0], weight, None, strides, 0, 0, group, dilations)
    made = padded(made, [0] * rank, extra, 0.0)
    bias = x.optional(2)
    if bias is not None:
        made = made + bias.reshape(1, -1, *[1] * rank)
    # torch cuts as much off both ends; here they may differ
    for axis, (less, more) in enumerate(zip(before, after, strict=True), start=2):
        made = made.narrow(axis, less, made.shape[axis] - less - more)
    return made


def _ceil_padding(
    node: Node, x: Tensor, kernel: Sequence[int]
) -> tuple[list[int], list[int], list[int], list[int], list[int]]:
    """The window of a pooling, and by how much more the end is padded where sizes are rounded up."""
    strides, dilations, before, after = window(node, x.shape[2:], kernel)
    more = [0] * len(strides)
    if node.integer("ceil_mode", 0):
        for place, size in enumerate(x.shape[2:]):
            span = dilations[place] * (kernel[place] - 1) + 1
            total = size + before[place] + after[place] - span
            steps = -(-total // strides[place])
            if steps * strides[place] >= size + before[place]:
                steps -= 1  # no window starts in the padding behind the data
            more[place] = max(steps * strides[place] - total, 0)
    return strides, dilations, before, after, more


@operator("MaxPool")
def max_pool(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    kernel = list(node.integers("kernel_shape") or ())
    if len(node.outputs) > 1 and node.outputs[1]:
        raise refuse(node, "the output of indices")
    strides, dilations, before, after, more = _ceil_padding(node, x[0], kernel)
    after = [one + other for one, other in zip(after, more, strict=True)]
    least = -math.inf if x[0].is_floating_point() else torch.iinfo(x[0].dtype).min
    made = _MAX[len(strides)](padded(x[0], before, after, least), kernel, strides, 0, dilations)
    assert isinstance(made, Tensor)
    return made


@operator("AveragePool", "LpPool")
def average_pool(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    kernel = list(node.integers("kernel_shape") or ())
    strides, dilations, before, after, more = _ceil_padding(node, x[0], kernel)
    rank, channels = len(kernel), x[0].shape[1]
    order = node.integer("p", 2) if node.operator == "LpPool" else 1
    data = x[0] if node.operator == "AveragePool" else x[0].abs() ** order
    ones = torch.ones(kernel, dtype=data.dtype, device=data.device).reshape(1, 1, *kernel)
    end = [one + other for one, other in zip(after, more, strict=True)]
    flat = padded(data, before, end, 0.0)
    flat = flat.reshape(-1, 1, *flat.shape[2:])
    total = _CONV[rank](flat, ones, None, strides, 0, dilations)
    total = total.reshape(-1, channels, *total.shape[2:])
    if node.operator == "LpPool":
        return total ** (1 / order)
    counted = torch.ones_like(data[:1, :1])
    if node.integer("count_include_pad", 0):
        counted = padded(padded(counted, before, after, 1.0), [0] * rank, more, 0.0)
    else:
        counted = padded(counted, before, end, 0.0)
    return total / _CONV[rank](counted, ones, None, strides, 0, dilations)


@operator("GlobalAveragePool")
def global_average_pool(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    return x[0].mean(dim=list(range(2, x[0].ndim)), keepdim=True)


@operator("GlobalMaxPool")
def global_max_pool(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    return x[0].amax(dim=list(range(2, x[0].ndim)), keepdim=True)


@operator("Col2Im")
def col2im(node: Node, x: Inputs, _: Circumstances) -> Tensor:
    sizes, block = x.integers(1) or [], x.integers(2) or []
    if len(sizes) != 2:
        raise refuse(node, f"{len(sizes)} spatial axes")
    strides, dilations, before, after = window(node, sizes, block)
    whole = [size + low + high for size, low, high in zip(sizes, before, after, strict=True)]
    pairs = [(one[0], one[1]) for one in (whole, block, dilations, strides)]
    made = F.fold(x[0], pairs[0], pairs[1], pairs[2], 0, pairs[3])
    return made[:, :, before[0] : before[0] + sizes[0], before[1] : before[1] + sizes[1]]
