"""Report inputs as a pipeline gives them, for three kinds of jobs; the figures are made up."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

from compression.report import ReportInputs

SHAPES = {
    "self_attn.q_proj": [256, 256],
    "self_attn.k_proj": [128, 256],
    "self_attn.v_proj": [128, 256],
    "self_attn.o_proj": [256, 256],
    "mlp.gate_proj": [704, 256],
    "mlp.up_proj": [704, 256],
    "mlp.down_proj": [256, 704],
}


def sites(layers: int, sparsity: float) -> list[dict[str, Any]]:
    return [
        {
            "name": f"model.layers.{layer}.{name}.weight",
            "layer": layer,
            "kind": name.split(".")[1].removesuffix("_proj"),
            "shape": shape,
            "nonzeros": prod(shape) - round(sparsity * prod(shape)),
            "sparsity": round(sparsity * prod(shape)) / prod(shape),
            "compressibility": spread(prod(shape), sparsity, layer),
        }
        for layer in range(layers)
        for name, shape in SHAPES.items()
    ]


def spread(size: int, sparsity: float, layer: int) -> dict[str, Any]:
    left = size - round(sparsity * size)
    return {"count": left, "index": 0.25 - 0.3 * sparsity + 0.01 * layer, "removable": left // 3}


def cost(layers: int, sparsity: float, dtype: str = "float32") -> dict[str, Any]:
    rows = sites(layers, sparsity)
    prunable = sum(prod(row["shape"]) for row in rows)
    kept = sum(row["nonzeros"] for row in rows)
    other = 1_054_976
    macs = 128 * (prunable + 256 * 4096) + layers * 2 * 128 * 128 * 256
    return {
        "parameters": prunable + other,
        "nonzeros": kept + other,
        "prunable_parameters": prunable,
        "prunable_nonzeros": kept,
        "sparsity": 1 - kept / prunable,
        "bytes": (prunable + other) * (4 if dtype == "float32" else 2) + 6048,
        "dtype": dtype,
        "layers": layers,
        "macs": macs,
        "macs_nonzero": macs - 128 * (prunable - kept),
        "sequence_length": 128,
        "sites": rows,
    }


def result(perplexity: float | None, divergence: float | None = None) -> dict[str, Any]:
    return {
        "metrics": {"loss": 4.05, "perplexity": perplexity},
        "counts": {"batches": 10, "sequences": 80, "tokens": 10240, "predicted_tokens": 10160},
        "divergence": divergence
        and {
            "mean_kl": divergence,
            "top1_agreement": 0.78,
            "max_abs_logit_difference": 9.3,
            "positions": 10240,
        },
    }


def times(median: float) -> dict[str, Any]:
    return {
        "median": median,
        "p10": median * 0.96,
        "p90": median * 1.11,
        "repeats": 20,
        "tokens_per_second": 128 / median,
    }


def latency(ratio: float) -> dict[str, Any]:
    cases = [
        ("forward", "one sequence of 128 tokens at once", 128, 0.0213),
        ("generate", "16 new tokens one by one after a prompt of 32", 16, 0.121),
    ]
    return {
        "device": "AMD EPYC 9B14",
        "threads": 1,
        "runtime": "transformers 5.23.0, torch 2.13.0+cpu",
        "interleaved": True,
        "dtype": {"dense": "float32", "pruned": "float32"},
        "cases": [
            {
                "name": name,
                "what": what,
                "batch": 1,
                "tokens": tokens,
                "dense": times(base),
                "pruned": times(base * ratio),
                "ratio": ratio,
                "ratio_range": [ratio * 0.97, ratio * 1.03],
            }
            for name, what, tokens, base in cases
        ],
    }


def memory(dense: int, pruned: int) -> dict[str, Any]:
    def part(model: int) -> dict[str, Any]:
        return {
            "process_bytes": 300_000_000 + model,
            "import_bytes": 300_000_000,
            "model_bytes": model,
            "device_bytes": None,
        }

    return {
        "dense": part(dense),
        "pruned": part(pruned),
        "figure": "model_bytes",
        "ratio": pruned / dense,
    }


def curve(steps: int) -> list[dict[str, Any]]:
    points: list[dict[str, Any]] = [{"step": 0, "loss": None, "held_out": 0.61, "rate": 0.0}]
    points += [
        {
            "step": n,
            "loss": 0.2 + 0.4 * 0.97**n + 0.02 * (n % 3),
            "held_out": 0.23 + 0.38 * 0.97**n,
            "rate": 1e-3,
        }
        for n in range(25, steps + 1, 25)
    ]
    return points


def language_model() -> ReportInputs:
    """Wanda at one half with LoRA, all that can be measured measured."""
    pruned = cost(6, 0.5)
    return ReportInputs(
        specification={
            "model": "mdl_01",
            "recipe": "wanda",
            "target": {"sparsity": 0.5},
            "structure": {"granularity": "unstructured", "ignore": []},
            "calibration": {"dataset": "dst_01", "samples": 128, "seed": 0},
            "recovery": {"method": "lora", "budget": {"steps": 200}},
            "evaluation": {
                "gates": [{"metric": "perplexity", "max_ratio": 1.2}, {"metric": "sparsity", "min": 0.5}],
                "baselines": ["magnitude", "random"],
            },
            "seed": 0,
        },
        recipe={
            "name": "wanda",
            "title": "Wanda",
            "summary": "Weight magnitude times the norm of its input.",
            "paper": {
                "title": "A Simple and Effective Pruning Approach for Large Language Models",
                "authors": "Sun, Liu, Bair, Kolter",
                "venue": "ICLR 2024",
                "arxiv": "2306.11695",
            },
        },
        model={
            "architecture": "LlamaForCausalLM",
            "family": "llama",
            "task": "text-generation",
            "layers": 6,
            "hidden": 256,
        },
        cost={"dense": cost(6, 0.0), "pruned": pruned, "recovered": pruned},
        quality={"dense": result(57.7), "pruned": result(93.2, 0.52), "recovered": result(66.4, 0.21)},
        data={
            "calibration": {"documents": 40, "sequences": 128, "tokens": 16384, "sha256": "a" * 64},
            "evaluation": {"documents": 12, "sequences": 80, "tokens": 10240, "sha256": "b" * 64},
            "recovery": None,
            "overlap": {"calibration": 0},
        },
        artifact={
            "bytes": 22_500_000,
            "files": [
                {"path": "config.json", "bytes": 700, "sha256": "c" * 64},
                {"path": "model.safetensors", "bytes": 21_908_352, "sha256": "d" * 64},
            ],
        },
        inputs={"model": {"model.safetensors": "e" * 64}, "datasets": {"dst_01": "f" * 64}},
        versions={"secateur": "0.1.0", "torch": "2.13.0+cpu", "transformers": "5.23.0", "python": "3.11.7"},
        device={"type": "cpu", "name": "AMD EPYC 9B14", "threads": 1},
        seconds={
            "load": 0.4,
            "baseline": 3.2,
            "calibrate": 0.9,
            "prune": 4.4,
            "recover": 41.0,
            "verify": 9.1,
        },
        baselines={
            "magnitude": {"quality": result(141.0, 0.9), "domain": None},
            "random": {"quality": result(None, None), "domain": None},
        },
        facts=[
            {
                "name": row["name"],
                "reconstruction_error": 0.02 + 0.015 * row["layer"] + 0.01 * (row["kind"] == "down"),
                "weight_error": 0.21,
            }
            for row in pruned["sites"]
        ],
        recovery={
            "method": "lora",
            "steps": 200,
            "best_step": 200,
            "held_out_samples": 12,
            "training_samples": 116,
            "trained_parameters": 417_792,
            "curve": curve(200),
            "stopped": None,
            "loss": "distillation",
            "options": {"rank": 16},
        },
        measured={"latency": latency(1.01), "memory": memory(48_000_000, 48_500_000)},
        verification={"ok": True, "max_abs_difference": 0.0, "tolerance": 1e-5},
    )


def dropped_layers() -> ReportInputs:
    """Two of six layers gone, nothing trained, a gate that fails."""
    base = language_model()
    specification = dict(base.specification) | {
        "recipe": "layer-drop",
        "target": {"layers": 2},
        "structure": {"granularity": "layer", "ignore": []},
        "recovery": {"method": "none"},
        "evaluation": {"gates": [{"metric": "perplexity", "max": 60.0}]},
    }
    return replace(
        base,
        specification=specification,
        recipe={
            "name": "layer-drop",
            "title": "Layer drop",
            "summary": "Drops a run of layers.",
            "paper": None,
        },
        cost={"dense": cost(6, 0.0), "pruned": cost(4, 0.0)},
        quality={"dense": result(57.7), "pruned": result(212.5, 1.4), "recovered": None},
        baselines={},
        facts=(),
        dropped={
            "criterion": "angular",
            "selection": "run",
            "gone": [2, 3],
            "kept": [0, 1, 4, 5],
            "tried": [
                {"layers": [start, start + 1], "cost": cost}
                for start, cost in ((1, 0.31), (2, 0.22), (3, 0.29))
            ],
            "tokens": 2048,
        },
        recovery=None,
        measured={"latency": latency(0.71), "memory": memory(48_000_000, 36_000_000)},
    )


def classifier() -> ReportInputs:
    """A classifier at 2:4 in bfloat16, nothing timed; one class has a name from a stranger."""
    truth = [0, 0, 0, 1, 1, 2, 2, 2]

    def judged(predictions: list[int], divergence: float | None) -> dict[str, Any]:
        labels = ["negative", "<script>alert(1)</script>", "neutral"]
        right = sum(a == b for a, b in zip(truth, predictions, strict=True))
        return {
            "metrics": {"accuracy": right / len(truth), "loss": 0.4},
            "counts": {"batches": 1, "sequences": 8, "tokens": 90},
            "classes": [
                {
                    "label": label,
                    "examples": truth.count(n),
                    "correct": sum(a == b == n for a, b in zip(truth, predictions, strict=True)),
                    "predicted": predictions.count(n),
                }
                for n, label in enumerate(labels)
            ],
            "truth": truth,
            "predictions": predictions,
            "divergence": divergence
            and {
                "mean_kl": divergence,
                "top1_agreement": 0.75,
                "max_abs_logit_difference": 2.0,
                "positions": 8,
            },
        }

    base = language_model()
    specification = dict(base.specification) | {
        "recipe": "magnitude",
        "structure": {"granularity": "2:4", "ignore": []},
        "recovery": {"method": "none"},
        "evaluation": {"gates": [], "measure": []},
        "metadata": {"note": "</pre><script>alert(2)</script>"},
    }
    return replace(
        base,
        specification=specification,
        recipe={"name": "magnitude", "title": "Magnitude", "summary": "The smallest go.", "paper": None},
        model=dict(base.model)
        | {"architecture": "BertForSequenceClassification", "task": "text-classification", "family": "bert"},
        cost={"dense": cost(6, 0.0), "pruned": cost(6, 0.5, "bfloat16")},
        quality={
            "dense": judged([0, 0, 0, 1, 1, 2, 2, 0], None),
            "pruned": judged([0, 0, 1, 1, 1, 2, 2, 2], 0.1),
            "recovered": None,
        },
        data=dict(base.data) | {"overlap": {"calibration": 3}},
        baselines={},
        recovery=None,
        measured={"latency": None, "memory": None},
    )


def unjudged() -> ReportInputs:
    """No evaluation data, nothing measured."""
    base = dropped_layers()
    return replace(
        base,
        quality={"dense": None, "pruned": None, "recovered": None},
        data={"calibration": None, "evaluation": None, "recovery": None, "overlap": {}},
        measured={"latency": None, "memory": None},
    )


def of_a_domain() -> ReportInputs:
    """The first job with text of a domain, on which everything went otherwise."""
    base = language_model()
    evaluation = {
        "gates": [{"metric": "domain_perplexity", "max_ratio": 1.5}],
        "domain": {"dataset": "dst_02"},
    }
    calibration = dict(base.specification["calibration"]) | {"domain": {"dataset": "dst_02", "seed": 3}}
    return replace(
        base,
        specification=dict(base.specification) | {"evaluation": evaluation, "calibration": calibration},
        domain_quality={
            "dense": result(41.5),
            "pruned": result(71.25, 0.61),
            "recovered": result(45.75, 0.11),
        },
        data=dict(base.data)
        | {
            "domain_calibration": {"documents": 9, "sequences": 20, "tokens": 2560, "sha256": "1" * 64},
            "domain_evaluation": {"documents": 3, "sequences": 5, "tokens": 640, "sha256": "2" * 64},
            "domain_overlap": {"calibration": 2, "domain_calibration": 0},
        },
        baselines={"magnitude": {"quality": result(141.0), "domain": result(163.5)}},
    )
