"""Prune: rows of the vocabulary, with the tokenizer's entries."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from compression.anatomy.families import family_of
from compression.anatomy.vocabulary import reachable, rows_wanted
from compression.checkpoint import Store
from compression.criteria.tokens import Tokens
from compression.criteria.vocabulary import vocabulary_criteria
from compression.errors import TargetUnreachable, TokenizerInvalid
from compression.evaluation import stock
from compression.export.model import companions
from compression.loading.data import DataPlan
from compression.loading.weights import WeightReader
from compression.seeds import site_generator
from compression.stages.job import Data, Loaded, Pruned
from compression.vocabulary.rewriting import renumbered, token_ids, write_companions
from compression.vocabulary.selection import Bounds, Vocabulary
from compression.vocabulary.tokenizer_file import FILE, read_tokenizer

STEP, ROWS, COUNTS = "vocabulary", "vocabulary-rows", "token-counts"
BASELINES = {"magnitude": "norm", "random": "random"}
_ROLES = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
_GENERATION = "generation_config.json"


def prune_vocabulary(loaded: Loaded, data: Data, store: Store, criterion: str | None = None) -> Pruned:
    """Prune by the recipe, or by the criterion of a baseline ("magnitude", "random"). Raises
    TargetUnreachable, TokenizerInvalid.
    """
    name = str(loaded.specification.options["criterion"]) if criterion is None else BASELINES[criterion]
    vocabulary = _vocabulary(loaded)
    plan = data.plan if isinstance(data.plan, DataPlan) else None
    ends = () if plan is None else (plan.encoder.end, plan.encoder.pad)
    bounds = vocabulary.bounds(_named(loaded, ends))
    counts = _counts(loaded, plan)
    if not store.has(ROWS):
        worth = vocabulary_criteria[name].score(
            Tokens(vocabulary.rows, counts, lambda: _norms(loaded)),
            site_generator(loaded.specification.seed, STEP),
        )
        rows = vocabulary.keep(worth.tolist(), _wanted(loaded, bounds), bounds.required)
        store.save(ROWS, {"rows": torch.tensor(rows, dtype=torch.int64)}, {"kept": len(rows)})
    kept = store.load(ROWS)[0]["rows"]
    if not store.has(STEP):
        _save(loaded, store, kept)
    rows = kept.tolist()
    places = {row: place for place, row in enumerate(rows)}
    config = renumbered(_explicit(loaded), places, "config.json") | {"vocab_size": len(rows)}
    _check_positions(loaded, config)
    folder = loaded.work / "vocabulary" / (criterion or "recipe")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    left_out = write_companions(
        loaded.folder, folder, companions(loaded.folder), vocabulary.tokenizer, rows
    )  # fmt: skip
    if left_out and criterion is None:
        loaded.observer.log(f"Left out, as they hold the old vocabulary: {', '.join(left_out)}.")
    return Pruned(
        (store.path(STEP),),
        None,
        {},
        [],
        None,
        config=config,
        rows=kept,
        tokenizer=folder,
        specials=(places[ends[0]], places[ends[1]]) if ends else None,
        vocabulary=_account(vocabulary, bounds, rows, counts, name),
    )


def check_vocabulary(loaded: Loaded) -> None:
    """Look at the tokenizer before anything is measured: whether tokens can be removed from it, and whether
    the target leaves what must stay. Raises TokenizerInvalid, TargetUnreachable."""
    _wanted(loaded, _vocabulary(loaded).bounds(_named(loaded, ())))


def _vocabulary(loaded: Loaded) -> Vocabulary:
    return Vocabulary(read_tokenizer(loaded.folder / FILE), loaded.inspection.vocabulary)


def _wanted(loaded: Loaded, bounds: Bounds) -> int:
    specification, inspection = loaded.specification, loaded.inspection
    count, fewest = rows_wanted(specification, inspection), len(bounds.required)
    if count is None or count < fewest:
        target = specification.target
        raise TargetUnreachable(
            f"target.{target.kind} {target.value} leaves {count or 0:,} of {inspection.vocabulary:,} rows of "
            f"the vocabulary, but {fewest:,} must stay: {bounds.specials:,} special and added tokens and "
            f"{bounds.alphabet:,} without which some texts could not be encoded. Reachable: "
            f"{reachable(specification, inspection, fewest)}"
        )
    return count


def _counts(loaded: Loaded, plan: DataPlan | None) -> Tensor | None:
    """How often each token occurs, int64 [rows], kept as a step; None without calibration data."""
    calibration = loaded.specification.calibration
    if plan is None or calibration is None:
        return None
    if not loaded.store.has(COUNTS):
        found = plan.token_counts(calibration.dataset, lambda documents: loaded.hook("mid_block"))
        counts = torch.zeros(loaded.inspection.vocabulary, dtype=torch.int64)
        counts[torch.tensor(list(found), dtype=torch.int64)] = torch.tensor(
            list(found.values()), dtype=torch.int64
        )
        loaded.store.save(COUNTS, {"counts": counts}, {"tokens": int(counts.sum())})
        loaded.observer.log(
            f"Of the {len(counts):,} rows of the vocabulary {int(counts.count_nonzero()):,} occur among the "
            f"{int(counts.sum()):,} tokens of the calibration dataset."
        )
    return loaded.store.load(COUNTS)[0]["counts"]


def _tables(loaded: Loaded) -> tuple[WeightReader, tuple[str, ...]]:
    """The dense weights, and the names of the tensors with a row for every token, the embedding table
    first."""
    reader = WeightReader(loaded.folder)
    family = family_of(loaded.admission.architecture)
    return reader, family.vocabulary(loaded.admission.config, reader.names())


def _norms(loaded: Loaded) -> Tensor:
    reader, names = _tables(loaded)
    return torch.cat([rows.double().norm(dim=1) for _, rows in reader.rows(names[0])])


def _save(loaded: Loaded, store: Store, kept: Tensor) -> None:
    """Keep what is left of the tensors with a row for every token as a step."""
    reader, names = _tables(loaded)
    tensors = {}
    for number, name in enumerate(names):
        tensors[name] = reader.tensor(name).index_select(0, kept)
        loaded.observer.progress(number + 1, len(names))
    loaded.hook("mid_block")
    store.save(STEP, tensors, {"kept": len(kept)})


def _explicit(loaded: Loaded) -> dict[str, Any]:
    """The config, with the special tokens that it leaves to its class said: their defaults are ids of the
    dense vocabulary. A default beyond the vocabulary is none."""
    config, rows = dict(loaded.admission.config), loaded.inspection.vocabulary
    for role, number in stock.default_token_ids(str(config["model_type"]), _ROLES).items():
        if role not in config:
            config[role] = number if number < rows else None
    return config


def _named(loaded: Loaded, ends: Sequence[int]) -> set[int]:
    """The tokens that settings name, and those that end and fill texts. Of models that number positions from
    the padding token on, all rows up to it."""
    config = _explicit(loaded)
    found = {*token_ids(config), *ends}
    path = loaded.folder / _GENERATION
    if path.exists():
        found |= token_ids(json.loads(path.read_text(encoding="utf-8")))
    outside = [number for number in found if number >= loaded.inspection.vocabulary]
    if outside:
        raise TokenizerInvalid(
            f"{_GENERATION}: it names token {outside[0]}, which the model does not have.", pointer=_GENERATION
        )
    if family_of(loaded.admission.architecture).counts_from_padding:
        found |= set(range(int(config["pad_token_id"])))
    return found


def _check_positions(loaded: Loaded, config: dict[str, Any]) -> None:
    family = family_of(loaded.admission.architecture)
    if family.counts_from_padding and config["pad_token_id"] != loaded.admission.config["pad_token_id"]:
        raise TokenizerInvalid(
            "tokenizer.json: the padding token, from which positions are numbered, would get another id.",
            pointer=FILE,
        )


def _account(
    vocabulary: Vocabulary, bounds: Bounds, rows: Sequence[int], counts: Tensor | None, criterion: str
) -> dict[str, Any]:
    """What the report says of the vocabulary."""
    seen = None if counts is None else int(counts.sum())
    covered = None if counts is None or not seen else int(counts[torch.tensor(rows)].sum()) / seen
    return {
        "dense": vocabulary.rows,
        "kept": len(rows),
        "sparsity": 1 - len(rows) / vocabulary.rows,
        "criterion": criterion,
        "required": {"specials": bounds.specials, "alphabet": bounds.alphabet},
        "counted_tokens": seen,
        "covered": covered,
        "segmentation": None,
    }
