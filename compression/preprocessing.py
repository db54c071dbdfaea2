"""How an image becomes the input of a model: resize, crop, rescale, normalise. No torch and no image library.

Names and order are those of transformers' image processors, so a `preprocessor_config.json` can be read and a
job can say the same words. `Preprocessing` is a part of the job specification; what the job leaves out comes
from the model's file, and what that leaves out from the processor that it names. A model without the file
gets `of_model`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

MAXIMUM_SIDE = 1 << 14
MAXIMUM_CHANNELS = 64

Side = Annotated[int, Field(strict=True, ge=1, le=MAXIMUM_SIDE)]
Flag = Annotated[bool, Field(strict=True)] | None
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
PerChannel = Annotated[list[Number], Field(min_length=1, max_length=MAXIMUM_CHANNELS)]


def _fault(message: str) -> PydanticCustomError:
    return PydanticCustomError("preprocessing_invalid", "{message}", {"message": message})


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Size(_Part):
    """`height` and `width`, or `shortest_edge`: that long, the other in proportion. A number means a
    square."""

    height: Side | None = None
    width: Side | None = None
    shortest_edge: Side | None = None

    @model_validator(mode="before")
    @classmethod
    def _square(cls, value: Any) -> Any:
        return {"height": value, "width": value} if isinstance(value, int) else value

    @model_validator(mode="after")
    def _one(self) -> Size:
        both = self.height is not None and self.width is not None
        neither = self.height is None and self.width is None
        if not (both and self.shortest_edge is None) and not (neither and self.shortest_edge is not None):
            raise _fault("A size is height and width, or shortest_edge alone.")
        return self


class Preprocessing(_Part):
    """How images become inputs; default: the model's preprocessor_config.json."""

    do_resize: Flag = Field(default=None, description="Whether images are resized.")
    size: Size | None = Field(default=None, description="To what: height and width, or shortest_edge.")
    resample: Annotated[int, Field(strict=True, ge=0, le=5)] | None = Field(
        default=None,
        description="The filter: 0 nearest, 1 lanczos, 2 bilinear, 3 bicubic, 4 box, 5 hamming.",
    )
    do_center_crop: Flag = Field(default=None, description="Whether the centre is cut out.")
    crop_size: Size | None = Field(default=None, description="Height and width of the centre.")
    do_rescale: Flag = Field(default=None, description="Whether values are multiplied.")
    rescale_factor: Annotated[Number, Field(gt=0)] | None = Field(
        default=None, description="By what, such as 1/255."
    )
    do_normalize: Flag = Field(default=None, description="Whether (x - mean) / deviation is taken.")
    image_mean: PerChannel | None = Field(default=None, description="Mean of each channel, or one for all.")
    image_std: PerChannel | None = Field(default=None, description="Deviation of each, or one for all.")

    @field_validator("crop_size")
    @classmethod
    def _sides(cls, value: Size | None) -> Size | None:
        if value is not None and value.shortest_edge is not None:
            raise _fault("crop_size is height and width.")
        return value

    @field_validator("image_mean", "image_std", mode="before")
    @classmethod
    def _alone(cls, value: Any) -> Any:
        return [value] if isinstance(value, int | float) and not isinstance(value, bool) else value

    @field_validator("image_std")
    @classmethod
    def _positive(cls, value: list[float] | None) -> list[float] | None:
        if value is not None and min(value) <= 0:
            raise _fault("image_std must be above 0.")
        return value

    def over(self, base: Preprocessing) -> Preprocessing:
        """This, with what it leaves open taken from `base`."""
        given = {
            name: value for name in type(self).model_fields if (value := getattr(self, name)) is not None
        }
        return base.model_copy(update=given)

    def output(self) -> tuple[int, int] | None:
        """Height and width of what comes out; None where that depends on the image."""
        chosen = self.crop_size if self.do_center_crop else self.size if self.do_resize else None
        if chosen is None or chosen.height is None or chosen.width is None:
            return None
        return chosen.height, chosen.width


_HALF = [0.5]  # for all channels, however many there are
_CLIP_MEAN, _CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


def _complete(
    size: Size, crop: Size | None, resample: int, mean: list[float], std: list[float]
) -> Preprocessing:
    return Preprocessing(
        do_resize=True,
        size=size,
        resample=resample,
        do_center_crop=crop is not None,
        crop_size=crop or Size(height=224, width=224),
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=True,
        image_mean=mean,
        image_std=std,
    )


def _square(side: int) -> Size:
    return Size(height=side, width=side)


_CLIP = _complete(Size(shortest_edge=224), _square(224), 3, _CLIP_MEAN, _CLIP_STD)
PROCESSORS: Mapping[str, Preprocessing] = {
    "ViT": _complete(_square(224), None, 2, _HALF, _HALF),
    "DeiT": _complete(_square(256), _square(224), 3, _HALF, _HALF),
    "CLIP": _CLIP,
    "Bit": _CLIP,
}
"""What transformers' image processors do where their file says nothing."""


def of_model(height: int, width: int) -> Preprocessing:
    """What a model without a preprocessor_config.json gets: the image resized to its size (bilinear),
    rescaled to 0...1 and normalised with mean and deviation 0.5, as ViT's processor does."""
    return PROCESSORS["ViT"].model_copy(update={"size": Size(height=height, width=width)})


def complete(data: Mapping[str, Any], processor: str) -> Preprocessing:
    """What the settings of a processor ("ViT", ...) mean, with its defaults. Raises ValueError that names the
    key."""
    base = PROCESSORS[processor]
    values = dict(data)
    side = values.get("size")
    if (
        isinstance(side, int)
        and not isinstance(side, bool)
        and base.size is not None
        and base.size.shortest_edge
    ):
        values["size"] = {"shortest_edge": side}
    try:
        found = Preprocessing.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))[:80]
        raise ValueError(f"{place}: {first['msg'].rstrip('.')}.") from None
    return found.over(base)
