"""Options and recipes of the channels of graphs."""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Any, Literal

from pydantic import Field

from compression.anatomy.graph import CHANNEL, FAMILY
from compression.graphs.allocation import NORMALISE
from compression.graphs.criteria import CRITERIA
from compression.graphs.pruning import SHARE_KEPT
from compression.graphs.schedules import SCHEDULES
from compression.graphs.schedules.base import ONE_SHOT
from compression.recipes.base import Paper, Recipe, RecipeOptions, options_model
from compression.recipes.training import schedule_fields

TARGETS = ("macs", "parameters", "sparsity", "bytes", "latency")
UPDATES = {
    "none": "What stays keeps its weights.",
    "bias": "Readers of what went get the mean of what it gave them, added to their biases.",
    "moments": "Readers give every channel the mean and deviation that it had, as BatchNorms do.",
    "least-squares": "Readers are fitted to what they gave in the dense graph, by least squares over data.",
    "combination": "Readers take over what went as linear combinations of what stays, by the filters that "
    "make both; reads no data.",
}
ALLOCATIONS = {
    "global": "The units with the lowest scores of all groups go.",
    "uniform": "Every group gives the same share of its units.",
    "knapsack": "The units go whose scores sum to least for what the target counts, each at its own price.",
    "floors": "Group after group gives units as long as no output gets worse than its floor, which falls "
    "from round to round.",
}
WITHOUT_DATA = frozenset({"none", "combination"})
"""Updates that read no data."""
LABELLED = frozenset({"gradient.sum", "gradient.group"})
"""What cannot be measured without the class of every sample."""


def channel_options(name: str, **defaults: Any) -> type[RecipeOptions]:
    """The options of a recipe of channels with its own defaults. ValueError for a default that is no
    option."""
    return options_model(name, _fields(), "channels", defaults)


@lru_cache(maxsize=1)
def _fields() -> dict[str, tuple[Any, Any]]:
    return {
        "criterion": (
            Literal[tuple(CRITERIA.names())],
            Field("group-l2", description="What a unit (channels that go as one) is worth."),
        ),
        "update": (
            Literal[tuple(UPDATES)],
            Field("none", description="What happens to the weights that stay."),
        ),
        **_SHARES,
        **_choice_fields(),
        **_data_fields(),
        **schedule_fields(),
        "sizes": (
            dict[str, Annotated[int, Field(ge=1, le=1 << 20)]],
            Field(
                {},
                max_length=32,
                description="Lengths of named axes of the inputs other than the batch, for which costs are "
                "counted: such as length: 128.",
            ),
        ),
    }


def _choice_fields() -> dict[str, tuple[Any, Any]]:
    """What may go, and how little may be left of it."""
    return {
        "units": (
            Literal["all", "mlp"],
            Field(
                "all",
                description="What may go: all units, or hidden neurons between two matrices alone (MLPs).",
            ),
        ),
        "minimum_share": (
            float,
            Field(SHARE_KEPT, ge=0, le=1, description="Share of every group's units that stays at least."),
        ),
        "channel_multiple": (
            int,
            Field(
                1,
                ge=1,
                le=1024,
                description="Channels that stay of a group are a multiple of it, or all. Runtimes compute "
                "convolutions in blocks of 8 or 16 channels, so that other numbers save less time. A head "
                "counts as the channels that it is wide. For a target of latency a multiple of 8, which is "
                "then the default.",
            ),
        ),
    }


def _data_fields() -> dict[str, tuple[Any, Any]]:
    """What criteria and updates see."""
    return {
        "data": (
            Literal["images", "synthetic"],
            Field(
                "images",
                description="What criteria and updates see: calibration images, or inputs made without data, "
                "drawn to fit the statistics that BatchNorms remember, or noise with the spectrum of "
                "photographs where the graph has none (exporters fold most). They have no labels.",
            ),
        ),
        "synthetic_samples": (
            int,
            Field(256, ge=1, le=65536, description="How many synthetic inputs are made."),
        ),
        "class_weights": (
            Literal["none", "balanced"],
            Field(
                "none",
                description="What a calibration image weighs in the statistics of the criterion: all the "
                "same, or so that all classes weigh the same (needs labels). Updates weigh images the same.",
            ),
        ),
    }


_SHARES: dict[str, tuple[Any, Any]] = {
    "allocation": (
        Literal[tuple(ALLOCATIONS)],
        Field("global", description="How many units every group gives."),
    ),
    "normalise": (
        Literal[tuple(NORMALISE)],
        Field(
            "mean",
            description="What scores are divided by before groups are compared: the mean or the largest size "
            "of their group's, or nothing, for criteria that are comparable.",
        ),
    ),
    "floor_rise": (
        float,
        Field(
            0.05,
            gt=0,
            le=1000,
            description="Floors: by which share the loss of the calibration images may rise in the first "
            "round. The loss is the cross entropy, or without labels the squared distance to the dense "
            "output over its energy.",
        ),
    ),
    "floor_rounds": (int, Field(8, ge=1, le=100, description="Floors: how many rounds at most.")),
    "floor_relax": (
        float,
        Field(2.0, ge=1, le=100, description="Floors: how much more the loss may rise with every round."),
    ),
    "floor_share": (
        float,
        Field(0.125, gt=0, le=1, description="Floors: share of a group's units that go in one step."),
    ),
}


def data_needs(
    criterion: str,
    update: str,
    schedule: str = ONE_SHOT,
    allocation: str = "global",
    data: str = "images",
) -> frozenset[str]:
    """What a criterion, an update, a schedule and an allocation ask of a job: "calibration", "labels", or
    nothing."""
    needs, trains = CRITERIA[criterion].needs, SCHEDULES[schedule].trains
    looks = bool(needs) or update not in WITHOUT_DATA or allocation == "floors"
    if not trains and (data != "images" or not looks):
        return frozenset()
    return frozenset({"calibration"} | ({"labels"} if needs & LABELLED else set()))


def channel_recipe(name: str, title: str, summary: str, paper: Paper | None, **defaults: Any) -> Recipe:
    """A recipe that removes channels of graphs."""
    options = channel_options("".join(part.title() for part in name.split("-")), **defaults)
    chosen: Any = options()
    return Recipe(
        name=name,
        title=title,
        summary=summary,
        paper=paper,
        needs=data_needs(chosen.criterion, chosen.update, chosen.schedule, chosen.allocation, chosen.data),
        families=(FAMILY,),
        granularities=(CHANNEL,),
        targets=TARGETS,
        options=options,
        axes={
            "criterion": chosen.criterion,
            "allocation": chosen.allocation,
            "update": chosen.update,
            "schedule": chosen.schedule,
        },
    )
