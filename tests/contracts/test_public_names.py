"""What is public is documented, shown by an example, and in the README."""

import inspect
import re
from pathlib import Path

import pytest

import jaxmedian as jm

README = (Path(__file__).parents[2] / "README.md").read_text()


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


def test_the_readme_names_everything_on_the_front_page():
    missing = [name for name in jm.__all__ if not re.search(rf"\b{name}\b", README)]
    assert not missing


def test_the_documentation_holds_every_public_name():
    doc = pytest.importorskip("pdoc").doc

    def documented(module, prefix="jm"):
        page = doc.Module(module)
        yield from (f"{prefix}.{name}" for name in page.members)
        for below in page.submodules:
            yield from documented(below.obj, f"{prefix}.{below.name}")

    assert set(documented(jm)) >= set(NAMES)
