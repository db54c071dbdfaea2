"""Recover, evaluate, export, verify: from the pruned weights to an artifact that the stock loader reads."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compression.anatomy import inspect
from compression.anatomy.hidden_width import with_skips
from compression.anatomy.inspection import Inspection
from compression.anatomy.ranks import with_ranks
from compression.anatomy.residual import is_skip
from compression.anatomy.varied import Counts, varied
from compression.evaluation import probe
from compression.evaluation.cost import cost
from compression.evaluation.measure import measure, with_pruned_memory
from compression.evaluation.quality import evaluate
from compression.evaluation.types import TEXT_TO_TEXT, TensorSource
from compression.export import verify
from compression.export.artifact import Artifact, ArtifactInputs, weight_bytes, write_artifact
from compression.export.model import WrittenModel, rewritten_config, write_model
from compression.export.per_layer.dictionaries import DictionarySource, dictionary_settings
from compression.export.per_layer.layout import CODE, PerLayerSource, per_layer_settings, stock_settings
from compression.loading.data import Sequences
from compression.loading.images.plan import Images
from compression.loading.streamed import StreamedModel, trimmed_config
from compression.loading.weights import WeightReader
from compression.recovery.registry import recover
from compression.recovery.types import RecoveryContext
from compression.stages.data import evaluation_length, recovery_rows
from compression.stages.job import Data, Loaded, Pruned, Watched
from compression.stages.retold import check_rows
from compression.stages.timing import correct, predicted
from compression.stages.varied import write_packaged

# What the artifact is verified on: few enough to keep whole logits, from the evaluation data where there is
# any.
VERIFIED_SEQUENCES = 4
VERIFIED_TOKENS = 64


@dataclass(frozen=True)
class Final:
    """The model as it will be written: where its weights are, and its settings.

    `source` holds the weights; `settings` describe them; `kept` are the layers of the source that stay
    (None: all); `recovery` is the account of the recovery (None: there was none).
    """

    source: WeightReader
    settings: Mapping[str, Any]
    kept: tuple[int, ...] | None
    model: StreamedModel
    folder: Path | None = None
    recovery: Mapping[str, Any] | None = field(default=None)


def write_pruned(loaded: Loaded, pruned: Pruned, folder: Path) -> None:
    """The pruned model as a folder that the stock loader reads, in the dtype of the result."""
    shutil.rmtree(folder, ignore_errors=True)
    write_model(
        folder,
        pruned.source(loaded),
        pruned.settings(loaded),
        pruned.companions(loaded),
        kept=pruned.kept,
        dtype=loaded.output_dtype,
    )


def finish(loaded: Loaded, data: Data, pruned: Pruned) -> Final:
    """Recover, if the specification asks for it."""
    spec = loaded.specification
    if spec.recovery.method == "none":
        return Final(pruned.source(loaded), pruned.settings(loaded), pruned.kept, pruned.model(loaded))
    folder, output = loaded.work / "pruned", loaded.work / "recovered"
    write_pruned(loaded, pruned, folder)
    shutil.rmtree(output, ignore_errors=True)
    result = recover(
        RecoveryContext(
            method=spec.recovery.method,
            options=spec.recovery.options,
            steps=spec.recovery.budget.steps,
            seed=spec.seed,
            task=loaded.admission.task,
            pruned=folder,
            dense=loaded.folder,
            output=output,
            masks=pruned.masks,
            data=recovery_rows(loaded, data),
            store=loaded.store,
            observer=loaded.observer,
            device=str(loaded.device),
            sites=written_sites(loaded, pruned),
            rows=pruned.rows,
        )
    )
    settings = rewritten_config(pruned.settings(loaded), pruned.kept, loaded.output_dtype)
    files = list(result.files)
    source = WeightReader(folder, files)
    history = {"method": result.method, **result.history}
    if packaged(loaded, pruned):
        written = write_packaged(loaded, source, pruned, loaded.work / "packaged")
        model = replace(pruned, written=written).model(loaded)
    else:
        model = StreamedModel(
            folder, settings, loaded.admission.family, loaded.device, loaded.result_dtype, overlay=files
        )
    return Final(source, settings, None, model, folder, history)


def written_sites(loaded: Loaded, pruned: Pruned) -> list[str]:
    """Names of the weight sites in the written model."""
    if pruned.ranks:
        return [site.name for site in with_ranks(loaded.inspection, pruned.ranks).sites]
    config: Mapping[str, Any] = trimmed_config(pruned.settings(loaded), pruned.kept)
    names = WeightReader(loaded.work / "pruned").names()
    if pruned.skips:
        config, names = stock_settings(config), [name for name in names if not is_skip(name)]
    return [site.name for site in inspect(config, names).sites]


def quality(loaded: Loaded, batches: Sequences | Images, model: StreamedModel) -> dict[str, Any]:
    """Quality of a model on evaluation batches."""
    metrics = loaded.specification.evaluation.metrics or []
    watched = Watched(model, loaded.observer.progress)
    return evaluate(watched, batches, metrics, text_bytes=getattr(batches, "text_bytes", None))


def costs(loaded: Loaded, pruned: Pruned, final: Final) -> dict[str, Any]:
    """What the dense, the pruned and (after a recovery) the recovered model cost."""
    dense = WeightReader(loaded.folder)
    found = {
        "dense": cost(
            dense,
            loaded.inspection,
            sequence_length=evaluation_length(loaded),
            weight_bytes=weight_bytes(loaded.folder),
        ),
        "pruned": written_cost(
            loaded,
            pruned.source(loaded),
            pruned.kept,
            trimmed_config(pruned.settings(loaded), pruned.kept),
            pruned,
        ),
    }
    if final.recovery is not None:
        found["recovered"] = written_cost(loaded, final.source, final.kept, final.settings, pruned)
    return found


def packaged(loaded: Loaded, pruned: Pruned) -> Counts:
    """How many units each layer keeps in a result that is written with code of its own; else nothing."""
    return pruned.counts if loaded.specification.output.layout == "packaged" else {}


def written_cost(
    loaded: Loaded,
    source: WeightReader,
    kept: tuple[int, ...] | None,
    settings: Mapping[str, Any],
    pruned: Pruned,
) -> dict[str, Any]:
    """What a model will cost once it is written; `settings` are those of the written one."""
    written = WrittenModel(source, kept, loaded.output_dtype)
    inspection, counts = written_inspection(loaded, written, settings, pruned), packaged(loaded, pruned)
    if counts:
        written = WrittenModel(PerLayerSource(source, settings, counts), kept, loaded.output_dtype)
        inspection = varied(inspection, counts)
    elif pruned.atoms > 1:
        packed = DictionarySource(source, pruned.ranks, pruned.atoms)
        written = WrittenModel(packed, kept, loaded.output_dtype)
    return cost(
        written,
        inspection,
        sequence_length=evaluation_length(loaded),
        weight_bytes=written.bytes,
        kept_only=True,
    )


def written_inspection(
    loaded: Loaded, written: TensorSource, settings: Mapping[str, Any], pruned: Pruned
) -> Inspection:
    """The anatomy of a model as it will be written; of layers with widths of their own, of the padded one."""
    if pruned.ranks:
        return with_ranks(loaded.inspection, pruned.ranks, pruned.atoms)
    names = written.names()
    if pruned.skips:
        settings, names = stock_settings(settings), [name for name in names if not is_skip(name)]
    found = inspect(settings, names, has_tokenizer=loaded.inspection.has_tokenizer)
    return with_skips(loaded.specification, found) if pruned.skips else found


def export(loaded: Loaded, pruned: Pruned, final: Final, figures: Mapping[str, Any]) -> Artifact:
    """Write the artifact under `work/artifact`; what an earlier attempt left there is written anew."""
    folder = loaded.work / "artifact"
    shutil.rmtree(folder, ignore_errors=True)

    def after_file(done: int, total: int) -> None:
        loaded.observer.progress(done, total)
        loaded.hook("mid_export")

    source: TensorSource = final.source
    settings, counts = final.settings, packaged(loaded, pruned)
    if counts:
        source, settings = PerLayerSource(source, settings, counts), per_layer_settings(settings, counts)
    elif pruned.atoms > 1:
        source = DictionarySource(source, pruned.ranks, pruned.atoms)
        settings = dictionary_settings(settings, pruned.atoms)
    return write_artifact(
        ArtifactInputs(
            folder=folder,
            source=source,
            settings=settings,
            copy_from=pruned.companions(loaded),
            task=loaded.admission.task,
            specification=loaded.specification.to_json(),
            model_files=loaded.files,
            datasets=loaded.datasets,
            versions=loaded.versions,
            figures=figures,
            recipe_title=loaded.recipe.title,
            masks={} if counts or pruned.ranks else pruned.masks,
            code=CODE if counts or pruned.ranks or pruned.skips else None,
            kept=final.kept,
            layers=pruned.kept,
            units=pruned.units,
            rows=None if pruned.rows is None else pruned.rows.tolist(),
            dtype=loaded.output_dtype,
            after_file=after_file,
        )
    )


def check(
    loaded: Loaded, data: Data, pruned: Pruned, final: Final, artifact: Artifact
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Verify the artifact in a clean process, then measure it; (verification, measurements). Where rows of
    the vocabulary went and nothing was trained, the outputs are those of the dense model's rows that stay.

    Raises ArtifactVerificationFailed.
    """
    batches = fixed_batches(loaded, data, int(final.settings.get("vocab_size", loaded.inspection.vocabulary)))
    with torch.no_grad():
        outputs = [output.cpu() for output in final.model.outputs(batches)]
    inputs = probe.write_inputs(loaded.work / "expected.safetensors", batches, outputs, loaded.admission.task)
    threads, device = loaded.request.threads, str(loaded.device)
    counted = "memory" in loaded.specification.evaluation.measure
    verified = verify.run(
        artifact.folder, inputs, threads=threads, device=device, interpreter=counted
    )  # fmt: skip
    if pruned.rows is not None and final.recovery is None:
        verified["vocabulary"] = check_rows(loaded, pruned, batches, outputs)
    loaded.observer.progress(1, 2)
    measured = measure(
        loaded.folder,
        artifact.folder,
        work=loaded.work / "scratch",
        inputs=inputs,
        measure=loaded.specification.evaluation.measure,
        threads=threads,
        device=device,
    )
    latency = measured["latency"]
    if latency is not None:
        promised = latency["predicted"] = predicted(loaded, pruned)
        if promised is not None:
            correct(loaded, promised, latency)
    loaded.observer.progress(2, 2)
    return verified, with_pruned_memory(measured, verified)


def fixed_batches(loaded: Loaded, data: Data, vocabulary: int) -> list[dict[str, Tensor]]:
    """Batches to verify on: the first evaluation (or calibration) rows, cut; else made from the
    seed, of a vocabulary of this size.
    """
    source = data.evaluation or data.calibration
    if source is None:
        generator = torch.Generator().manual_seed(loaded.specification.seed % (1 << 63))
        image = loaded.inspection.image
        if image is not None:
            return [{"pixel_values": torch.randn(VERIFIED_SEQUENCES, *image, generator=generator)}]
        length = min(VERIFIED_TOKENS, loaded.inspection.context)
        size = (VERIFIED_SEQUENCES, length)
        names = ["input_ids"] + ["decoder_input_ids"] * (loaded.admission.task == TEXT_TO_TEXT)
        return [{name: torch.randint(0, vocabulary, size, generator=generator) for name in names}]
    first = source.batches[0]
    cut = {name: value[:VERIFIED_SEQUENCES] for name, value in first.items() if name != "labels"}
    if "pixel_values" not in cut:
        cut = {name: value[:, :VERIFIED_TOKENS] for name, value in cut.items()}
    return [{name: value.contiguous() for name, value in cut.items()}]
