"""Builds the site: `uv run --group docs python notebooks/build_site.py`.

Texts and notebooks stay where readers of the repository look for them. This gathers
them in build/pages as plain Markdown, and Zensical renders that folder to build/site:
links between files of the repository become links between pages (or to the repository,
where there is no page), formulas become MathML, and public names in code type link to
their entry in the API. A link that leads nowhere, and any warning of the generator,
fails the build. With `--serve` the site is shown at localhost.
"""

import argparse
import base64
import posixpath
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
from latex2mathml.converter import convert

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
import jaxmedian  # noqa: E402  (of this clone, installed or not)

CONFIG = ROOT / "notebooks" / "mkdocs.yml"
PAGES = ROOT / "notebooks" / "pages"
STAGE = ROOT / "build" / "pages"
REPOSITORY = "https://github.com/jaxmedian/jaxmedian"
TEXTS = {  # file of the repository -> page of the site
    "README.md": "index.md",  # links to it: the start page is a text of its own
    "notebooks/GUIDE.md": "guide.md",
    "notebooks/CHANGELOG.md": "changes.md",
    ".github/CONTRIBUTING.md": "contributing.md",
    "experiments/README.md": "experiments.md",
}


def main() -> None:
    """Gathers the pages and has them rendered."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--serve", action="store_true", help="show it at localhost")
    serve = parser.parse_args().serve
    gather()
    zensical = [sys.executable, "-m", "zensical"]
    if serve:
        subprocess.run([*zensical, "serve", "-f", "build/mkdocs.yml"], cwd=ROOT)
        return
    command = [*zensical, "build", "--clean", "--strict", "-f", "build/mkdocs.yml"]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    sys.stdout.write(built.stdout + built.stderr)
    unreadable = "griffe: " in built.stdout + built.stderr  # it warns, strict or not
    raise SystemExit(built.returncode or unreadable)


def gather() -> None:
    """Writes all pages and pictures to build/pages."""
    shutil.rmtree(STAGE, ignore_errors=True)
    STAGE.mkdir(parents=True)
    shutil.copy(CONFIG, STAGE.parent)
    pages = sources()
    for source, target in pages.items():
        if source == "README.md":
            continue
        place = STAGE / target
        place.parent.mkdir(parents=True, exist_ok=True)
        path = ROOT / source
        if path.suffix == ".ipynb":
            notebook = nbformat.read(path, 4)
            markdown = rendered(notebook, place.with_suffix(""))
        elif path.suffix == ".md":
            markdown = path.read_text(encoding="utf-8")
        else:
            shutil.copyfile(path, place)
            continue
        markdown = with_all_names(moved(markdown, source, target, pages))
        place.write_text(outside_code(markdown, decorated), encoding="utf-8")


def sources() -> dict[str, str]:
    """Returns where each file of the repository stands in the site."""
    found = {}
    for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        found[f"notebooks/{path.name}"] = f"notebooks/{path.stem}.md"
    found |= TEXTS  # after the notebooks, whose pictures they may show
    for path in sorted(PAGES.rglob("*.*")):
        name = path.relative_to(PAGES).as_posix()
        found[f"notebooks/pages/{name}"] = name
    for pattern in ("experiments/*/**/*.md", "experiments/**/*.png"):
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            if not name.startswith("experiments/records/"):  # a template of tables
                found[name] = name
    return found


def rendered(notebook: nbformat.NotebookNode, folder: Path) -> str:
    """Turns a notebook that has run into Markdown, its pictures into files."""
    parts = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            badge = r"\[!\[Open In Colab\]\([^)]+\)\]\(([^)]+)\)"
            parts.append(
                re.sub(badge, r"[Open in Colab](\1){ .md-button }", cell.source)
            )
            continue
        code = f"```python\n{cell.source}\n```"
        if cell.source.startswith("# Setup."):
            code = '??? note "Setup"\n\n' + re.sub(r"(?m)^(?=.)", "    ", code)
        parts.append(code)
        for output in cell.outputs:
            picture = output.get("data", {}).get("image/png")
            if picture is not None:
                folder.mkdir(parents=True, exist_ok=True)
                name = f"{cell.id}.png"
                (folder / name).write_bytes(base64.b64decode(picture))
                parts.append(f"![What the cell above draws]({folder.name}/{name})")
                continue
            text = output.get("text") or output.get("data", {}).get("text/plain", "")
            parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def moved(markdown: str, source: str, target: str, pages: dict[str, str]) -> str:
    """Points links to where the site has what they name."""
    here = posixpath.dirname(target)

    def follow(link: re.Match[str]) -> str:
        to, anchor = link["to"], link["anchor"] or ""
        if not to or ":" in to:
            return link[0]
        picture = posixpath.normpath(posixpath.join(here, to))  # of a notebook
        if not picture.startswith("..") and (STAGE / picture).exists():
            return link[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), to))
        if path in pages:
            return f"]({posixpath.relpath(pages[path], here or '.')}{anchor})"
        if (ROOT / path).exists():
            return f"]({REPOSITORY}/blob/main/{path}{anchor})"
        raise SystemExit(f"{source}: there is no {to}")

    link = re.compile(r"\]\((?P<to>[^)#\s]*)(?P<anchor>#[^)\s]*)?\)")
    return outside_code(markdown, lambda text: link.sub(follow, text))


def outside_code(markdown: str, change: Callable[[str], str]) -> str:
    """Applies a change to what does not stand in fenced blocks."""
    pieces = re.split(r"(?ms)(^ *```.*?^ *```)", markdown)
    pieces[::2] = map(change, pieces[::2])
    return "".join(pieces)


def with_all_names(markdown: str) -> str:
    """Writes an entry for each public name where a page of the API asks for all.

    >>> print(with_all_names("::: jaxmedian.checkpoint.*"))
    ::: jaxmedian.checkpoint.Folder
    <BLANKLINE>
    ::: jaxmedian.checkpoint.save
    <BLANKLINE>
    ::: jaxmedian.checkpoint.restore
    """

    def entries(request: re.Match[str]) -> str:
        names = getattr(jaxmedian, request[1]).__all__
        return "\n\n".join(f"::: jaxmedian.{request[1]}.{name}" for name in names)

    return re.sub(r"(?m)^::: jaxmedian\.(\w+)\.\*$", entries, markdown)


def decorated(text: str) -> str:
    r"""Links public names and renders formulas.

    >>> decorated("Use `jm.median`, see [`jm.vote`](x.md); `jnp.median` is slow.")
    'Use [`jm.median`][jaxmedian.median], see [`jm.vote`](x.md); `jnp.median` is slow.'
    >>> decorated("so $b$ is")
    'so <span><math xmlns="..." ...><mrow><mi>b</mi></mrow></math></span> is'
    """
    text = re.sub(r"(?m)^(?!#).*$", lambda line: _linked(line[0]), text)
    formula = re.compile(r"(?s)\$\$(?P<block>.+?)\$\$|\$(?P<inline>[^$`]+?)\$")

    def typeset(found: re.Match[str]) -> str:
        if found["block"]:
            return convert(found["block"].strip(), display="block")
        # In a span, lest Markdown takes it for a block where it begins a line.
        return f"<span>{convert(found['inline'].strip(), display='inline')}</span>"

    return formula.sub(typeset, text)


def _linked(line: str) -> str:
    def link(code: re.Match[str]) -> str:
        name = re.sub(r"^jm\b", "jaxmedian", code[1])
        return f"[`{code[1]}`][{name}]" if is_public(name) else code[0]

    return re.sub(r"(?<!\[)`([\w.]+)`", link, line)


def is_public(path: str) -> bool:
    """Tells whether a path is that of a public name, and so of an entry in the API.

    >>> is_public("jaxmedian.noise.gaussian"), is_public("jaxmedian.noise.Law")
    (True, False)
    """
    owner: Any = jaxmedian
    top, *parts = path.split(".")
    for part in parts:
        if part not in getattr(owner, "__all__", ()):
            return False
        owner = getattr(owner, part)
    return top == "jaxmedian" and bool(parts)


if __name__ == "__main__":
    main()
