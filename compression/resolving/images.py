"""How the images of a job become inputs, and whether that suits the model. No torch."""

from __future__ import annotations

from compression.preprocessing import Preprocessing, of_model
from compression.resolving.draft import Draft

CHANNELS = (1, 3)
"""Images are grey or RGB; of other channels no file tells which is which."""


def resolve_preprocessing(draft: Draft) -> None:
    """Fills in the preprocessing of a job that reads images, from the model's own, and refuses what does not
    fit."""
    image, given = draft.inspection.image, draft.specification.preprocessing
    if image is None:
        if given is not None:
            draft.refuse(
                "/preprocessing",
                "Leave it out: this model takes text, not images.",
                "preprocessing_unsupported",
            )
        return
    if given is None and not draft.specification.datasets():
        return
    channels, height, width = image
    if channels not in CHANNELS:
        draft.refuse(
            "/model",
            f"This model takes images of {channels} channels; only grey and RGB images can be read. "
            "Prune it without "
            "data, by magnitude for instance.",
            "preprocessing_unsupported",
        )
        return
    own = draft.inspection.preprocessing
    if own is None and given is None:
        draft.refuse(
            "/preprocessing",
            "The model's preprocessor_config.json asks for steps that are not known here: say what "
            "to do with "
            "images instead (size, do_center_crop, crop_size, resample, rescale_factor, image_mean, "
            "image_std).",
            "preprocessing_missing",
        )
        return
    base = of_model(height, width) if own is None else Preprocessing.model_validate(own)
    found = base if given is None else given.over(base)
    _check(draft, found, image)
    draft.replace(preprocessing=found)


def _check(draft: Draft, found: Preprocessing, image: tuple[int, int, int]) -> None:
    channels, height, width = image
    for name in ("image_mean", "image_std"):
        values = getattr(found, name) or []
        if found.do_normalize and len(values) not in (1, channels):
            draft.refuse(
                f"/preprocessing/{name}",
                f"It has {len(values)} values, but the model's images have {channels} "
                f"channel{'s' if channels > 1 else ''}: give one value, or {channels}.",
                "preprocessing_invalid",
            )
    output = found.output()
    if output != (height, width):
        key = "crop_size" if found.do_center_crop else "size"
        what = "images of different sizes" if output is None else f"{output[0]} x {output[1]} pixels"
        draft.refuse(
            f"/preprocessing/{key}",
            f"It gives {what}, but the model takes {height} x {width} (height x width): write "
            f'"preprocessing": {{"{key}": {{"height": {height}, "width": {width}}}}}.',
            "preprocessing_invalid",
        )
