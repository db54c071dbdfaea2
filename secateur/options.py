"""The options of `compress` and `plan`, each with its help text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

MODEL, DATA, REPAIR, CHECK, RUN = "Model", "Data", "Recovery", "Evaluation", "Run"

ModelPath = Annotated[
    str,
    Argument(
        metavar="PATH",
        help="Folder of a transformers model, an ONNX file, or the id of a model uploaded before.",
    ),
]
Sparsity = Annotated[
    float | None, Option(help="Fraction of the prunable weights to set to zero, such as 0.5.")
]
Macs = Annotated[
    str | None,
    Option(
        metavar="VALUE",
        help="Multiply-accumulates that stay: a ratio such as 0.5, or an amount such as 1.5G.",
    ),
]
Target = Annotated[
    str | None,
    Option(
        metavar="KIND=VALUE",
        help="Another target: parameters=0.7, macs=0.6, bytes=1.2GB, latency=40ms, layers=2.",
    ),
]
Recipe = Annotated[
    str | None,
    Option(
        help="How to prune (`secateur recipes list`). Default: wanda, or magnitude without data, "
        "or layer-drop for layers."
    ),
]
Granularity = Annotated[
    str | None,
    Option(
        help="What is removed as one: unstructured, 2:4 or another n:m, neuron, head, neuron+head, hidden, "
        "neuron+hidden, neuron+head+hidden, expert, layer, rank."
    ),
]
Ignore = Annotated[
    list[str] | None,
    Option(metavar="PATTERN", help="Leave these weights alone (glob, or re:...). Repeatable."),
]
Options = Annotated[
    list[str] | None, Option("--option", metavar="KEY=VALUE", help="An option of the recipe. Repeatable.")
]
Calibration = Annotated[
    str | None,
    Option(
        metavar="FILE",
        help="Calibration data: text (.jsonl, .txt), images (.parquet, .npz, .zip, .tar), or a dataset id.",
        rich_help_panel=DATA,
    ),
]
Samples = Annotated[
    int | None, Option(help="Calibration sequences, or images, to use.", rich_help_panel=DATA)
]
SequenceLength = Annotated[int | None, Option(help="Tokens per calibration sequence.", rich_help_panel=DATA)]
Evaluation = Annotated[
    str | None,
    Option(
        metavar="FILE",
        help="Data to measure quality on, or a dataset id. Default: a held-out part of the calibration data.",
        rich_help_panel=CHECK,
    ),
]
Domain = Annotated[
    str | None,
    Option(
        metavar="FILE",
        help="Text of a domain, for recipes that weigh it against the calibration text (d-pruner).",
        rich_help_panel=DATA,
    ),
]
DomainEvaluation = Annotated[
    str | None,
    Option(
        metavar="FILE",
        help="Text of a domain to measure quality on apart. Default: a held-out part of --domain.",
        rich_help_panel=CHECK,
    ),
]
EvaluationSamples = Annotated[
    int | None, Option(help="Sequences to measure on. Default: all there are.", rich_help_panel=CHECK)
]
Metric = Annotated[list[str] | None, Option(help="Quality metric. Repeatable.", rich_help_panel=CHECK)]
Gate = Annotated[
    list[str] | None,
    Option(
        metavar="RULE",
        help="What the result must meet: 'perplexity<=1.1x' (of dense), 'accuracy>=0.9'. Repeatable.",
        rich_help_panel=CHECK,
    ),
]
Baseline = Annotated[
    list[str] | None,
    Option(help="Also prune this way for comparison: magnitude, random. Repeatable.", rich_help_panel=CHECK),
]
Recovery = Annotated[
    str | None,
    Option(
        help="Buy quality back: none, lora, distillation; of ONNX distillation, batchnorm.",
        rich_help_panel=REPAIR,
    ),
]
RecoverySteps = Annotated[int | None, Option(help="Training steps of the recovery.", rich_help_panel=REPAIR)]
RecoveryData = Annotated[
    str | None,
    Option(metavar="FILE", help="Data to recover on. Default: the calibration text.", rich_help_panel=REPAIR),
]
RecoveryOption = Annotated[
    list[str] | None,
    Option(metavar="KEY=VALUE", help="An option of the recovery. Repeatable.", rich_help_panel=REPAIR),
]
Dtype = Annotated[
    str | None, Option(help="Type of the written weights: float32 or bfloat16.", rich_help_panel=RUN)
]
Format = Annotated[
    list[str] | None,
    Option(
        metavar="FORMAT",
        help="Another format beside the safetensors: gguf, for llama.cpp. Repeatable.",
        rich_help_panel=RUN,
    ),
]
Layout = Annotated[
    str | None,
    Option(
        help="How layers of widths of their own are written: padded (with zeros, a stock checkpoint) or "
        "packaged (with the code that loads it); low-rank weights are packaged.",
        rich_help_panel=RUN,
    ),
]
Seed = Annotated[int | None, Option(help="Seed of everything random.", rich_help_panel=RUN)]
LimitSeconds = Annotated[int | None, Option(help="Stop the job after this time.", rich_help_panel=RUN)]
Queue = Annotated[str | None, Option(help="Which workers: cpu or gpu.", rich_help_panel=RUN)]
Priority = Annotated[int | None, Option(help="0 to 9; higher goes first.", rich_help_panel=RUN)]
Metadata = Annotated[
    list[str] | None,
    Option(metavar="KEY=VALUE", help="A note kept with the job. Repeatable.", rich_help_panel=RUN),
]
Spec = Annotated[
    Path | None,
    Option(
        metavar="FILE",
        help="A job specification in JSON to start from; other options go over it.",
        rich_help_panel=RUN,
    ),
]
Name = Annotated[str | None, Option(help="Name of the model. Default: the folder's.", rich_help_panel=RUN)]
Out = Annotated[
    Path | None, Option(metavar="DIR", help="Where the smaller model and its reports are written.")
]
NoStart = Annotated[
    bool,
    Option(
        "--no-start", help="Upload and plan only: say what would be done, start no job.", rich_help_panel=RUN
    ),
]
NoWait = Annotated[
    bool, Option("--no-wait", help="Print the job's id and leave it running.", rich_help_panel=RUN)
]
Json = Annotated[bool, Option("--json", help="Print results as JSON.")]
Quiet = Annotated[bool, Option("--quiet", "-q", help="Show no progress.")]
