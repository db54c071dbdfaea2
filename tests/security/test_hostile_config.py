"""Settings that refer to code, contradict themselves, or ask for the impossible."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compression.errors import (
    ArchitectureUnknown,
    ConfigInvalid,
    ModelRejected,
    TensorsMismatch,
    TokenizerInvalid,
)
from compression.loading.admission import BytesSource, FileSource, admit_model
from compression.loading.config import rewrite_config
from tests.security.hostile import bert_files, llama_files, model_refused, with_config
from tests.tiny_models import tiny_bert, tiny_llama

Files = dict[str, FileSource]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return llama_files(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return bert_files(tmp_path_factory.mktemp("bert"), labels=["a", "b"])


CODE: list[dict[str, Any]] = [
    {"auto_map": {"AutoModelForCausalLM": "modeling.Evil"}},
    {"auto_map": None},
    {"auto_map": {}},
    {"Auto_Map": {"AutoConfig": "x.Y"}},
    {"trust_remote_code": True},
    {"trust_remote_code": False},
    {"custom_pipelines": {"evil": {"impl": "x.Y"}}},
    {"custom_generate": "someone/evil"},
    {"_attn_implementation": "someone/kernel"},
    {"_attn_implementation_internal": "someone/kernel"},
    {"attn_implementation": "someone/kernel:flash"},
    {"attn_implementation": {"text_config": "someone/kernel"}},
    {"experts_implementation": "someone/kernel"},
    {"_experts_implementation_internal": "someone/kernel"},
    {"cache_implementation": "someone/cache"},
    {"text_config": {"_attn_implementation_internal": "someone/kernel"}},
    {"text_config": {"deep": [{"auto_map": {"AutoModel": "x.Y"}}]}},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "trust_remote_code": True}},
    {"vision_config": {"trust_remote_code": True}},
]


@pytest.mark.parametrize("change", CODE, ids=str)
def test_references_to_code(change: dict[str, Any], llama: Files) -> None:
    model_refused(ConfigInvalid, with_config(llama, lambda config: config.update(change)), "refers to code")


@pytest.mark.parametrize("key", ["_private", "_attn_x", "__class__", "_rope_type_labels", "_from_auto"])
def test_private_settings(key: str, llama: Files) -> None:
    model_refused(ConfigInvalid, with_config(llama, lambda config: config.update({key: 1})), "remove it")


@pytest.mark.parametrize(
    "change",
    [
        {"_name_or_path": "/home/somebody/secret"},
        {"_commit_hash": "abc"},
        {"_attn_implementation_autoset": True},
        {"attn_implementation": None},
        {"cache_implementation": "hybrid"},
        {"anything": {"nested": [1, 2, 3]}},
        {"finetuning_task": "x"},
    ],
    ids=str,
)
def test_harmless_settings_are_dropped(change: dict[str, Any], llama: Files) -> None:
    admission = admit_model(with_config(llama, lambda config: config.update(change)))
    assert not change.keys() & admission.config.keys()
    assert change.keys() <= set(admission.dropped)


def test_labels_may_have_any_name(bert: Files) -> None:
    def rename(config: dict[str, Any]) -> None:
        config["id2label"] = {"0": "auto_map", "1": "_attn_implementation_internal"}
        config["label2id"] = {"auto_map": 0, "_attn_implementation_internal": 1}

    assert admit_model(with_config(bert, rename)).config["id2label"]["0"] == "auto_map"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised"),
        ({"compression_config": {"format": "x"}}, "compressed"),
        ({"per_layer_config": {"0": {"skip": ["mlp"]}}}, "different widths"),
        ({"pruned_heads": {"0": [1]}}, "heads removed"),
        ({"model_type": "bert"}, "valid: 'llama'"),
        ({"model_type": 3}, "valid: 'llama'"),
        ({"dtype": "int8"}, "'float32'"),
        ({"dtype": None, "torch_dtype": "float64"}, "'float32'"),
        ({"pretraining_tp": 2}, "no longer computes"),
        ({"hidden_size": 33}, "no multiple of num_attention_heads"),
        ({"num_key_value_heads": 3}, "no multiple of num_key_value_heads"),
        ({"head_dim": 7}, "even"),
        ({"rope_parameters": {"rope_type": "evil"}}, "rope_type"),
        ({"rope_parameters": {"rope_type": ["x"]}}, "rope_type"),
        ({"rope_parameters": "x"}, "must be an object"),
        ({"rope_parameters": {"rope_type": "linear"}}, "factor is missing"),
        ({"rope_parameters": {"rope_type": "linear", "factor": "2"}}, "must be a number"),
        ({"rope_parameters": {"rope_type": "linear", "factor": -1}}, "must be a number"),
        (
            {"rope_parameters": {"rope_type": "longrope", "short_factor": [1], "long_factor": [1]}},
            "4 numbers",
        ),
        ({"rope_parameters": {"rope_theta": 0}}, "must be a number"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "differs by layer type"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"hidden_act": "os.system"}, "'silu'"),
        ({"hidden_act": ["silu"]}, "'silu'"),
        ({"eos_token_id": 10**9}, "from 0 to 263"),
        ({"eos_token_id": [1, 999]}, "from 0 to 263"),
        ({"eos_token_id": "</s>"}, "from 0 to 263"),
        ({"bos_token_id": [1]}, "from 0 to 263"),
        ({"pad_token_id": -2}, "from -1 to 263"),
        ({"tie_word_embeddings": "yes"}, "true or false"),
        ({"attention_bias": 1}, "true or false"),
    ],
    ids=str,
)
def test_contradictions(change: dict[str, Any], words: str, llama: Files) -> None:
    model_refused(ConfigInvalid, with_config(llama, lambda config: config.update(change)), words)


SIZES = [
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "max_position_embeddings", "head_dim",
]  # fmt: skip


@pytest.mark.parametrize("value", [0, -1, 10**9, 10**30, 1.5, "32", True, [], {}], ids=str)
@pytest.mark.parametrize("key", SIZES)
def test_sizes_beyond_reason(key: str, value: Any, llama: Files) -> None:
    error = model_refused(ConfigInvalid, with_config(llama, lambda config: config.update({key: value})), key)
    assert "must be a whole number from" in error.message


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"])
def test_sizes_that_must_be_said(key: str, llama: Files) -> None:
    model_refused(
        ConfigInvalid, with_config(llama, lambda config: config.pop(key) and None), f"{key} is missing"
    )


@pytest.mark.parametrize("layers", [1024, 500])
def test_large_but_allowed_sizes_are_settled_by_the_weights(layers: int, llama: Files) -> None:
    model_refused(TensorsMismatch, with_config(llama, lambda config: config.update(num_hidden_layers=layers)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"is_decoder": True}, "only encoders"),
        ({"add_cross_attention": True}, "only encoders"),
        ({"position_embedding_type": "relative_key"}, "'absolute'"),
        ({"problem_type": "regression"}, "single_label_classification"),
        ({"problem_type": "multi_label_classification"}, "single_label_classification"),
        ({"id2label": {"0": "a"}, "label2id": {"a": 0}}, "regression"),
        ({"id2label": {"0": "a", "2": "b"}}, 'no name for class "1"'),
        ({"id2label": {"0": "a", "1": "a"}}, "same name"),
        ({"id2label": {"0": "a", "1": {"x": 1}}}, "no name for class"),
        ({"id2label": {"0": "a", "1": "x" * 1000}}, "no name for class"),
        ({"id2label": ["a", "b"]}, "must map"),
        ({"id2label": {}}, "must map"),
        ({"hidden_dropout_prob": 7}, "must be a number"),
        ({"layer_norm_eps": "1e-12"}, "must be a number"),
        ({"num_attention_heads": 5}, "no multiple"),
    ],
    ids=str,
)
def test_contradictions_of_encoders(change: dict[str, Any], words: str, bert: Files) -> None:
    model_refused(ConfigInvalid, with_config(bert, lambda config: config.update(change)), words)


@pytest.mark.parametrize(
    "value",
    [
        None,
        "LlamaForCausalLM",
        [],
        ["LlamaForCausalLM", "BertModel"],
        [3],
        ["x" * 10_000],
        ["../../evil"],
        {},
    ],
    ids=lambda value: str(value)[:30],
)
def test_architectures(value: Any, llama: Files) -> None:
    model_refused(ArchitectureUnknown, with_config(llama, lambda config: config.update(architectures=value)))


def test_the_wrong_family_of_a_known_model_type(llama: Files) -> None:
    change = {"architectures": ["MistralForCausalLM"]}
    model_refused(ConfigInvalid, with_config(llama, lambda config: config.update(change)), "model_type")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not valid JSON"),
        (b"{", "line 1"),
        (b"[]", "JSON object"),
        (b"null", "JSON object"),
        (b'"x"', "JSON object"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "Infinity"),
        (b'{"a": 1, "a": 2}', "'a' twice"),
        (b'{"x": {"a": 1, "a": 2}}', "'a' twice"),
        (b'{"a": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"[" * 300_000, "lists and objects"),
        (b'{"a": ' + b"[" * 30 + b"]" * 30 + b"}", "deeper than"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "not valid JSON"),
        (b'{"a": "\\ud800"}', "not valid Unicode"),
        (b'{"\\udfff": 1}', "not valid Unicode"),
        (b'{"never_split": [["\\ud800"]]}', "not valid Unicode"),
        (b"{" + b",".join(b'"%d": 1' % index for index in range(90_000)) + b', "0": 1}', "'0' twice"),
        (b'{"a": 1}' + b" " * (5 << 20), "allowed"),
        (b'{"a": [' + b"[]," * 250_000 + b"1]}", "lists and objects"),
    ],
    ids=lambda value: str(value)[:24],
)
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "generation_config.json"])
def test_files_that_are_no_settings(file: str, data: bytes, words: str, llama: Files) -> None:
    if len(data) > 4 << 20 and file == "tokenizer_config.json":
        data = data + b" " * (12 << 20)
    error = model_refused(ModelRejected, {**llama, file: BytesSource(data)}, words)
    assert error.message.startswith(file)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"auto_map": {"AutoTokenizer": ["x.Y", None]}}, "refers to code"),
        ({"processor": {"trust_remote_code": True}}, "refers to code"),
        ({"tokenizer_class": "os; import x"}, "no name of a class"),
        ({"tokenizer_class": ["a"]}, "no name of a class"),
        ({"chat_template": "x" * 300_000}, "chat_template"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_tokenizer_settings(change: dict[str, Any], words: str, llama: Files) -> None:
    data = json.dumps({"eos_token": "x", **change}).encode()
    model_refused(TokenizerInvalid, {**llama, "tokenizer_config.json": BytesSource(data)}, words)


def test_templates_are_kept_and_never_run(llama: Files) -> None:
    template = "{{ ''.__class__.__mro__[1].__subclasses__() }}{% for i in range(10**9) %}{% endfor %}"
    settings_ = json.dumps({"chat_template": template}).encode()
    files = {
        **llama,
        "tokenizer_config.json": BytesSource(settings_),
        "chat_template.jinja": BytesSource(template.encode()),
    }
    assert json.loads(admit_model(files).rewritten["tokenizer_config.json"])["chat_template"] == template


@pytest.mark.parametrize("data", [b"", b"[]", b"x", b'{"version": "1.0"', b"\x00" * 100])
def test_tokenizers_that_are_none(data: bytes, llama: Files) -> None:
    model_refused(TokenizerInvalid, {**llama, "tokenizer.json": BytesSource(data)}, "tokenizer.json")


def test_large_files(llama: Files) -> None:
    class Endless:
        size = 65 << 20

        def read(self, offset: int, length: int) -> bytes:
            assert length <= 1 << 16, "a file that is too large is not read"
            return b"{" * length

    for name in (
        "tokenizer.json",
        "vocab.txt",
        "config.json",
        "tokenizer_config.json",
        "model.safetensors.index.json",
    ):
        model_refused(ModelRejected, {**llama, name: Endless()}, "allowed")


def test_index_files(tmp_path: Path) -> None:
    files = llama_files(tmp_path, shards=2)
    for path in (
        "../model.safetensors",
        "/etc/passwd",
        "a/b.safetensors",
        "x.bin",
        "",
        "\x00.safetensors",
        "é.safetensors",
    ):
        data = json.dumps({"weight_map": {"model.norm.weight": path}}).encode()
        model_refused(
            ModelRejected, {**files, "model.safetensors.index.json": BytesSource(data)}, "beside it"
        )


def stock_accepts(config: dict[str, Any]) -> None:
    from transformers import AutoConfig

    values = dict(config)
    model_type = values.pop("model_type")
    AutoConfig.for_model(model_type, **values)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 300)
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["silu", "gelu", "float32", "default", "linear", "full_attention", "../x"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["rope_type", "factor", "0", "1", "auto_map", "x"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)


def keys_of(build: Callable[..., Path], folder: Path, **options: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((build(folder, **options) / "config.json").read_text())
    return found


@pytest.fixture(scope="module")
def good_configs(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    root = tmp_path_factory.mktemp("configs")
    return [
        keys_of(tiny_llama, root / "a"),
        keys_of(tiny_llama, root / "b", architecture="MistralForCausalLM"),
        keys_of(tiny_llama, root / "c", architecture="Qwen2ForCausalLM"),
        keys_of(tiny_bert, root / "d", labels=["a", "b"]),
    ]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_fuzz_config(good_configs: list[dict[str, Any]], data: st.DataObject) -> None:
    """Refused in our words, or transformers takes the rewritten config without an error."""
    config = dict(data.draw(st.sampled_from(good_configs)))
    extra = [
        "auto_map",
        "rope_scaling",
        "rope_theta",
        "num_labels",
        "is_decoder",
        "head_dim",
        "_x",
        "torch_dtype",
    ]
    for _ in range(data.draw(st.integers(1, 2))):
        config[data.draw(st.sampled_from([*config, *extra]))] = data.draw(VALUES)
    source = BytesSource(json.dumps(config).encode())
    try:
        rewritten = rewrite_config(source)
    except ConfigInvalid as error:
        assert error.message.startswith("config.json")
        assert re.search(r"[.]$", error.message)
        return
    assert all(not key.startswith("_") and "auto_map" not in key for key in rewritten.config)
    stock_accepts(rewritten.config)
    again = rewrite_config(BytesSource(json.dumps(rewritten.config).encode()))
    assert again.config == rewritten.config


def test_too_many_classes(bert: Files) -> None:
    labels = {str(index): f"class {index}" for index in range(100_001)}
    model_refused(ConfigInvalid, with_config(bert, lambda config: config.update(id2label=labels)), "must map")
