"""The files of a tokenizer and the settings of a model after rows of the vocabulary went. No torch."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from compression.errors import TokenizerInvalid
from compression.vocabulary.tokenizer_file import FILE, UNIGRAM, TokenizerFile, refuse

_ID_KEY = re.compile(r"(?:.*_)?token_ids?", re.ASCII)
# Other forms of the same vocabulary, which would not fit any more; tokenizer.json says all that they say.
_OTHER_FORMS = re.compile(
    r"vocab\.(?:json|txt)|merges\.txt|.*\.model|sentencepiece.*\.(?:json|vocab)", re.ASCII
)
_RENUMBERED = (FILE, "tokenizer_config.json", "generation_config.json", "added_tokens.json")


def token_ids(settings: Mapping[str, Any]) -> set[int]:
    """The token ids that settings name, under keys such as `eos_token_id`; -1 and null are none."""
    found: list[int] = []

    def note(number: int) -> int:
        found.append(number)
        return number

    for key, value in settings.items():
        if _ID_KEY.fullmatch(key):
            _map_ids(value, note)
    return set(found)


def renumbered(settings: Mapping[str, Any], places: Mapping[int, int], file: str) -> dict[str, Any]:
    """Settings with their token ids (see `token_ids`) as in the new vocabulary; `places`: old row -> new
    row. Raises TokenizerInvalid for an id that the model does not have."""

    def new(number: int) -> int:
        if number not in places:
            raise TokenizerInvalid(
                f"{file}: it names token {number}, which the model does not have.", pointer=file
            )
        return places[number]

    return {
        key: _map_ids(value, new) if _ID_KEY.fullmatch(key) else value for key, value in settings.items()
    }  # fmt: skip


def _map_ids(value: Any, new: Callable[[int], int]) -> Any:
    if isinstance(value, list):
        return [_map_ids(item, new) for item in value]
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        return value
    return new(value)


def trimmed(tokenizer: TokenizerFile, rows: Sequence[int]) -> dict[str, Any]:
    """tokenizer.json with only the tokens of these rows; their new ids are the places in `rows`. Merges
    stay, in their order, whose parts and result stay."""
    places = {row: place for place, row in enumerate(rows)}
    data = json.loads(json.dumps(tokenizer.data))
    model = data["model"]
    kept = {token: places[number] for token, number in tokenizer.vocabulary.items() if number in places}
    if tokenizer.kind == UNIGRAM:
        model["vocab"] = [piece for number, piece in enumerate(model["vocab"]) if number in places]
        if model.get("unk_id") is not None:
            model["unk_id"] = places[model["unk_id"]]
    else:
        model["vocab"] = dict(sorted(kept.items(), key=lambda item: item[1]))
    if tokenizer.merges:
        model["merges"] = [
            written
            for written, (left, right) in zip(model["merges"], tokenizer.merges, strict=True)
            if left in kept and right in kept and left + right in kept
        ]
    for token in data.get("added_tokens") or []:
        token["id"] = places[token["id"]]
    data["added_tokens"] = sorted(data.get("added_tokens") or [], key=lambda token: int(token["id"]))
    _renumber_processor(data.get("post_processor"), places)
    if data.get("padding"):
        data["padding"]["pad_id"] = places[data["padding"]["pad_id"]]
    return dict(data)


def _renumber_processor(processor: dict[str, Any] | None, places: Mapping[int, int]) -> None:
    if processor is None:
        return
    for part in processor.get("processors", ()):
        _renumber_processor(part, places)
    for special in dict(processor.get("special_tokens") or {}).values():
        special["ids"] = [places[number] for number in special["ids"]]
    for role in ("sep", "cls"):
        if role in processor:
            processor[role] = [processor[role][0], places[processor[role][1]]]


def check_ids(path: Path, ids: Mapping[str, int]) -> None:
    """Loads a tokenizer.json as every reader of it does. Raises TokenizerInvalid unless its tokens have
    these ids."""
    try:
        found = Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True)
    except Exception:  # the library raises bare exceptions, whose texts name paths
        refuse("the tokenizers library cannot read it")
    if found != dict(ids):
        wrong = next(token for token in {**ids, **found} if ids.get(token) != found.get(token))
        refuse(
            f"the token {wrong[:40]!r} has the id {ids.get(wrong)} in the file, but {found.get(wrong)} once "
            "it is read"
        )


def write_companions(
    source: Path, target: Path, paths: Sequence[Path], tokenizer: TokenizerFile, rows: Sequence[int]
) -> list[str]:
    """Write the files that go with the weights, `paths` under `source`, into the empty folder `target` with
    the ids of
    the new vocabulary. Returns the names of those left out: other forms of the vocabulary, and tokenizers in
    subfolders. Raises TokenizerInvalid."""
    places = {row: place for place, row in enumerate(rows)}
    left_out = []
    for path in paths:
        name = path.relative_to(source).as_posix()
        if _OTHER_FORMS.fullmatch(path.name) or ("/" in name and path.name in _RENUMBERED):
            left_out.append(name)
            continue
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if name not in _RENUMBERED:
            shutil.copyfile(path, target / name)
            continue
        data = json.loads(path.read_text(encoding="utf-8"))
        changed = trimmed(tokenizer, rows) if name == FILE else _settings(data, places, name)
        text = json.dumps(changed, indent=2, ensure_ascii=False)
        (target / name).write_text(text + "\n", encoding="utf-8")
    check_ids(target / FILE, {token: places[row] for token, row in tokenizer.ids().items() if row in places})
    return left_out


def _settings(data: Mapping[str, Any], places: Mapping[int, int], name: str) -> dict[str, Any]:
    if name == "added_tokens.json":
        return {token: places[number] for token, number in data.items() if number in places}
    changed = renumbered(data, places, name)
    decoder = changed.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        kept = {places[int(key)]: token for key, token in decoder.items() if int(key) in places}
        changed["added_tokens_decoder"] = {str(key): kept[key] for key in sorted(kept)}
    return changed
