"""How many architectures prune to half of their multiply-accumulates: exports of every kind, one by one.

`tests/bench/graph_zoo/setup` first (environments that have timm, TensorFlow and scikit-learn), then
`script/bench graph_breadth [--only NAME ...] [--source NAME] [--again] [--faulty]`. Every architecture is
built with random weights, exported and pruned in processes of its own, each with a time limit. Runs that
were broken off go on where they were; exported graphs are kept beside the environments.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.bench.common import RESULTS, ROOT, table, write
from tests.bench.graph_zoo.entries import PLACE, SOURCES, Architecture, architectures

EXPORT_SECONDS, PRUNE_SECONDS, ANALYSIS_SECONDS = 180, 180, 60
"""Of processor time: a machine that does other work besides must not decide what succeeds."""
PATIENCE = 15
"""How many times as long a process may take in all."""
KEPT = RESULTS / "graph_breadth.json"
SCRIPTS = {"TensorFlow": "tensorflow_models", "scikit-learn": "sklearn_models"}
PACKAGES = ("timm", "tensorflow-cpu", "tf2onnx", "scikit-learn", "skl2onnx")
VERSIONS = """
import sys
from importlib.metadata import version
print(*(f"{name} {version(name)}" for name in sys.argv[1:]), sep=", ")
"""

Found = dict[str, Any]


class Failed(Exception):
    """A process that failed; the text is its last line, or says that its time was over."""


def python(source: str) -> str:
    """The Python that builds the architectures of a source."""
    name = SOURCES[source][0]
    return str(PLACE / name / "bin" / "python") if name else sys.executable


def child(command: Sequence[str], seconds: int, threads: int) -> str:
    """The last line that a process prints. Failed if it fails, takes more processor time, or hangs."""
    environment = {
        **os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "PYTHONHASHSEED": "0",
        "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1",
    }  # fmt: skip
    process = subprocess.Popen(
        ["nice", "-n", "19", *command], cwd=ROOT, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5)),
    )  # fmt: skip
    try:
        out, err = process.communicate(timeout=seconds * PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise Failed(f"hangs: not done after {seconds * PATIENCE} s") from None
    if process.returncode == -signal.SIGXCPU:
        raise Failed(f"not done after {seconds} s of processor time")
    if process.returncode:
        lines = [line for line in err.splitlines() if line.strip()] or [f"ended with {process.returncode}"]
        raise Failed(lines[-1].strip()[:300])
    return (out.splitlines() or [""])[-1]


def exported(one: Architecture, threads: int) -> Path:
    """The architecture as a file, made once. Failed if its exporter fails."""
    place = PLACE / "graphs" / f"{''.join(c if c.isalnum() else '_' for c in one.name)}.onnx"
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        new = place.with_suffix(".new")
        script = SCRIPTS.get(one.source)
        what = [f"tests/bench/graph_zoo/{script}.py"] if script else ["-m", "tests.bench.graph_zoo.export"]
        child([python(one.source), *what, one.name, str(new)], EXPORT_SECONDS, threads)
        new.rename(place)
    return place


def tried(one: Architecture, threads: int) -> Found:
    """What comes of one architecture."""
    try:
        place = exported(one, threads)
    except Failed as error:
        return {"fault": f"no export: {error}", "exported": False}
    try:
        line = child(
            [sys.executable, "-m", "tests.bench.graph_zoo.prune", str(place)], PRUNE_SECONDS, threads
        )
    except Failed as error:
        return {"fault": str(error), "exported": True}
    found: Found = json.loads(line)
    if not found["fault"] and found["analysis_seconds"] > ANALYSIS_SECONDS:
        found["fault"] = f"the analysis takes {found['analysis_seconds']:.0f} s"
    return found | {"exported": True}


def versions() -> str:
    """What made and ran the networks."""
    from importlib.metadata import version

    told = [f"{name} {version(name)}" for name in ("onnxruntime", "onnx", "onnxscript")]
    for name, (place, _) in SOURCES.items():
        if not place or not Path(python(name)).exists():
            continue
        packages = [
            one for one in PACKAGES if one in (ROOT / f"tests/bench/graph_zoo/{place}.txt").read_text()
        ]
        told.append(child([python(name), "-c", VERSIONS, *packages], 60, 1))
    return ", ".join(told)


def summary(results: Mapping[str, Found], listed: Mapping[str, Architecture]) -> list[list[Any]]:
    """By source: architectures tried, those that an exporter gave, those that succeed."""
    rows: list[list[Any]] = []
    for source in SOURCES:
        mine = [results[name] for name, one in listed.items() if one.source == source and name in results]
        if mine:
            given = [found for found in mine if found["exported"]]
            rows.append([source, len(mine), len(given), sum(not found["fault"] for found in given)])
    rows.append(["all", *(sum(row[place] for row in rows) for place in (1, 2, 3))])
    return rows


def report(results: Mapping[str, Found], listed: Mapping[str, Architecture], made_with: str) -> None:
    """Write the table."""
    rows, faults = [], []
    for name, one in listed.items():
        found = results.get(name)
        if found is None:
            continue
        if found["fault"]:
            faults.append([name, one.source, found["fault"].replace("|", "/")])
        if "ratio" in found:
            rows.append(
                [name, one.source, found["nodes"], found["macs"] / 1e6]
                + [found[key] for key in ("ratio", "parameters", "exact", "runtime")]
                + [found["analysis_seconds"], found["seconds"], "no" if found["fault"] else "yes"]
            )
    counted = summary(results, listed)
    text = (
        "Random weights, small images. Half of the multiply-accumulates go by `group-l2`, in one shot. A "
        "success keeps at most 0.52 of them, is as the masked network to 1e-5 and in ONNX Runtime as in "
        f"torch to 1e-4 (of the largest output where that is above 1), and is analysed in {ANALYSIS_SECONDS} "
        "s. "
        "Seconds are of processor time, the last ones of analysis, choice, cut and checks. "
        f"{made_with}."
    )
    measured = [
        "MACs left",
        "parameters left",
        "cut - masked",
        "ONNX Runtime - torch",
        "analysis, s",
        "in all, s",
    ]
    head = ["architecture", "source", "nodes", "million MACs", *measured, "success"]
    write(
        "graph_breadth", "Architectures pruned to half", "script/bench graph_breadth", text,
        table(["source", "architectures", "exported", "pruned"], counted),
        "## What fails, and why", table(["architecture", "source", "reason"], faults),
        "## Each", table(head, rows),
    )  # fmt: skip


def kept() -> dict[str, Found]:
    """The results so far."""
    return json.loads(KEPT.read_text()) if KEPT.exists() else {}


def keep(results: Mapping[str, Found], listed: Mapping[str, Architecture]) -> None:
    """Write the results, in the order of the list."""
    new = KEPT.with_suffix(".new")
    new.write_text(json.dumps({one: results[one] for one in listed if one in results}, indent=1) + "\n")
    new.replace(KEPT)


def wanted(
    listed: Mapping[str, Architecture], results: Mapping[str, Found], arguments: argparse.Namespace
) -> list[str]:
    """The architectures that are to be tried now."""
    names = [
        name
        for name, one in listed.items()
        if (not arguments.only or name in arguments.only) and arguments.source in {None, one.source}
    ]
    missing = set(arguments.only or ()) - set(listed)
    if missing:
        sys.exit(f"there is no architecture {', '.join(sorted(missing))}")
    if arguments.again:
        return names
    return [name for name in names if name not in results or (arguments.faulty and results[name]["fault"])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", metavar="NAME")
    parser.add_argument("--source", choices=SOURCES)
    parser.add_argument("--again", action="store_true", help="also what there is a result of")
    parser.add_argument("--faulty", action="store_true", help="also what failed before")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    listed = architectures()
    results = kept()
    names = wanted(listed, results, arguments)
    lacking = {
        place
        for name in names
        if not Path(python(listed[name].source)).exists()
        for place in [SOURCES[listed[name].source][0]]
    }
    if lacking:
        sys.exit(
            f"this benchmark needs tests/bench/graph_zoo/setup to be run first ({', '.join(sorted(lacking))})"
        )
    for name in names:
        found = tried(listed[name], arguments.threads)
        results = kept() | {name: found}
        print(f"{name}: {results[name]['fault'] or 'pruned'}", flush=True)
        keep(results, listed)
    report(results, listed, versions())


if __name__ == "__main__":
    main()
