"""Executes the notebooks and pairs them: each .ipynb is its .py, run, with outputs.

    python notebooks/build.py                  all of them, 8 minutes on two cores
    python notebooks/build.py 00 03            some of them
    python notebooks/build.py --no-execute     pair only: keep outputs of equal cells

Edit the .py (or the .ipynb, then `jupytext --sync notebooks/NAME.ipynb`), build, commit
both, and what pages show of them, written to pages/pictures. The repository's address,
in badges and setup cells, is that of pyproject.toml: change it there and build.
"""

import argparse
import base64
import os
import re
import time
import tomllib
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
PICTURES = FOLDER / "pages" / "pictures"
TIMEOUT = 900  # seconds a cell
LANGUAGE = {"name": "python", "version": "3"}


def main() -> None:
    """Builds the notebooks named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="beginnings of names; all by default")
    parser.add_argument("--no-execute", action="store_true", help="pair only")
    arguments = parser.parse_args()
    for source in sorted(FOLDER.glob("[0-9]*.py")):
        if not source.name.startswith(tuple(arguments.names or [""])):
            continue
        text = with_address(source.read_text(), repository_address())
        source.write_text(text)
        notebook = paired(source)
        start = time.monotonic()
        if arguments.no_execute:
            keep_outputs(notebook, source.with_suffix(".ipynb"))
        else:
            execute(notebook)
        nbformat.write(notebook, source.with_suffix(".ipynb"))
        write_pictures(source.stem, notebook)
        print(f"{source.stem}: {time.monotonic() - start:.0f} s")


def repository_address() -> str:
    """Returns the address of the repository that pyproject.toml names."""
    project = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text())["project"]
    return project["urls"]["Repository"]


def with_address(text: str, address: str) -> str:
    """Points badge and setup cell to the repository."""
    owner_and_name = address.removeprefix("https://github.com/")
    badge = r"(research\.google\.com/github/)[\w.-]+/[\w.-]+(?=/blob/)"
    text = re.sub(badge, rf"\g<1>{owner_and_name}", text)
    return re.sub(r'(address = ")[^"]+', rf"\g<1>{address}", text)


def paired(source: Path) -> nbformat.NotebookNode:
    """Reads a py:percent file as a notebook without outputs."""
    notebook = jupytext.read(source)
    notebook.metadata["language_info"] = LANGUAGE
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02}"  # the same in every build
    return notebook


def execute(notebook: nbformat.NotebookNode) -> None:
    """Runs the cells here, on the CPU, and keeps what they print and draw."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    resources = {"metadata": {"path": str(FOLDER)}}
    NotebookClient(notebook, timeout=TIMEOUT, resources=resources).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of day
        if cell.cell_type == "code":  # messages on the way, with paths of this machine
            cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
    notebook.metadata["language_info"] = LANGUAGE  # whichever version it was


def keep_outputs(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Takes over the outputs of the cells whose source has not changed."""
    if not path.exists():
        return
    old = {cell.source: cell for cell in nbformat.read(path, 4).cells}
    for cell in notebook.cells:
        if cell.cell_type == "code" and cell.source in old:
            cell.outputs = old[cell.source].outputs
            cell.execution_count = old[cell.source].execution_count


def write_pictures(name: str, notebook: nbformat.NotebookNode) -> None:
    """Writes what its cells draw to pages/pictures, where pages show it."""
    shown = "".join(page.read_text() for page in PICTURES.parent.rglob("*.md"))
    PICTURES.mkdir(exist_ok=True)
    for cell in notebook.cells:
        file = PICTURES / f"{name}-{cell.id}.png"
        if f"pictures/{file.name}" not in shown:
            continue
        (drawn,) = (
            out.data for out in cell.outputs if "image/png" in out.get("data", {})
        )
        file.write_bytes(base64.b64decode(drawn["image/png"]))


if __name__ == "__main__":
    main()
