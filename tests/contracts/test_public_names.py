"""What is public is documented, shown by an example, and listed on the site."""

import inspect
import re
from pathlib import Path

import pytest

import jaxmedian as jm

ROOT = Path(__file__).parents[2]
API = ROOT / "notebooks/pages/api"


def public_names(module, prefix="jm"):
    """Yields the path and the value of every public name, namespaces opened."""
    for name in module.__all__:
        value, path = getattr(module, name), f"{prefix}.{name}"
        if inspect.ismodule(value):
            yield from public_names(value, path)
        else:
            yield path, value


NAMES = dict(public_names(jm))


def test_the_namespaces_are_opened():
    assert {"jm.noise.gaussian", "jm.theory.best_scale", "jm.splits.iid"} <= set(NAMES)


@pytest.mark.parametrize("path", NAMES)
def test_every_public_name_has_a_runnable_example(path):
    assert ">>> " in inspect.getdoc(NAMES[path]), path


def test_the_table_of_concepts_names_everything_on_the_front_page():
    table = (API / "index.md").read_text()
    missing = [name for name in jm.__all__ if not re.search(rf"`(jm\.)?{name}`", table)]
    assert not missing


def test_the_pages_of_the_api_list_every_public_name_once():
    pages = API.glob("*.md")
    entries = re.findall(
        r"(?m)^::: jaxmedian\.(\S+)$", "\n".join(page.read_text() for page in pages)
    )
    namespaces = {name.removesuffix(".*") for name in entries if name.endswith(".*")}
    listed = [f"jm.{name}" for name in entries if name.removesuffix(".*") == name]
    for name in namespaces:
        listed.remove(f"jm.{name}")  # its own text
        listed += [f"jm.{name}.{below}" for below in getattr(jm, name).__all__]
    assert sorted(listed) == sorted(NAMES)
