"""Fences the examples in docstrings, and links the names in them.

An extension of Griffe, which reads the docstrings for the site. An example begins with
`>>>` and ends with a blank line, as doctest has it; bare in Markdown it is a quotation.
"""

import re
import sys
import textwrap
from pathlib import Path
from typing import Any

import griffe

sys.path.insert(0, str(Path(__file__).parent))
from build_site import decorated, outside_code  # noqa: E402

EXAMPLE = re.compile(r"^[ ]*>>> .*(?:\n[ ]*\S.*)*", re.MULTILINE)


def fenced(docstring: str) -> str:
    """Puts every example into a fenced block.

    >>> print(fenced("Adds.\\n\\n>>> 1 + 1\\n2"))
    Adds.
    <BLANKLINE>
    ```pycon
    >>> 1 + 1
    2
    ```
    """

    def fence(example: re.Match[str]) -> str:
        return f"```pycon\n{textwrap.dedent(example[0])}\n```"

    return EXAMPLE.sub(fence, docstring)


class FencedExamples(griffe.Extension):
    """Rewrites the docstring of everything that is read."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrites one docstring in place."""
        if obj.docstring is not None:
            text = fenced(obj.docstring.value)
            obj.docstring.value = outside_code(text, decorated)
