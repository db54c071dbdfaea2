"""The messages of an ONNX file, as far as a graph without subgraphs is made of them.

Documentation and metadata are passed over unread. Numbers and types are those of
https://github.com/onnx/onnx/blob/main/onnx/onnx.proto (IR version 13).
"""

from __future__ import annotations

from compression.loading.onnx.wire import Field, Kind, Schema

_INT, _FLOAT, _TEXT, _BYTES, _SPAN = Kind.INT, Kind.FLOAT, Kind.TEXT, Kind.BYTES, Kind.SPAN

MODEL: Schema = {
    1: Field("ir_version", _INT),
    2: Field("producer_name", _TEXT),
    3: Field("producer_version", _TEXT),
    4: Field("domain", _TEXT),
    5: Field("model_version", _INT),
    6: Field("doc_string", _SPAN),
    7: Field("graph", _SPAN),
    8: Field("opset_import", _SPAN, True),
    14: Field("metadata_props", _SPAN, True),
    20: Field("training_info", _SPAN, True),
    25: Field("functions", _SPAN, True),
    26: Field("configuration", _SPAN, True),
}
OPERATOR_SET: Schema = {1: Field("domain", _TEXT), 2: Field("version", _INT)}
ENTRY: Schema = {1: Field("key", _TEXT), 2: Field("value", _TEXT)}
GRAPH: Schema = {
    1: Field("node", _SPAN, True),
    2: Field("name", _TEXT),
    5: Field("initializer", _SPAN, True),
    10: Field("doc_string", _SPAN),
    11: Field("input", _SPAN, True),
    12: Field("output", _SPAN, True),
    13: Field("value_info", _SPAN, True),
    14: Field("quantization_annotation", _SPAN, True),
    15: Field("sparse_initializer", _SPAN, True),
    16: Field("metadata_props", _SPAN, True),
}
NODE: Schema = {
    1: Field("input", _TEXT, True),
    2: Field("output", _TEXT, True),
    3: Field("name", _TEXT),
    4: Field("op_type", _TEXT),
    5: Field("attribute", _SPAN, True),
    6: Field("doc_string", _SPAN),
    7: Field("domain", _TEXT),
    8: Field("overload", _TEXT),
    9: Field("metadata_props", _SPAN, True),
    10: Field("device_configurations", _SPAN, True),
}
ATTRIBUTE: Schema = {
    1: Field("name", _TEXT),
    2: Field("f", _FLOAT),
    3: Field("i", _INT),
    4: Field("s", _BYTES),
    5: Field("t", _SPAN),
    6: Field("g", _SPAN),
    7: Field("floats", _FLOAT, True),
    8: Field("ints", _INT, True),
    9: Field("strings", _BYTES, True),
    10: Field("tensors", _SPAN, True),
    11: Field("graphs", _SPAN, True),
    13: Field("doc_string", _SPAN),
    14: Field("tp", _SPAN),
    15: Field("type_protos", _SPAN, True),
    20: Field("type", _INT),
    21: Field("ref_attr_name", _TEXT),
    22: Field("sparse_tensor", _SPAN),
    23: Field("sparse_tensors", _SPAN, True),
}
TENSOR: Schema = {
    1: Field("dims", _INT, True),
    2: Field("data_type", _INT),
    3: Field("segment", _SPAN),
    4: Field("float_data", _SPAN),
    5: Field("int32_data", _SPAN),
    6: Field("string_data", _SPAN, True),
    7: Field("int64_data", _SPAN),
    8: Field("name", _TEXT),
    9: Field("raw_data", _SPAN),
    10: Field("double_data", _SPAN),
    11: Field("uint64_data", _SPAN),
    12: Field("doc_string", _SPAN),
    13: Field("external_data", _SPAN, True),
    14: Field("data_location", _INT),
    16: Field("metadata_props", _SPAN, True),
}
VALUE: Schema = {
    1: Field("name", _TEXT),
    2: Field("type", _SPAN),
    3: Field("doc_string", _SPAN),
    4: Field("metadata_props", _SPAN, True),
}
TYPE: Schema = {
    1: Field("tensor_type", _SPAN),
    4: Field("sequence_type", _SPAN),
    5: Field("map_type", _SPAN),
    6: Field("denotation", _TEXT),
    7: Field("opaque_type", _SPAN),
    8: Field("sparse_tensor_type", _SPAN),
    9: Field("optional_type", _SPAN),
}
TENSOR_TYPE: Schema = {1: Field("elem_type", _INT), 2: Field("shape", _SPAN)}
SHAPE: Schema = {1: Field("dim", _SPAN, True)}
DIMENSION: Schema = {
    1: Field("dim_value", _INT),
    2: Field("dim_param", _TEXT),
    3: Field("denotation", _TEXT),
}
