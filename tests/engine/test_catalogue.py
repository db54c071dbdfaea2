"""The generated files are fresh, and the engine's own command works."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from compression import __main__ as command
from compression import catalogue
from compression.generate import catalogue as generated
from compression.generate import catalogue_text, methods_text
from compression.recipes import recipes
from tests.tiny_models import tiny_llama

ROOT = Path(__file__).resolve().parents[2]


def test_the_catalogue_is_fresh():
    assert catalogue.PATH.read_text(encoding="utf-8") == catalogue_text(), (
        "run: python -m compression catalogue"
    )


def test_the_methods_page_is_fresh():
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert page == methods_text(), "run: python -m compression methods"


def test_the_catalogue_loads_without_torch():
    code = "import sys; from compression import catalogue; catalogue.load(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_catalogue_lists_every_entry():
    data = generated()
    assert [item["name"] for item in data["recipes"]] == recipes.names()
    for axis in ("criteria", "allocations", "granularities", "updates", "schedules", "recoveries"):
        assert data[axis]
        assert all(item["summary"].endswith(".") for item in data[axis])


def test_check_says_whether_a_file_is_fresh(capsys):
    assert command.main(["catalogue", "--check"]) == 0
    assert command.main(["methods", "--check"]) == 0
    assert "fresh" in capsys.readouterr().out


def test_one_job_from_the_command_line(tmp_path, capsys):
    tiny_llama(tmp_path / "model")
    specification = {"model": "m", "recipe": "magnitude", "target": {"sparsity": 0.5}}
    (tmp_path / "spec.json").write_text(json.dumps(specification | {"evaluation": {"measure": []}}))
    arguments = ["--model", tmp_path / "model", "--spec", tmp_path / "spec.json", "--work", tmp_path / "work"]
    assert command.main(["run", *map(str, arguments)]) == 0
    assert (tmp_path / "work" / "artifact" / "model.safetensors").exists()
    assert "[verify]" in capsys.readouterr().out


def test_a_job_that_cannot_work_says_why(tmp_path, capsys):
    tiny_llama(tmp_path / "model")
    (tmp_path / "spec.json").write_text(
        json.dumps({"model": "m", "recipe": "wandaa", "target": {"sparsity": 0.5}})
    )
    arguments = ["--model", tmp_path / "model", "--spec", tmp_path / "spec.json", "--work", tmp_path / "work"]
    assert command.main(["run", *map(str, arguments)]) == 1
    assert "did you mean 'wanda'" in capsys.readouterr().err
