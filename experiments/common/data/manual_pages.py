"""Manual pages as text, a language a folder, as Debian's `manpages-*` hold them.

Pandoc reads their markup. The pages of a language stand one behind another, in the
order of their names, without empty lines and indentation.
"""

import gzip
import re
import zlib
from pathlib import Path

from experiments.common.harness.misuse import Misuse

LENGTH = 500_000  # characters of a language; the page that reaches it is the last
_MDOC = re.compile(r"^\.Dd\b", re.MULTILINE)  # what every page in mdoc begins with
_UNREADABLE = (
    gzip.BadGzipFile,
    zlib.error,
    EOFError,  # of a compressed page that was cut
    UnicodeDecodeError,
    RuntimeError,  # pandoc's
)


def find_languages(folder: Path) -> list[Path]:
    """Finds languages, such as ``fi`` in ``share/man``: folders with ``man1`` or so."""
    return sorted({path.parent for path in folder.glob("*/man[1-9]") if path.is_dir()})


def read_manual(folder: Path, length: int = LENGTH) -> str:
    """Reads pages, compressed or not, ``folder/man1/ls.1.gz``, up to ``length``.

    Links to other pages are passed over, and pages in mdoc, BSD's markup, of which
    pandoc reads a part only.

    Raises:
      Misuse: if one is no UTF-8, or not to be understood, naming it; without pypandoc.
    """
    files = [path for path in sorted(folder.glob("man[1-9]/*")) if path.is_file()]
    pages, total = [], 0
    for path in files:
        if path.is_symlink() or total >= length:
            continue
        pages.append(_read_page(path))
        total += len(pages[-1])
    return "".join(pages)


def _read_page(path: Path) -> str:
    try:
        import pypandoc
    except ImportError as error:
        raise Misuse(
            "manual pages are read by pandoc: run `pip install pypandoc_binary`."
        ) from error
    try:
        source = path.read_bytes()
        page = (gzip.decompress(source) if path.suffix == ".gz" else source).decode()
        if _MDOC.search(page):
            return ""
        plain = pypandoc.convert_text(page, "plain", "man", ["--wrap=none"])
    except _UNREADABLE as error:
        raise Misuse(f"{path} is no manual page that can be read: {error}") from error
    lines = (line.strip() for line in plain.splitlines())
    return "".join(f"{line}\n" for line in lines if line)
