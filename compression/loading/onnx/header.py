"""Reads what an ONNX file says of itself: versions, operator sets, who wrote it, and where its graph lies."""

from __future__ import annotations

from typing import Any

from compression.loading.onnx.parts import Header, Place, Unsupported, checked_name, shown
from compression.loading.onnx.schema import MODEL, OPERATOR_SET
from compression.loading.onnx.wire import Malformed, Reader, Span

OPSETS = (13, 22)
"""Oldest and newest version of the default operator set that is taken in."""
IR_VERSIONS = (3, 13)
"""Of the format; ONNX Runtime 1.31 reads none newer."""
MAXIMUM_DOMAINS = 64

_PARTS = {
    "training_info": ("it carries training graphs", "export it for inference, without training information"),
    "functions": (
        "it defines functions of its own",
        "replace them by what they hold with onnx.inliner.inline_local_functions(model)",
    ),
    "configuration": ("it is laid out for several devices", "export it for one device"),
}
_STARTS = {
    b"<": "this is an HTML or XML page",
    b"version https://git-lfs": "this is a pointer of Git LFS, not the file: run `git lfs pull`",
    b"{": "this is JSON text",
}


def read_header(reader: Reader, file: str) -> tuple[Header, Span]:
    """The header of a file, and the place of its graph. Raises OnnxInvalid, OnnxUnsupported."""
    with Place(file):
        if not reader.whole.length:
            raise Malformed("the file is empty", "upload it again")
        head = reader.take(Span(0, min(32, reader.whole.length)), 32)
        for start, what in _STARTS.items():
            if head.startswith(start):
                raise Malformed(what, "upload the model itself")
        try:
            found = reader.message(reader.whole, MODEL)
        except Malformed as error:
            raise Malformed(f"no ONNX model: {error}", error.advice) from None
        if "graph" not in found or "ir_version" not in found:
            raise Malformed("no ONNX model: it holds no graph with a version")
        for part, (what, advice) in _PARTS.items():
            if part in found:
                raise Unsupported(what, advice)
        version = found["ir_version"]
        if not IR_VERSIONS[0] <= version <= IR_VERSIONS[1]:
            raise Unsupported(
                f"its ir_version is {version}; taken in are {IR_VERSIONS[0]} to {IR_VERSIONS[1]}",
                "set model.ir_version = 10 before onnx.save(model, ...)",
            )
        opsets = _opsets(reader, found.get("opset_import", []))
        producer = f"{found.get('producer_name', '')} {found.get('producer_version', '')}".strip()
        return Header(version, opsets, _plain(producer)), found["graph"]


def _opsets(reader: Reader, spans: list[Span]) -> dict[str, int]:
    if len(spans) > MAXIMUM_DOMAINS:
        raise Malformed(f"it imports {len(spans):,} operator sets, more than the {MAXIMUM_DOMAINS} allowed")
    opsets: dict[str, int] = {}
    for span in spans:
        message: dict[str, Any] = reader.message(span, OPERATOR_SET)
        domain = domain_of(message)
        if domain in opsets:
            raise Malformed(f"it imports the operator set {shown(domain or 'ai.onnx')} twice")
        opsets[domain] = message.get("version", 0)
    oldest, newest = OPSETS
    version = opsets.get("")
    if version is None:
        raise Malformed("it imports no version of the operator set of ONNX itself")
    if not oldest <= version <= newest:
        raise Unsupported(
            f"its operator set is version {version}; taken in are {oldest} to {newest}",
            "export it with opset_version=18, or convert it with "
            "onnx.version_converter.convert_version(model, 18)",
        )
    return opsets


def domain_of(message: dict[str, Any]) -> str:
    """The domain that a message names: the default one, which has two names, as "". Raises Malformed."""
    domain: str = message.get("domain", "")
    return "" if domain == "ai.onnx" else checked_name(domain)


def _plain(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text[:120])
