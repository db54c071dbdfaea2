"""The specification of a job: what a user asks for, as data. No torch.

`parse` turns JSON data into a `JobSpecification` or raises `SpecificationInvalid` with one fault per
mistake, each with its JSON pointer; unknown keys name the nearest valid one. What depends on the model, the
recipe or the data is filled in and refused by `compression.resolve`. A resolved specification is a
`JobSpecification` too, with nothing left open.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from compression.errors import Fault, SpecificationInvalid
from compression.faults import translate, unusual
from compression.preprocessing import Preprocessing
from compression.suggestions import closest

Text = Annotated[str, Field(strict=True, min_length=1, max_length=256)]
Whole = Annotated[int, Field(strict=True)]
Real = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Amount = float | int | str

Dtype = Literal["float32", "bfloat16"]
RecoveryMethod = Literal["none", "lora", "distillation"]
Baseline = Literal["magnitude", "random"]
Measurement = Literal["latency", "memory"]

TARGETS = ("sparsity", "parameters", "macs", "bytes", "latency", "layers")
GRANULARITIES = (
    "unstructured", "n:m", "block", "neuron", "head", "channel", "layer", "expert", "hidden", "rank",
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


class Part(BaseModel):
    """Base of all parts of a specification: immutable, unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _fault(code: str, message: str) -> PydanticCustomError:
    # The message goes in by its context because pydantic would read braces in a template.
    return PydanticCustomError(code, "{message}", {"message": message})


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
    latency: Amount | None = Field(default=None, description="Time of a forward pass: a ratio or an amount.")
    layers: Annotated[Whole, Field(ge=1, le=4096)] | None = Field(
        default=None, description="Number of layers to remove (granularity layer)."
    )

    @field_validator("parameters", "macs", "bytes", "latency", mode="before")
    @classmethod
    def _amount(cls, value: Any, info: Any) -> Any:
        if value is None:
            return None
        if not isinstance(value, (int, float, str)):
            raise _fault("target_invalid", f"{info.field_name} must be a number or a string with a unit.")
        try:
            quantity(info.field_name, value)
        except OverflowError:
            raise _fault("target_invalid", f"{info.field_name} is beyond all models.") from None
        except ValueError as error:
            raise _fault("target_invalid", f"{error}.") from None
        return value

    @model_validator(mode="after")
    def _one(self) -> Target:
        given = [name for name in TARGETS if getattr(self, name) is not None]
        if len(given) != 1:
            what = "none is given" if not given else f"{' and '.join(given)} are given"
            raise _fault("target_invalid", f"Give exactly one of {', '.join(TARGETS)}: {what}.")
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
        default=None, description='"unstructured", n:m such as "2:4", blocks such as "16x16", or "layer".'
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
                raise _fault("granularity_invalid", f"{value}: n:m needs 1 <= n < m <= 32, such as 2:4.")
            return f"{n}:{m}"
        hints = {
            "n:m": 'write n:m with numbers, such as "2:4"',
            "block": 'write rows x columns, such as "16x16"',
            "1x1": 'single weights are "unstructured"',
        }
        hint = hints.get(value) or closest(value, GRANULARITIES)
        raise _fault("granularity_invalid", f"{value!r} is no granularity: {hint}.")

    @field_validator("ignore")
    @classmethod
    def _patterns(cls, value: list[str]) -> list[str]:
        from compression.anatomy.patterns import check_pattern

        for pattern in value:
            try:
                check_pattern(pattern)
            except ValueError as error:
                raise _fault("pattern_invalid", str(error)) from None
        return value


class Calibration(Part):
    """The text whose activations a criterion looks at."""

    dataset: Text = Field(description="Id of the dataset.")
    samples: Annotated[Whole, Field(ge=1, le=65536)] = Field(
        default=128, description="Sequences taken from it."
    )
    sequence_length: Annotated[Whole, Field(ge=2, le=1 << 20)] | None = Field(
        default=None,
        description="Tokens of a sequence; default: the model's context, at most 2048 (encoders 512).",
    )
    seed: Annotated[Whole, Field(ge=0, lt=1 << 63)] = Field(
        default=0, description="Seed of the choice of sequences."
    )
    batch_size: Annotated[Whole, Field(ge=1, le=4096)] = Field(
        default=8, description="Sequences run at once."
    )


class Budget(Part):
    """How much a recovery may cost."""

    steps: Annotated[Whole, Field(ge=1, le=1_000_000)] = Field(default=200, description="Optimiser steps.")


class Recovery(Part):
    """How quality is bought back after pruning. The string "none" is short for `{"method": "none"}`."""

    method: RecoveryMethod = Field(default="none", description="none, lora or distillation.")
    dataset: Text | None = Field(
        default=None, description="Id of the dataset; default: the calibration dataset."
    )
    budget: Budget = Field(default=Budget(), description="How much it may cost.")
    options: dict[str, Any] = Field(
        default={}, description="Options of the method, checked against its schema."
    )

    @model_validator(mode="before")
    @classmethod
    def _word(cls, value: Any) -> Any:
        if isinstance(value, str):
            if value == "none":
                return {"method": "none"}
            if value in get_args(RecoveryMethod):
                raise _fault(
                    "recovery_invalid", f'Only "none" may be a plain string: write {{"method": "{value}"}}.'
                )
            raise _fault(
                "recovery_invalid", f"{value!r} is no recovery: {closest(value, get_args(RecoveryMethod))}."
            )
        return value


class Gate(Part):
    """A bound on a metric of the pruned model: exactly one of the four. Ratios are pruned / dense."""

    metric: Text = Field(description="Name of the metric, such as perplexity, accuracy, bytes.")
    max: Real | None = Field(default=None, description="Largest value allowed.")
    min: Real | None = Field(default=None, description="Smallest value allowed.")
    max_ratio: Annotated[Real, Field(gt=0)] | None = Field(
        default=None, description="Largest pruned / dense allowed."
    )
    min_ratio: Annotated[Real, Field(gt=0)] | None = Field(
        default=None, description="Smallest pruned / dense allowed."
    )

    @model_validator(mode="after")
    def _one(self) -> Gate:
        bounds = ("max", "min", "max_ratio", "min_ratio")
        given = [name for name in bounds if getattr(self, name) is not None]
        if len(given) != 1:
            what = "none is given" if not given else f"{' and '.join(given)} are given"
            raise _fault("gate_invalid", f"A gate needs exactly one of {', '.join(bounds)}: {what}.")
        return self


class Evaluation(Part):
    """How the result is judged."""

    dataset: Text | None = Field(
        default=None, description="Id of the dataset; default: held out of the calibration set."
    )
    samples: Annotated[Whole, Field(ge=1, le=10_000_000)] | None = Field(
        default=None, description="Sequences or examples at most; default: 512 sequences, 2048 examples."
    )
    sequence_length: Annotated[Whole, Field(ge=2, le=1 << 20)] | None = Field(
        default=None, description="Tokens of a sequence; default: that of the calibration."
    )
    metrics: list[Text] | None = Field(
        default=None, max_length=16, description="Metrics; default: those of the task."
    )
    gates: list[Gate] = Field(
        default=[], max_length=32, description="Bounds; the report says which were met."
    )
    baselines: list[Baseline] = Field(
        default=[], max_length=8, description="The same target by simpler criteria."
    )
    measure: list[Measurement] = Field(
        default=["latency", "memory"], max_length=8, description="Costs to measure."
    )
    holdout: bool | None = Field(
        default=None,
        description="Filled in by the service: evaluation text is held out of the calibration dataset.",
    )

    @field_validator("metrics", "baselines", "measure")
    @classmethod
    def _once(cls, value: list[str] | None) -> list[str] | None:
        return None if value is None else list(dict.fromkeys(value))


class Output(Part):
    """What is written."""

    formats: list[Literal["safetensors"]] = Field(default=["safetensors"], min_length=1, max_length=4)
    dtype: Dtype | None = Field(
        default=None, description="Type of the written weights; default: as they came."
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
        named = [
            self.calibration.dataset if self.calibration else None,
            self.recovery.dataset if self.recovery.method != "none" else None,
            self.evaluation.dataset,
        ]
        return list(dict.fromkeys(name for name in named if name is not None))


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
