"""GPT-NeoX decoders (Pythia among them): partly rotated heads, one weight for query, key and value. No
torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from compression.anatomy.families import keys
from compression.anatomy.families.base import Architecture, Config, Family, Parts, norms, usual_sizes
from compression.anatomy.families.decoder import Decoder, fused
from compression.anatomy.families.reader import ConfigReader
from compression.anatomy.families.rope import partial_rope_parameters

_KEYS: keys.Keys = {
    "vocab_size": keys.VOCABULARY,
    "hidden_size": keys.WIDTH,
    "num_hidden_layers": keys.LAYERS,
    "num_attention_heads": keys.HEADS,
    "intermediate_size": keys.FFN,
    "hidden_act": keys.word("gelu"),
    "attention_dropout": keys.SHARE,
    "hidden_dropout": keys.SHARE,
    "max_position_embeddings": keys.context(2048),
    "initializer_range": keys.SPREAD,
    "layer_norm_eps": keys.number(1e-5),
    "attention_bias": keys.flag(True),
    "use_parallel_residual": keys.flag(True),
    "tie_word_embeddings": keys.flag(False),
    "use_cache": keys.flag(True),
}


class GptNeoxFamily(Family):
    """GPTNeoXForCausalLM; names with or without the prefix `gpt_neox.`."""

    name = "gpt_neox"
    neurons_key = "intermediate_size"
    architectures: Mapping[str, Architecture] = {
        "GPTNeoXForCausalLM": Architecture("gpt_neox", "text-generation")
    }

    def rewrite(self, architecture: str, reader: ConfigReader) -> dict[str, Any]:
        size = keys.head_size(reader)
        config = keys.read(reader, _KEYS)
        context = config["max_position_embeddings"]
        old = ("rotary_emb_base", "rotary_pct")
        config["rope_parameters"] = partial_rope_parameters(reader, size, context, 0.25, old)
        return config | reader.special_tokens(config["vocab_size"])

    def parts(self, config: Config, names: Iterable[str]) -> Parts:
        present, sizes = set(names), usual_sizes(config)
        hidden = sizes.hidden
        return Decoder(
            sizes=sizes,
            base="gpt_neox.",
            layers="layers.",
            linears=fused(sizes, 3 * hidden, "attention", (config["attention_bias"], True)),
            others=norms(hidden, "input_layernorm", "post_attention_layernorm"),
            tables={"embed_in.weight": (sizes.vocabulary, hidden)},
            final=norms(hidden, "final_layer_norm"),
            tied=config["tie_word_embeddings"],
            # Its name until transformers 5, which the published models have.
            head="embed_out" if "embed_out.weight" in present else "lm_head",
            buffers=("rotary_emb.inv_freq",),
            layer_buffers=("attention.bias", "attention.masked_bias", "attention.rotary_emb.inv_freq"),
        ).parts(present)


FAMILY = GptNeoxFamily()
