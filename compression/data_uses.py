"""The parts of a specification that read data: calibration, recovery, evaluation. No torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from compression.parts import Part, Real, Text, Whole, fault
from compression.suggestions import closest

RecoveryMethod = Literal["none", "lora", "distillation", "batchnorm"]
Baseline = Literal["magnitude", "random"]
Measurement = Literal["latency", "memory"]


class DomainCalibration(Part):
    """The text of a domain, such as medicine, beside the general text of `calibration.dataset`."""

    dataset: Text = Field(description="Id of the dataset with the domain's text.")
    samples: Annotated[Whole, Field(ge=1, le=65536)] | None = Field(
        default=None, description="Sequences taken from it; default: calibration.samples."
    )
    sequence_length: Annotated[Whole, Field(ge=2, le=1 << 20)] | None = Field(
        default=None, description="Tokens of a sequence; default: calibration.sequence_length."
    )
    seed: Annotated[Whole, Field(ge=0, lt=1 << 63)] | None = Field(
        default=None, description="Seed of the choice of sequences; default: calibration.seed."
    )
    batch_size: Annotated[Whole, Field(ge=1, le=4096)] | None = Field(
        default=None, description="Sequences run at once; default: calibration.batch_size."
    )


class Calibration(Part):
    """The text whose activations a criterion looks at. Where there is a domain too, this is the general text:
    what the model must still be able to do besides."""

    dataset: Text = Field(description="Id of the dataset; with calibration.domain, that of the general text.")
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
    domain: DomainCalibration | None = Field(
        default=None, description="The text of a domain, for recipes that need one (d-pruner)."
    )


class Budget(Part):
    """How much a recovery may cost."""

    steps: Annotated[Whole, Field(ge=1, le=1_000_000)] = Field(default=200, description="Optimiser steps.")


class Recovery(Part):
    """How quality is bought back after pruning. The string "none" is short for `{"method": "none"}`."""

    method: RecoveryMethod = Field(
        default="none",
        description="none, lora or distillation; of a graph (ONNX) none, distillation or batchnorm.",
    )
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
                raise fault(
                    "recovery_invalid", f'Only "none" may be a plain string: write {{"method": "{value}"}}.'
                )
            raise fault(
                "recovery_invalid", f"{value!r} is no recovery: {closest(value, get_args(RecoveryMethod))}."
            )
        return value


class Gate(Part):
    """A bound on a metric of the pruned model: exactly one of the four. Ratios are pruned / dense."""

    metric: Text = Field(
        description="Name of the metric, such as perplexity, bytes; domain_perplexity: on the domain."
    )
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
            raise fault("gate_invalid", f"A gate needs exactly one of {', '.join(bounds)}: {what}.")
        return self


class DomainEvaluation(Part):
    """How the result is judged on the text of a domain, reported apart from the general text."""

    dataset: Text | None = Field(
        default=None, description="Id of the dataset; default: held out of the domain's calibration set."
    )
    samples: Annotated[Whole, Field(ge=1, le=10_000_000)] | None = Field(
        default=None, description="Sequences or examples at most; default: evaluation.samples."
    )
    sequence_length: Annotated[Whole, Field(ge=2, le=1 << 20)] | None = Field(
        default=None, description="Tokens of a sequence; default: evaluation.sequence_length."
    )
    holdout: bool | None = Field(
        default=None,
        description="Filled in by the service: the text is held out of a dataset that the job learns from.",
    )


class Evaluation(Part):
    """How the result is judged; with a domain, `evaluation.dataset` is the general text."""

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
    domain: DomainEvaluation | None = Field(
        default=None,
        description="Quality on the text of a domain, by the same metrics, reported apart; with any recipe.",
    )

    @field_validator("metrics", "baselines", "measure")
    @classmethod
    def _once(cls, value: list[str] | None) -> list[str] | None:
        return None if value is None else list(dict.fromkeys(value))
