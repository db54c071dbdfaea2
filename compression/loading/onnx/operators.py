"""The operators of the default domain of ONNX that the engine knows by name.

A node with another operator, or with one of another domain, is listed in the inspection of a model and left
alone.
"""

from __future__ import annotations

CONTROL_FLOW = frozenset({"If", "Loop", "Scan", "SequenceMap"})
"""Operators that hold graphs of their own."""

KNOWN = frozenset({
    # Weights and what mixes channels.
    "Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul", "GRU", "LSTM", "RNN",
    # Norms.
    "BatchNormalization", "GroupNormalization", "InstanceNormalization", "LayerNormalization",
    "LpNormalization", "LRN", "MeanVarianceNormalization",
    # Pooling and sampling.
    "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool",
    "MaxPool", "Resize",
    # Activations.
    "Celu", "Clip", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "Hardmax", "LeakyRelu",
    "LogSoftmax", "Mish", "PRelu", "Relu", "Selu", "Shrink", "Sigmoid", "Softmax", "Softplus", "Softsign",
    "Tanh", "ThresholdedRelu",
    # Arithmetic, element by element.
    "Abs", "Acos", "Acosh", "Add", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Cosh", "Sinh", "Tan",
    "Cos", "Div", "Exp", "Floor", "Log", "Max", "Mean", "Min", "Mod", "Mul", "Neg",
    "Pow", "Reciprocal", "Round", "Sign", "Sin", "Sqrt", "Sub", "Sum",
    # Comparisons and choices.
    "And", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual", "Not", "Or",
    "Where", "Xor",
    # Reductions.
    "ArgMax", "ArgMin", "CumSum", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax",
    "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "TopK",
    # Shapes and places.
    "Cast", "CastLike", "Col2Im", "Concat", "Constant", "ConstantOfShape", "DepthToSpace",
    "Dropout", "Expand", "EyeLike", "Flatten", "Gather", "GatherElements", "GatherND", "Identity",
    "OneHot", "Pad", "Range", "Reshape", "ScatterElements", "ScatterND", "Shape", "Size",
    "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Trilu", "Unsqueeze",
})  # fmt: skip

KNOWN_OF_TABLES = frozenset({"ArrayFeatureExtractor", "LinearRegressor", "Normalizer", "Scaler"})
"""The same of the domain ai.onnx.ml, which scikit-learn's exporters use."""


def is_known(domain: str, operator: str) -> bool:
    """Whether the engine computes an operator; the default domain is ""."""
    return operator in {"": KNOWN, "ai.onnx.ml": KNOWN_OF_TABLES}.get(domain, ())
