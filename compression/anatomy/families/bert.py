"""BERT-type encoders, with and without a classification head. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from compression.anatomy.families.base import Architecture, Config, Expected, Macs, Shape, layer_sites
from compression.anatomy.families.reader import (
    MAXIMUM_CONTEXT,
    MAXIMUM_FFN,
    MAXIMUM_LAYERS,
    MAXIMUM_VOCABULARY,
    MAXIMUM_WIDTH,
    ConfigReader,
    is_whole,
    shown,
)
from compression.anatomy.inspection import Inspection, elements

ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish")
MAXIMUM_LABELS = 100_000
_CLASSIFIER = "BertForSequenceClassification"


class BertFamily:
    """BertModel and BertForSequenceClassification; names with or without the prefix `bert.`."""

    name = "bert"
    architectures: Mapping[str, Architecture] = {
        "BertModel": Architecture("bert", "feature-extraction"),
        _CLASSIFIER: Architecture("bert", "text-classification"),
    }

    def rewrite(self, architecture: str, reader: ConfigReader) -> dict[str, Any]:
        vocabulary = reader.whole("vocab_size", 2, MAXIMUM_VOCABULARY)
        hidden = reader.whole("hidden_size", 1, MAXIMUM_WIDTH)
        heads = reader.whole("num_attention_heads", 1, 4096)
        if hidden % heads:
            reader.refuse("hidden_size", f"is {hidden}, no multiple of num_attention_heads ({heads})")
        for key in ("is_decoder", "add_cross_attention"):
            if reader.flag(key, False):
                reader.refuse(key, "is true; only encoders are supported in this family")
        reader.word("position_embedding_type", ("absolute",), "absolute")
        config: dict[str, Any] = {
            "vocab_size": vocabulary,
            "hidden_size": hidden,
            "num_hidden_layers": reader.whole("num_hidden_layers", 1, MAXIMUM_LAYERS),
            "num_attention_heads": heads,
            "intermediate_size": reader.whole("intermediate_size", 1, MAXIMUM_FFN),
            "hidden_act": reader.word("hidden_act", ACTIVATIONS, "gelu"),
            "hidden_dropout_prob": reader.number("hidden_dropout_prob", 0.0, 1.0, 0.1),
            "attention_probs_dropout_prob": reader.number("attention_probs_dropout_prob", 0.0, 1.0, 0.1),
            "max_position_embeddings": reader.whole("max_position_embeddings", 2, MAXIMUM_CONTEXT, 512),
            "type_vocab_size": reader.whole("type_vocab_size", 1, 1 << 16, 2),
            "initializer_range": reader.number("initializer_range", 0.0, 1.0, 0.02),
            "layer_norm_eps": reader.number("layer_norm_eps", 0.0, 1.0, 1e-12),
            **reader.special_tokens(vocabulary),
            "use_cache": reader.flag("use_cache", True),
            "tie_word_embeddings": reader.flag("tie_word_embeddings", True),
            "is_decoder": False,
        }
        if reader.given("classifier_dropout"):
            config["classifier_dropout"] = reader.number("classifier_dropout", 0.0, 1.0, 0.1)
        if architecture == _CLASSIFIER:
            config |= _labels(reader)
        return config

    def expected(self, config: Config, names: Iterable[str]) -> Expected:
        prefix = _prefix(names)
        hidden = config["hidden_size"]
        required: dict[str, Shape] = {
            "embeddings.word_embeddings.weight": (config["vocab_size"], hidden),
            "embeddings.position_embeddings.weight": (config["max_position_embeddings"], hidden),
            "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], hidden),
            "embeddings.LayerNorm.weight": (hidden,),
            "embeddings.LayerNorm.bias": (hidden,),
        }
        for layer in range(config["num_hidden_layers"]):
            required |= {f"encoder.layer.{layer}.{name}": shape for name, shape in _layer(config).items()}
        pooler: dict[str, Shape] = {"pooler.dense.weight": (hidden, hidden), "pooler.dense.bias": (hidden,)}
        classifier = config["architectures"] == [_CLASSIFIER]
        present = set(names)
        if classifier or any(prefix + name in present for name in pooler):
            required |= pooler
        required = {prefix + name: shape for name, shape in required.items()}
        if classifier:
            labels = len(config["id2label"])
            required |= {"classifier.weight": (labels, hidden), "classifier.bias": (labels,)}
        buffers: dict[str, Shape | None] = {
            f"{prefix}embeddings.{name}": None for name in ("position_ids", "token_type_ids")
        }
        return Expected(required, {}, buffers)

    def inspect(self, config: Config, names: Iterable[str], has_tokenizer: bool) -> Inspection:
        present = set(names)
        prefix = _prefix(present)
        layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
        layer_prefix = f"{prefix}encoder.layer."
        sites = layer_sites(layer_prefix, layers, _shapes(config))
        architecture = config["architectures"][0]
        tables = ("word_embeddings", "position_embeddings", "token_type_embeddings")
        table = "an embedding table: its rows are looked up, not multiplied"
        kept = [{"name": f"{prefix}embeddings.{name}.weight", "reason": table} for name in tables]
        has_pooler = f"{prefix}pooler.dense.weight" in present
        if has_pooler:
            kept.append(
                {"name": f"{prefix}pooler.dense.weight", "reason": "the pooler: small, read by the head"}
            )
        if architecture == _CLASSIFIER:
            kept.append({"name": "classifier.weight", "reason": "the output head: kept dense"})
        return Inspection(
            family=self.name,
            architecture=architecture,
            task=self.architectures[architecture].task,
            layers=layers,
            hidden=config["hidden_size"],
            heads=heads,
            key_value_heads=heads,
            head_dim=config["hidden_size"] // heads,
            ffn=config["intermediate_size"],
            vocabulary=config["vocab_size"],
            context=config["max_position_embeddings"],
            tied_embeddings=False,
            has_tokenizer=has_tokenizer,
            labels=tuple(config["id2label"].values()) if architecture == _CLASSIFIER else None,
            has_pooler=has_pooler,
            layer_prefix=layer_prefix,
            layer_parameters=sum(elements(shape) for shape in _layer(config).values()),
            sites=sites,
            prunable_parameters=sum(site.size for site in sites),
            granularities=("unstructured", "n:m", *(["layer"] if layers > 1 else [])),
            not_prunable=tuple(kept),
        )

    def macs(self, inspection: Inspection, sequence_length: int) -> Macs:
        pooler = inspection.hidden * inspection.hidden if inspection.has_pooler else 0
        return Macs(
            tokens=sequence_length,
            sites={site.name: sequence_length * site.size for site in inspection.sites},
            attention=2 * inspection.layers * inspection.hidden * sequence_length * sequence_length,
            head=pooler + inspection.hidden * len(inspection.labels or ()),
        )


def _prefix(names: Iterable[str]) -> str:
    return "bert." if any(name.startswith("bert.") for name in names) else ""


def _shapes(config: Config) -> dict[str, tuple[str, int, int]]:
    hidden, ffn = config["hidden_size"], config["intermediate_size"]
    return {
        "attention.self.query.weight": ("query", hidden, hidden),
        "attention.self.key.weight": ("key", hidden, hidden),
        "attention.self.value.weight": ("value", hidden, hidden),
        "attention.output.dense.weight": ("output", hidden, hidden),
        "intermediate.dense.weight": ("up", ffn, hidden),
        "output.dense.weight": ("down", hidden, ffn),
    }


def _layer(config: Config) -> dict[str, Shape]:
    """The tensors of one layer by their name inside it."""
    hidden = config["hidden_size"]
    tensors: dict[str, Shape] = {}
    for name, (_, rows, columns) in _shapes(config).items():
        tensors[name] = (rows, columns)
        tensors[name.removesuffix("weight") + "bias"] = (rows,)
    for norm in ("attention.output.LayerNorm", "output.LayerNorm"):
        tensors |= {f"{norm}.weight": (hidden,), f"{norm}.bias": (hidden,)}
    return tensors


def _labels(reader: ConfigReader) -> dict[str, Any]:
    """The classes of a classifier: `id2label` and `label2id`, complete and in order."""
    problem = reader.config.get("problem_type")
    if problem not in (None, "single_label_classification"):
        reader.refuse("problem_type", f"is {shown(problem)}; only single_label_classification is supported")
    given = reader.config.get("id2label")
    if given is None:
        count = reader.whole("num_labels", 1, MAXIMUM_LABELS, 2)
        names = [f"LABEL_{index}" for index in range(count)]
    else:
        names = _names(reader, given)
    if len(names) < 2:
        reader.refuse("id2label", "names one class, which means regression; only classifiers are supported")
    found: dict[str, Any] = {
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
    }
    if problem is not None:
        found["problem_type"] = problem
    return found


def _names(reader: ConfigReader, given: Any) -> list[str]:
    if not isinstance(given, dict) or not 1 <= len(given) <= MAXIMUM_LABELS:
        reader.refuse("id2label", f'is {shown(given)}; it must map "0", "1", ... to the names of the classes')
    names: list[str] = []
    for index in range(len(given)):
        name = given.get(str(index))
        if is_whole(name):
            name = str(name)
        if not isinstance(name, str) or not 1 <= len(name) <= 256:
            reader.refuse(
                "id2label", f'has no name for class "{index}" of {len(given)} (1 to 256 characters)'
            )
        names.append(name)
    if len(set(names)) != len(names):
        reader.refuse("id2label", "gives two classes the same name")
    return names


FAMILY = BertFamily()
