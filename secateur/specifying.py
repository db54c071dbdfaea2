"""From words on a command line to a job specification."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from secateur.errors import InputInvalid

_GATE = re.compile(r"^\s*([A-Za-z_][\w.-]*)\s*(<=|>=)\s*([0-9.eE+-]+)\s*(x?)\s*$")
_BOUNDS = {("<=", ""): "max", (">=", ""): "min", ("<=", "x"): "max_ratio", (">=", "x"): "min_ratio"}


@dataclass(frozen=True)
class Wish:
    """What was asked for on the command line; None means the service decides."""

    base: Mapping[str, Any] = field(default_factory=dict)
    recipe: str | None = None
    target: Mapping[str, Any] | None = None
    granularity: str | None = None
    ignore: Sequence[str] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    samples: int | None = None
    sequence_length: int | None = None
    recovery: str | None = None
    recovery_steps: int | None = None
    recovery_options: Mapping[str, Any] = field(default_factory=dict)
    evaluation_samples: int | None = None
    metrics: Sequence[str] = ()
    gates: Sequence[Mapping[str, Any]] = ()
    baselines: Sequence[str] = ()
    dtype: str | None = None
    formats: Sequence[str] = ()
    layout: str | None = None
    seed: int | None = None
    limit_seconds: int | None = None
    queue: str | None = None
    priority: int | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Texts:
    """Datasets by what they are for: files or ids on the command line, ids in a specification."""

    calibration: str | None = None
    evaluation: str | None = None
    recovery: str | None = None
    domain: str | None = None
    domain_evaluation: str | None = None

    def given(self) -> list[str]:
        """Those that were named."""
        return [value for value in vars(self).values() if value]

    def replaced(self, ids: Mapping[str, str]) -> Texts:
        """The same with ids in place of the names in `ids`."""
        return Texts(**{name: ids.get(value or "", value) for name, value in vars(self).items()})


def specification(wish: Wish, model: str, texts: Texts) -> dict[str, Any]:
    """The JSON to send. Only what was asked for is in it, so that the service's defaults hold otherwise."""
    spec = json.loads(json.dumps(dict(wish.base)))
    spec["model"] = model
    if wish.target:
        spec["target"] = dict(wish.target)
    structure = _merge(spec.get("structure"), granularity=wish.granularity, ignore=list(wish.ignore))
    sample = _merge(
        spec.get("calibration"),
        dataset=texts.calibration,
        samples=wish.samples,
        sequence_length=wish.sequence_length,
        domain=_inner(spec.get("calibration"), texts.domain),
    )
    repair = spec.get("recovery") if isinstance(spec.get("recovery"), Mapping) else None
    repair = _merge(repair, method=wish.recovery, dataset=texts.recovery, options=dict(wish.recovery_options))
    if wish.recovery_steps is not None:
        repair = {**repair, "budget": {**repair.get("budget", {}), "steps": wish.recovery_steps}}
    check = _merge(
        spec.get("evaluation"),
        dataset=texts.evaluation,
        samples=wish.evaluation_samples,
        metrics=list(wish.metrics),
        gates=[dict(gate) for gate in wish.gates],
        baselines=list(wish.baselines),
        domain=_inner(spec.get("evaluation"), texts.domain_evaluation),
    )
    sections = {
        "structure": structure,
        "options": _merge(spec.get("options"), **wish.options),
        "calibration": sample,
        "recovery": repair or spec.get("recovery"),
        "evaluation": check,
        "output": _merge(
            spec.get("output"), dtype=wish.dtype, formats=_formats(wish.formats), layout=wish.layout
        ),
        "limits": _merge(spec.get("limits"), seconds=wish.limit_seconds),
        "metadata": _merge(spec.get("metadata"), **wish.metadata),
        "recipe": wish.recipe
        or spec.get("recipe")
        or _usual_recipe(spec.get("target") or {}, structure, sample),
        "seed": wish.seed,
        "queue": wish.queue,
        "priority": wish.priority,
    }
    spec.update({key: value for key, value in sections.items() if value not in (None, {}, [])})
    return dict(spec)


def read_base(path: Path | None) -> dict[str, Any]:
    """A specification from a file; the command line is laid over it.

    Raises: InputInvalid.
    """
    if path is None:
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputInvalid(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise InputInvalid(f"{path} is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise InputInvalid(f"{path} must hold one JSON object, a job specification.")
    return data


def target(sparsity: float | None, given: str | None, macs: str | None = None) -> dict[str, Any] | None:
    """The target from `--sparsity 0.5`, `--macs 0.5`, or `--target parameters=0.7`, `bytes=1.2GB`,
    `layers=2`.

    Raises: InputInvalid.
    """
    if sum(one is not None for one in (sparsity, given, macs)) > 1:
        raise InputInvalid("Give one of --sparsity, --macs and --target, not both.")
    if sparsity is not None:
        return {"sparsity": sparsity}
    if macs is not None:
        return {"macs": loose_value(macs.strip())}
    if given is None:
        return None
    kind, mark, value = given.partition("=")
    if not mark or not kind.strip() or not value.strip():
        raise InputInvalid(
            f"--target {given!r}: write KIND=VALUE, such as parameters=0.7, bytes=1.2GB or layers=2."
        )
    return {kind.strip(): loose_value(value.strip())}


def gate(text: str) -> dict[str, Any]:
    """A gate: `perplexity<=30` and `accuracy>=0.9` bound the value, `perplexity<=1.1x` its ratio to dense.

    Raises: InputInvalid.
    """
    match = _GATE.match(text)
    if not match:
        raise InputInvalid(
            f"--gate {text!r}: write METRIC<=NUMBER or METRIC>=NUMBER, with x for a ratio: perplexity<=1.1x"
        )
    metric, sign, value, ratio = match.groups()
    try:
        bound = float(value)
    except ValueError as error:
        raise InputInvalid(f"--gate {text!r}: {value!r} is not a number.") from error
    return {"metric": metric, _BOUNDS[sign, ratio]: bound}


def assignments(option: str, given: Sequence[str], *, plain: bool = False) -> dict[str, Any]:
    """`key=value` arguments as a dict; values are JSON where they read as such, else (or with `plain`) text.

    Raises: InputInvalid.
    """
    result: dict[str, Any] = {}
    for item in given:
        key, mark, value = item.partition("=")
        if not mark or not key.strip():
            raise InputInvalid(f"{option} {item!r}: write KEY=VALUE.")
        result[key.strip()] = value if plain else loose_value(value)
    return result


def loose_value(text: str) -> Any:
    """What the text means in JSON (a number, true, null, a list, an object); otherwise the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _merge(base: Any, **given: Any) -> dict[str, Any]:
    merged = dict(base or {})
    merged.update({key: value for key, value in given.items() if value not in (None, [], {})})
    return merged


def _formats(given: Sequence[str]) -> list[str]:
    """What is asked for, after the safetensors, which are always written; empty if nothing is."""
    return list(dict.fromkeys(["safetensors", *given])) if given else []


def _inner(base: Any, dataset: str | None) -> dict[str, Any]:
    """The domain of a section, with its dataset."""
    return _merge(base.get("domain") if isinstance(base, Mapping) else None, dataset=dataset)


def _usual_recipe(target: Mapping[str, Any], structure: Mapping[str, Any], sample: Mapping[str, Any]) -> str:
    if "layers" in target or structure.get("granularity") == "layer":
        return "layer-drop"
    if structure.get("granularity") in ("neuron", "head", "neuron+head"):
        return "flap" if sample.get("dataset") else "magnitude-width"
    if structure.get("granularity") in ("hidden", "neuron+hidden", "neuron+head+hidden"):
        return "minitron-width" if sample.get("dataset") else "magnitude-width"
    if structure.get("granularity") == "expert":
        return "expert-drop" if sample.get("dataset") else "magnitude-width"
    if structure.get("granularity") == "vocabulary":
        return "vocab-trim"
    if structure.get("granularity") == "rank":
        return "svd-llm" if sample.get("dataset") else "svd"
    return "wanda" if sample.get("dataset") else "magnitude"
