"""What decoders have in common: embeddings, layers, a last norm and a head. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from compression.anatomy.families.base import HEAD, TABLE, Linear, Parts, Shape, Shapes, Sizes, under
from compression.anatomy.inspection import TIED

_EDGE = "between the widths of embeddings and layers: kept dense, every token depends on it"


@dataclass(frozen=True)
class Decoder:
    """A decoder by the names inside its base model, which `base` (`model.`) may precede.

    `tables` are looked up (the first by tokens), `edges` multiplied with every token, `layers` is the list
    of layers
    (`layers.`), `final` what follows it. `head` is the name of the head; its width is that of the first
    table. `buffers` and `layer_buffers` are what old checkpoints carry. `slices` are weights inside stored
    tensors; `layer_kept` says of weights of every layer why they are not pruned, and `layer_macs` how many
    products they make for a token. `routers` are as in `Layers`.
    """

    sizes: Sizes
    base: str
    layers: str
    linears: Mapping[str, Linear]
    others: Shapes
    tables: Shapes
    final: Shapes
    tied: bool
    edges: Shapes = field(default_factory=dict)
    first: Shapes = field(default_factory=dict)
    buffers: tuple[str, ...] = ()
    layer_buffers: tuple[str, ...] = ()
    head: str = "lm_head"
    head_bias: bool = False
    droppable: bool = True
    slices: Mapping[str, Linear] = field(default_factory=dict)
    layer_kept: Mapping[str, str] = field(default_factory=dict)
    layer_macs: int = 0
    routers: tuple[str, ...] = ()

    def parts(self, names: Iterable[str]) -> Parts:
        """The tensors of the model, named as in a checkpoint with these names."""
        prefix = under(self.base, names)
        vocabulary, width = next(iter(self.tables.values()))
        head: dict[str, Shape] = {f"{self.head}.weight": (vocabulary, width)}
        bias: dict[str, Shape] = {f"{self.head}.bias": (vocabulary,)} if self.head_bias else {}

        layers = prefix + self.layers

        def placed(shapes: Shapes) -> dict[str, Shape]:
            return {prefix + name: shape for name, shape in shapes.items()}

        return Parts(
            sizes=self.sizes,
            layer_prefix=layers,
            linears=self.linears,
            slices=self.slices,
            others=self.others,
            before=placed({**self.tables, **self.edges, **self.first}),
            after={**placed(self.final), **({} if self.tied else head), **bias},
            kept={
                **dict.fromkeys(placed(self.tables), TABLE),
                **dict.fromkeys(placed(self.edges), _EDGE),
                **{
                    f"{layers}{layer}.{name}": reason
                    for layer in range(self.sizes.layers)
                    for name, reason in self.layer_kept.items()
                },
                **dict.fromkeys(head, TIED if self.tied else HEAD),
            },
            optional=head if self.tied else {},
            buffers=tuple(prefix + name for name in self.buffers),
            layer_buffers=self.layer_buffers,
            tied=self.tied,
            token_macs=vocabulary * width + sum(rows * columns for rows, columns in self.edges.values()),
            layer_macs=self.layer_macs,
            routers=self.routers,
            droppable=self.droppable,
            vocabulary=(prefix + next(iter(self.tables)), *head, *bias),
            row_macs=width,
        )


def gated(sizes: Sizes, biases: tuple[bool, bool, bool] = (False, False, False)) -> dict[str, Linear]:
    """The weights of a layer of Llama's form; `biases` of query, key and value, of output, of the rest."""
    inputs, output, rest = biases
    hidden, ffn = sizes.hidden, sizes.ffn
    queries, keys = sizes.heads * sizes.head_dim, sizes.key_value_heads * sizes.head_dim
    return {
        "self_attn.q_proj": Linear("query", queries, hidden, inputs),
        "self_attn.k_proj": Linear("key", keys, hidden, inputs),
        "self_attn.v_proj": Linear("value", keys, hidden, inputs),
        "self_attn.o_proj": Linear("output", hidden, queries, output),
        "mlp.gate_proj": Linear("gate", ffn, hidden, rest),
        "mlp.up_proj": Linear("up", ffn, hidden, rest),
        "mlp.down_proj": Linear("down", hidden, ffn, rest),
    }


def fused(sizes: Sizes, outputs: int, attention: str, biases: tuple[bool, bool]) -> dict[str, Linear]:
    """The weights of a layer with one weight for query, key and value (`outputs` rows) and no gate;
    `biases` of the attention and of the rest."""
    hidden, ffn = sizes.hidden, sizes.ffn
    return {
        f"{attention}.query_key_value": Linear("query_key_value", outputs, hidden, biases[0]),
        f"{attention}.dense": Linear("output", hidden, hidden, biases[0]),
        "mlp.dense_h_to_4h": Linear("up", ffn, hidden, biases[1]),
        "mlp.dense_4h_to_h": Linear("down", hidden, ffn, biases[1]),
    }
