"""Each notebook is its py:percent pair, carries its outputs, and runs.

Built by `python notebooks/build.py`; see there.
"""

import ast
import base64
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from compiling import xla_flags

ROOT = Path(__file__).parents[1]
NAMES = [
    "00_quickstart",
    "01_why_votes_fail",
    "02_noise_bridges_the_gap",
    "03_one_bit_votes",
    "04_hostile_workers",
    "05_bring_your_own_model",
    "06_language_model",
]
REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"][
    "Repository"
]
MOST_CELLS = 30
COLAB = ("joblib", "matplotlib", "pillow", "scikit-learn", "tqdm")  # are on Colab


def source_of(name):
    return ROOT / "notebooks" / f"{name}.py"


def cells_of(name):
    """Cells of the .ipynb, each a dictionary with its source in one string."""
    path = ROOT / "notebooks" / f"{name}.ipynb"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [{**cell, "source": "".join(cell["source"])} for cell in cells]


def code_of(name):
    return [cell for cell in cells_of(name) if cell["cell_type"] == "code"]


def outputs_of(name):
    return [output for cell in code_of(name) for output in cell["outputs"]]


def test_these_are_all_notebooks():
    found = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert found == set(NAMES)


def test_pictures_on_pages_are_those_of_the_notebooks():
    pages = ROOT / "notebooks" / "pages"
    found = {path.stem: path.read_bytes() for path in pages.glob("pictures/*.png")}
    drawn = {}
    for name in NAMES:
        for cell in code_of(name):
            for output in cell["outputs"]:
                picture = "".join(output.get("data", {}).get("image/png", []))
                drawn[f"{name}-{cell['id']}"] = base64.b64decode(picture)
    assert found.items() <= drawn.items()
    shown = "".join(path.read_text(encoding="utf-8") for path in pages.rglob("*.md"))
    assert set(re.findall(r"\(pictures/(.*?)\.png\)", shown)) == set(found) != set()


@pytest.mark.parametrize("name", NAMES)
def test_pairs_agree_cell_by_cell(name):
    jupytext = pytest.importorskip("jupytext")
    pair = jupytext.read(source_of(name)).cells
    here = [(cell["cell_type"], cell["source"]) for cell in cells_of(name)]
    assert here == [(cell.cell_type, cell.source) for cell in pair]


@pytest.mark.parametrize("name", NAMES)
def test_title_and_badge_come_first_and_name_the_notebook(name):
    title, *_ = cells_of(name)
    assert title["cell_type"] == "markdown"
    assert re.match(r"# \S", title["source"])
    owner_and_name = REPOSITORY.removeprefix("https://github.com/")
    colab = "https://colab.research.google.com"
    target = f"{colab}/github/{owner_and_name}/blob/main/notebooks/{name}.ipynb"
    assert re.findall(r"\]\((https:[^()]+\.ipynb)\)", title["source"]) == [target]


def test_the_setup_cell_is_the_same_everywhere():
    setups = {code_of(name)[0]["source"] for name in NAMES}
    assert len(setups) == 1
    assert f'address = "{REPOSITORY}"' in setups.pop()


@pytest.mark.parametrize("missing", [(), ("mlxtend",), ("jaxmedian", "flax")])
def test_the_setup_cell_brings_what_is_missing_and_nothing_else(
    missing, tmp_path, monkeypatch
):
    """As on Colab, whose JAX must stay: nothing is downloaded here."""
    commands, found = [], importlib.util.find_spec

    def run(command, check):
        assert check
        commands.append(command)
        if command[0] == "git":
            Path(command[-1]).mkdir()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name in missing else found("os"),
    )
    setup = compile(code_of(NAMES[0])[0]["source"], "setup", "exec")
    before = [*sys.path]
    exec(setup, {})
    clone = tmp_path / "jaxmedian-main"
    cloned = "jaxmedian" in missing
    git = ["git", "clone", "--depth=1", REPOSITORY, Path(clone.name)]
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps"]
    packages = [name for name in missing if name != "jaxmedian"]
    assert commands == [git] * cloned + [[*pip, name] for name in packages]
    assert sys.path == [str(clone)] * cloned + before
    commands.clear()
    exec(setup, {})  # run again: what was cloned is there
    assert not any(command[0] == "git" for command in commands)


def test_no_notebook_imports_what_its_setup_cell_does_not_bring():
    """Colab has the dependencies of jax, optax and flax, and `COLAB`, and no others."""
    setup = code_of(NAMES[0])[0]["source"]
    brought = re.search(r"for package in \((.*)\):", setup)[1]
    there = {"jax", *COLAB, *re.findall(r'"(\w+)"', brought)}
    for package in ("jax", "optax", "flax"):
        pytest.importorskip(package)
        there |= {
            re.match(r"[\w-]+", requirement)[0]
            for requirement in importlib.metadata.requires(package)
            if "extra ==" not in requirement
        }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    known = {re.match(r"[\w-]+", one)[0] for extra in extras for one in extra}
    missing = sorted(known - there)
    assert {"tyro", "pooch", "torchft"} <= {*missing}
    script = ["import sys", f"sys.modules.update(dict.fromkeys({missing}))"]
    for name in NAMES:
        for cell in code_of(name)[1:]:
            for node in ast.walk(ast.parse(cell["source"])):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    script.append(ast.unparse(node))
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(script)],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("name", NAMES)
def test_parameters_stand_in_one_cell_in_capitals(name):
    parameters = code_of(name)[1]["source"]
    assert parameters.startswith("# Parameters.")
    assigned = re.findall(r"^(\w+) *=", parameters, re.MULTILINE)
    assert assigned
    assert all(word.isupper() for word in assigned)
    assert "SMOKE" in parameters


@pytest.mark.parametrize("name", NAMES)
def test_there_are_few_cells(name):
    assert len(cells_of(name)) <= MOST_CELLS


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_there_and_hold_a_picture_and_no_error(name):
    code = code_of(name)
    assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)]
    kinds = [kind for output in outputs_of(name) for kind in output.get("data", {})]
    assert "image/png" in kinds
    assert all(output["output_type"] != "error" for output in outputs_of(name))


@pytest.mark.parametrize("name", NAMES)
def test_outputs_name_no_place_on_any_machine(name):
    """No absolute path, no address: what a reader elsewhere cannot follow."""
    for output in outputs_of(name):
        texts = {
            kind: text
            for kind, text in output.get("data", {}).items()
            if kind != "image/png"
        }
        text = json.dumps([texts, output.get("text", "")])
        found = re.findall(r"(?:/(?:tmp|home|root|usr|work|content)\b|\w+://)\S*", text)
        assert not found


@pytest.mark.parametrize("name", NAMES)
def test_links_between_notebooks_lead_somewhere(name):
    text = "\n".join(cell["source"] for cell in cells_of(name))
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / "notebooks" / target).exists(), target


@pytest.mark.parametrize("name", NAMES)
def test_every_notebook_runs_at_tiny_size(name, tmp_path):
    for package in ("flax", "matplotlib", "mlxtend", "orbax.checkpoint"):
        pytest.importorskip(package)
    environment = {
        **os.environ,
        "JAXMEDIAN_SMOKE": "1",
        "JAX_PLATFORMS": "cpu",
        "MPLBACKEND": "agg",
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": xla_flags(1),
    }
    finished = subprocess.run(
        [sys.executable, str(source_of(name))],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert finished.stdout
