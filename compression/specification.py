"""The specification of a job: what a user asks for, as data. No torch.

`parse` turns JSON data into a `JobSpecification` or raises `SpecificationInvalid` with one fault per
mistake, each with its JSON pointer; unknown keys name the nearest valid one. What depends on the model, the
recipe or the data is filled in and refused by `compression.resolve`. A resolved specification is a
`JobSpecification` too, with nothing left open.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from compression.data_uses import Calibration, Evaluation, Recovery
from compression.errors import Fault, SpecificationInvalid
from compression.faults import translate, unusual
from compression.parts import Part, Real, Text, Whole, fault
from compression.preprocessing import Preprocessing
from compression.suggestions import closest

Amount = float | int | str

Dtype = Literal["float32", "bfloat16"]

TARGETS = ("sparsity", "parameters", "macs", "bytes", "latency", "layers")
GRANULARITIES = (
    "unstructured", "n:m", "block", "neuron", "head", "neuron+head", "channel", "layer", "expert", "hidden",
    "neuron+hidden", "neuron+head+hidden", "rank", "vocabulary",
)  # fmt: skip

_DECIMAL = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
_UNITS: dict[str, dict[str, float]] = {
    "parameters": {**_DECIMAL, "b": 1e9},
    "macs": {**_DECIMAL, "b": 1e9},
    "bytes": {
        **{f"{prefix}b": factor for prefix, factor in _DECIMAL.items()},
        **{f"{prefix}ib": 1024.0**power for power, prefix in enumerate("kmgt", start=1)},
    },
    "latency": {"us": 1e-6, "ms": 1e-3, "s": 1.0},
}
_EXAMPLES = {"parameters": "300M", "macs": "1.5G", "bytes": "1.2GB", "latency": "40ms"}
_QUANTITY = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)\s{0,4}([a-z]{0,3})", re.ASCII)
_N_M = re.compile(r"([0-9]{1,2}):([0-9]{1,2})", re.ASCII)
_BLOCK = re.compile(r"([1-9][0-9]{0,2})x([1-9][0-9]{0,2})", re.ASCII)


def quantity(kind: str, value: Amount) -> tuple[Literal["ratio", "absolute"], float]:
    """Reads the value of a `parameters`, `macs`, `bytes` or `latency` target.

    A number strictly between 0 and 1 is a ratio (pruned / dense); a whole number from 1 on, or a string
    with a unit ("300M", "1.2GB", "700MiB", "40ms"), is absolute: elements, multiply-accumulates, bytes,
    seconds.

    Raises ValueError that says what to write instead.
    """
    example = _EXAMPLES[kind]
    advice = f'write a ratio between 0 and 1, such as 0.5, or an amount such as "{example}"'
    if isinstance(value, str):
        found = _QUANTITY.fullmatch(value.strip().lower())
        units = _UNITS[kind]
        if found is None or found[2] not in units:
            names = ", ".join(sorted(unit for unit in units if unit))
            raise ValueError(f"{value!r} is no amount of {kind}: {advice} (units: {names})")
        amount = float(found[1]) * units[found[2]]
        if amount <= 0:
            raise ValueError(f"{value!r} is not above zero: {advice}")
        return "absolute", amount
    if isinstance(value, bool) or not math.isfinite(value) or value <= 0:
        raise ValueError(f"{value!r} is no amount of {kind}: {advice}")
    if value < 1:
        return "ratio", float(value)
    if kind == "latency":
        raise ValueError(f"{value!r} has no unit: {advice}")
    if value != int(value):
        raise ValueError(f"{value!r} is neither a ratio below 1 nor a whole number: {advice}")
    if value == 1 and isinstance(value, float):
        raise ValueError(f"1.0 would leave the model as it is: {advice}")
    return "absolute", float(value)


class Target(Part):
    """How small the model must become: exactly one of these."""

    sparsity: Annotated[Real, Field(gt=0, lt=1)] | None = Field(
        default=None,
        description="Fraction of zeros (or of removed weights) among the prunable weights, 0 < s < 1.",
    )
    parameters: Amount | None = Field(default=None, description="Elements kept: a ratio or an amount.")
    macs: Amount | None = Field(
        default=None, description="Multiply-accumulates for one sequence: a ratio or an amount."
    )
    bytes: Amount | None = Field(default=None, description="Bytes of the weight files: a ratio or an amount.")
    latency: Amount | None = Field(
        default=None,
        description="Time of a forward pass over one sequence (256 tokens of a decoder, 128 of an encoder, "
        "one image) on the worker's device, by a table of measured layer times: a ratio or an amount.",
    )
    layers: Annotated[Whole, Field(ge=1, le=4096)] | None = Field(
        default=None, description="Number of layers to remove (granularity layer)."
    )

    @field_validator("parameters", "macs", "bytes", "latency", mode="before")
    @classmethod
    def _amount(cls, value: Any, info: Any) -> Any:
        if value is None:
            return None
        if not isinstance(value, (int, float, str)):
            raise fault("target_invalid", f"{info.field_name} must be a number or a string with a unit.")
        try:
            quantity(info.field_name, value)
        except OverflowError:
            raise fault("target_invalid", f"{info.field_name} is beyond all models.") from None
        except ValueError as error:
            raise fault("target_invalid", f"{error}.") from None
        return value

    @model_validator(mode="after")
    def _one(self) -> Target:
        given = [name for name in TARGETS if getattr(self, name) is not None]
        if len(given) != 1:
            what = "none is given" if not given else f"{' and '.join(given)} are given"
            raise fault("target_invalid", f"Give exactly one of {', '.join(TARGETS)}: {what}.")
        return self

    @property
    def kind(self) -> str:
        """The name of the one target that is given."""
        return next(name for name in TARGETS if getattr(self, name) is not None)

    @property
    def value(self) -> Amount:
        """The value of the one target that is given, as it was written."""
        found: Amount = getattr(self, self.kind)
        return found


def n_m(granularity: str | None) -> tuple[int, int] | None:
    """(n, m) of an n:m granularity such as "2:4" (n weights kept of every m along the input), else None."""
    found = _N_M.fullmatch(granularity or "")
    return (int(found[1]), int(found[2])) if found else None


def block(granularity: str | None) -> tuple[int, int] | None:
    """(rows, columns) of a block granularity such as "16x16", else None."""
    found = _BLOCK.fullmatch(granularity or "")
    return (int(found[1]), int(found[2])) if found else None


def granularity_kind(granularity: str) -> str:
    """ "n:m" for "2:4", "block" for "16x16", else the granularity itself."""
    return "n:m" if n_m(granularity) else "block" if block(granularity) else granularity


class Structure(Part):
    """What is removed as one, and where nothing may be removed."""

    granularity: str | None = Field(
        default=None,
        description='"unstructured", n:m such as "2:4", blocks such as "16x16", "layer", "neuron", "head", '
        '"neuron+head", "hidden", "neuron+hidden", "neuron+head+hidden", "expert", "vocabulary" or "rank"; '
        'of a graph (ONNX) "channel" and those of single weights.',
    )
    ignore: list[Text] = Field(
        default=[],
        max_length=100,
        description="Weight sites to leave alone: globs, or regular expressions after re:.",
    )

    @field_validator("granularity")
    @classmethod
    def _granularity(cls, value: str | None) -> str | None:
        if value is None or (value in GRANULARITIES and value not in ("n:m", "block")):
            return value
        if block(value) not in (None, (1, 1)):
            return value
        pair = n_m(value)
        if pair is not None:
            n, m = pair
            if not 1 <= n < m <= 32:
                raise fault("granularity_invalid", f"{value}: n:m needs 1 <= n < m <= 32, such as 2:4.")
            return f"{n}:{m}"
        hints = {
            "n:m": 'write n:m with numbers, such as "2:4"',
            "block": 'write rows x columns, such as "16x16"',
            "1x1": 'single weights are "unstructured"',
        }
        hint = hints.get(value) or closest(value, GRANULARITIES)
        raise fault("granularity_invalid", f"{value!r} is no granularity: {hint}.")

    @field_validator("ignore")
    @classmethod
    def _patterns(cls, value: list[str]) -> list[str]:
        from compression.anatomy.patterns import check_pattern

        for pattern in value:
            try:
                check_pattern(pattern)
            except ValueError as error:
                raise fault("pattern_invalid", str(error)) from None
        return value


class Output(Part):
    """What is written."""

    formats: list[Literal["safetensors", "gguf", "onnx"]] = Field(
        default=["safetensors"],
        min_length=1,
        max_length=4,
        description='What the artifact holds: "safetensors" always, with "gguf" also a file for llama.cpp; '
        'of a model that came as ONNX "onnx" alone, which is its default.',
    )
    dtype: Dtype | None = Field(
        default=None, description="Type of the written weights; default: as they came."
    )
    layout: Literal["padded", "packaged"] | None = Field(
        default=None,
        description='How layers with widths of their own are written: "padded" with zeros to one width (a '
        'stock checkpoint), or "packaged" with the code that loads them; low-rank weights and those on skip '
        'connections are "packaged". '
        "There is no default, and other results have none.",
    )


class Limits(Part):
    """What a job may use before it is stopped."""

    seconds: Annotated[Whole, Field(ge=1, le=30 * 86400)] = Field(default=7200, description="Wall time.")
    memory_bytes: Annotated[Whole, Field(ge=1, le=1 << 50)] | None = Field(
        default=None, description="Memory of the runner."
    )


class JobSpecification(Part):
    """One compression job: a model, a recipe, a target, and everything that may be left to its default."""

    model: Text = Field(description="Id of the model.")
    recipe: Text = Field(description="Name of the recipe.")
    target: Target
    structure: Structure = Structure()
    options: dict[str, Any] = Field(default={}, description="Overrides of the recipe's options.")
    calibration: Calibration | None = None
    recovery: Recovery = Recovery()
    evaluation: Evaluation = Evaluation()
    preprocessing: Preprocessing | None = None
    output: Output = Output()
    limits: Limits = Limits()
    queue: Literal["cpu", "gpu"] = "cpu"
    priority: Annotated[Whole, Field(ge=0, le=9)] = Field(default=0, description="9 goes first.")
    metadata: dict[
        Annotated[str, Field(min_length=1, max_length=64)], Annotated[str, Field(strict=True, max_length=512)]
    ] = Field(default={}, max_length=64, description="Kept with the job, never looked at.")
    seed: Annotated[Whole, Field(ge=0, lt=1 << 63)] = Field(
        default=0, description="Seed of everything random."
    )

    def to_json(self) -> dict[str, Any]:
        """The specification as JSON data; `JobSpecification.model_validate` reads it back."""
        data: dict[str, Any] = self.model_dump(mode="json")
        data["target"] = {self.target.kind: self.target.value}
        for gate in data["evaluation"]["gates"]:
            for name in [name for name, value in gate.items() if value is None]:
                del gate[name]
        return data

    def datasets(self) -> list[str]:
        """Ids of the datasets it names, each once."""
        return list(dict.fromkeys(self.uses().values()))

    def uses(self) -> dict[str, str]:
        """Ids of the datasets it names, by the JSON pointer that names each."""
        calibration, recovery, evaluation = self.calibration, self.recovery, self.evaluation
        domain = calibration.domain if calibration else None
        named = {
            "/calibration/dataset": calibration.dataset if calibration else None,
            "/calibration/domain/dataset": domain.dataset if domain else None,
            "/recovery/dataset": recovery.dataset if recovery.method != "none" else None,
            "/evaluation/dataset": evaluation.dataset,
            "/evaluation/domain/dataset": evaluation.domain.dataset if evaluation.domain else None,
        }
        return {pointer: name for pointer, name in named.items() if name is not None}


def parse(data: Any) -> JobSpecification:
    """Reads a specification from JSON data. Raises SpecificationInvalid with every fault found."""
    if not isinstance(data, dict):
        raise SpecificationInvalid([Fault("", "The specification must be a JSON object.", "type_invalid")])
    faults = unusual(data)
    if faults:
        raise SpecificationInvalid(faults)
    try:
        return JobSpecification.model_validate(data)
    except ValidationError as error:
        raise SpecificationInvalid(translate(error, JobSpecification)) from None


def named_datasets(data: Mapping[str, Any]) -> set[str]:
    """Ids of all datasets that a specification names, as JSON: also of parts that it does not use."""
    parts = [data.get(name) for name in ("calibration", "recovery", "evaluation")]
    parts += [part.get("domain") for part in parts if isinstance(part, Mapping)]
    return {part["dataset"] for part in parts if isinstance(part, Mapping) and part.get("dataset")}
