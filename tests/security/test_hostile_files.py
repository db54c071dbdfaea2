"""Files with dangerous names or of kinds that are never taken in."""

from __future__ import annotations

import gzip
import time
from pathlib import Path

import pytest

from compression.errors import FileRefused, ModelRejected, PickleRefused
from compression.loading.admission import BytesSource, FileSource, admit_model, folder_sources
from compression.loading.file_kinds import MAXIMUM_FILES, check_path
from tests.security.hostile import llama_files, model_refused, refused

Files = dict[str, FileSource]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return llama_files(tmp_path_factory.mktemp("llama"))


NAMES = [
    "../config.json",
    "a/../../b.json",
    "..",
    ".",
    "./config2.json",
    "a/./b.json",
    "/etc/passwd",
    "//server/share.json",
    "C:\\windows\\x.json",
    "a\\b.json",
    "..\\b.json",
    "a//b.json",
    "a/",
    "",
    " ",
    "a b.json",
    " a.json",
    "a.json ",
    "a.json.",
    "a\x00.json",
    "a\n.json",
    "a\r\n.json",
    "a\t.json",
    "é.json",
    "аpp.json",
    "a\u202enosj.json",
    "a\u200b.json",
    "\ud800.json",
    "~/x.json",
    "-rf.json",
    ".ssh/authorized_keys.json",
    ".hidden.json",
    "a*.json",
    "a?.json",
    "a|b.json",
    "$(id).json",
    "`id`.json",
    "a;b.json",
    "<x>.json",
    "%2e%2e/x.json",
    "CON",
    "con.json",
    "nul.txt",
    "sub/LPT1.json",
    "x" * 129 + ".json",
    "a/" * 9 + "x.json",
    "/".join(["x" * 60] * 5) + ".json",
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_dangerous_names(name: str, llama: Files) -> None:
    model_refused(FileRefused, {**llama, name: BytesSource(b"{}")})


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "1_Pooling/config.json",
        "a/b/c/d.json",
        ".gitattributes",
        "LICENSE",
        "x" * 120 + ".json",
        "A-b_c.1.json",
    ],
)
def test_plain_names(name: str) -> None:
    check_path(name)


@pytest.mark.parametrize(
    "pair", [("readme.md", "README.md"), ("a/x.json", "A/x.json"), ("Config.json", "config.json")], ids=str
)
def test_names_that_differ_by_case(pair: tuple[str, str], llama: Files) -> None:
    files = {**llama, **{name: BytesSource(b"{}") for name in pair}}
    model_refused(FileRefused, files, "upper and lower case")


def test_a_file_that_is_also_a_folder(llama: Files) -> None:
    files = {**llama, "extra.json": BytesSource(b"{}"), "extra.json/x.json": BytesSource(b"{}")}
    model_refused(FileRefused, files, "both a file and a folder")


@pytest.mark.parametrize(
    "name",
    ["modeling_llama.py", "setup.PY", "lib.so", "x.pyc", "run.sh", "x.exe", "x.dll", "page.js", "x.whl"],
)
def test_code(name: str, llama: Files) -> None:
    model_refused(FileRefused, {**llama, name: BytesSource(b"import os")}, "code is never taken in")


@pytest.mark.parametrize(
    "name", ["x.bin", "x.PT", "x.pth", "x.ckpt", "x.pickle", "x.joblib", "x.npy", "x.npz", "x.h5", "x.keras"]
)
def test_formats_that_hide_code(name: str, llama: Files) -> None:
    model_refused(PickleRefused, {**llama, name: BytesSource(b"anything")}, "secateur convert")


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("x.onnx", b"\x08\x09", "either an ONNX file or a transformers folder"),
        ("x.pt2", b"x", "secateur convert"),
        ("x.gguf", b"x", "GGUF"),
        ("x.zip", b"x", "archives"),
        ("x.tar", b"x", "archives"),
        ("x.tar.gz", b"x", "archives"),
        ("x.unknown", b"x", "not a kind of file"),
        ("weights", b"x", "not a kind of file"),
        ("x.json", gzip.compress(b"{}", mtime=0), "gzip"),
        ("x.json", b"\x7fELF" + bytes(60), "a program"),
        ("x.txt", b"MZ" + bytes(60), "a program"),
        ("x.txt", b"\x89HDF\r\n\x1a\n", "HDF5"),
        ("x.txt", b"GGUF\x03", "GGUF"),
        ("x.txt", b"\x93NUMPY\x01", "NumPy"),
        ("x.txt", b"BZh91AY", "bzip2"),
        ("x.txt", b"\xfd7zXZ\x00", "xz"),
    ],
)
def test_other_kinds(name: str, data: bytes, words: str, llama: Files) -> None:
    model_refused(FileRefused, {**llama, name: BytesSource(data)}, words)


@pytest.mark.parametrize(
    "name", ["README.md", "vocab.txt", "merges.txt", "a/b.json", "LICENSE", "picture.png", "tokenizer.model"]
)
@pytest.mark.parametrize("data", [b"", b"text", "Grüße".encode(), b"\xff\xfe\x00\x01"])
def test_files_that_are_only_carried(name: str, data: bytes, llama: Files) -> None:
    assert admit_model({**llama, name: BytesSource(data)}).architecture == "LlamaForCausalLM"


def test_no_files() -> None:
    model_refused(FileRefused, {}, "No files")


def test_too_many_files(llama: Files) -> None:
    crowd = {f"f{index}.json": BytesSource(b"{}") for index in range(MAXIMUM_FILES)}
    model_refused(FileRefused, {**llama, **crowd}, "allowed")


def test_links_that_leave_the_folder_are_not_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text("{}")
    folder = tmp_path / "model"
    files = llama_files(folder)
    (folder / "link.json").symlink_to(secret)
    (folder / "up").symlink_to(tmp_path)
    (folder / "loop").symlink_to(folder)
    assert folder_sources(folder).keys() == files.keys()


def test_a_thousand_tiny_shards_are_settled_quickly(llama: Files) -> None:
    data = llama["model.safetensors"].read(0, llama["model.safetensors"].size)
    crowd: Files = {f"model-{index:05d}.safetensors": BytesSource(data) for index in range(1500)}
    started = time.monotonic()
    model_refused(ModelRejected, {**{k: v for k, v in llama.items() if k != "model.safetensors"}, **crowd})
    assert time.monotonic() - started < 2


def test_every_refusal_names_its_file(llama: Files) -> None:
    error = refused(FileRefused, lambda: admit_model({**llama, "deep/evil.py": BytesSource(b"")}))
    assert error.pointer == "deep/evil.py"
    assert error.to_json() == {"code": "file_refused", "message": error.message, "pointer": "deep/evil.py"}
