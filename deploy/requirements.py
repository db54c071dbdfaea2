"""Print what pip installs in an image, from pyproject.toml alone: those layers do not depend on the source.

requirements.py service|worker          the requirements of the base install and of that extra, one a line
requirements.py --torch VARIANT         the requirement of torch alone: any, cpu or cuda
requirements.py --check-torch VARIANT   exit 1 and say so when the installed torch is of another variant
"""
# ruff: noqa: T201

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

VARIANTS = ("any", "cpu", "cuda")


def requirements(project: dict[str, object], extra: str) -> list[str]:
    """Requirements of the base install and of `extra`, with `name[extra]` of the project itself unfolded."""
    extras = project["optional-dependencies"]
    assert isinstance(extras, dict)
    found: list[str] = list(project["dependencies"])  # type: ignore[call-overload]
    waiting = [extra]
    while waiting:
        for requirement in extras[waiting.pop()]:
            own = re.fullmatch(rf"{project['name']}\[([\w,-]+)\]", requirement)
            if own:
                waiting.extend(own.group(1).split(","))
            else:
                found.append(requirement)
    return sorted(set(found))


def torch_requirement(version: str, variant: str) -> str:
    """The pinned torch as one build. `+cpu` is how the CPU build names itself; any other build is not it."""
    return {
        "any": f"torch=={version}",
        "cpu": f"torch=={version}+cpu",
        "cuda": f"torch=={version},!={version}+cpu",
    }[variant]


def pinned(constraints: str, name: str) -> str:
    """The exact version that the constraints file gives to `name`."""
    found = re.search(rf"^{name}==(\S+)$", constraints, re.MULTILINE)
    if found is None:
        raise SystemExit(f"constraints.txt pins no {name}")
    return found.group(1)


def main() -> None:
    """Print what was asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("extra", nargs="?")
    parser.add_argument("--torch", choices=VARIANTS)
    parser.add_argument("--check-torch", choices=VARIANTS)
    arguments = parser.parse_args()
    version = pinned(Path("constraints.txt").read_text(), "torch")
    if arguments.torch:
        print(torch_requirement(version, arguments.torch))
    elif arguments.check_torch:
        installed = metadata.version("torch")
        wanted = arguments.check_torch
        is_cpu = installed.endswith("+cpu")
        print(f"torch {installed}")
        if installed.split("+")[0] != version or (wanted != "any" and is_cpu != (wanted == "cpu")):
            sys.exit(f"TORCH_VARIANT={wanted} of torch {version} was asked for, {installed} was installed")
    else:
        project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
        print("\n".join(requirements(project, arguments.extra)))


if __name__ == "__main__":
    main()
