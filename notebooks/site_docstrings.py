"""Turns docstrings into Markdown for the site.

An extension of Griffe, which reads them. They are Markdown but for two things that
other readers expect: examples stand bare, as doctest has them, and formulas in the
directive `.. math::`. Both end with a blank line.
"""

import re
import sys
import textwrap
from pathlib import Path
from typing import Any

import griffe

sys.path.insert(0, str(Path(__file__).parent))
from build_site import decorated, outside_code

EXAMPLE = re.compile(r"^[ ]*>>> .*(?:\n[ ]*\S.*)*", re.MULTILINE)
FORMULA = re.compile(r"^([ ]*)\.\. math:: (.*(?:\n[ ]*\S.*)*)", re.MULTILINE)


def as_markdown(docstring: str) -> str:
    r"""Fences examples and puts formulas between dollars.

    >>> as_markdown("Adds.\n\n.. math:: a + b\n\n>>> 1 + 1\n2")
    'Adds.\n\n$$a + b$$\n\n```pycon\n>>> 1 + 1\n2\n```'
    """

    def fence(example: re.Match[str]) -> str:
        return f"```pycon\n{textwrap.dedent(example[0])}\n```"

    return EXAMPLE.sub(fence, FORMULA.sub(r"\1$$\2$$", docstring))


class Docstrings(griffe.Extension):
    """Rewrites the docstring of everything that is read."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrites one docstring in place."""
        if obj.docstring is not None:
            text = as_markdown(obj.docstring.value)
            obj.docstring.value = outside_code(text, decorated)
