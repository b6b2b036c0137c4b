"""Manual pages: their markup goes, their words and order stay."""

import gzip
import sys

import pytest

from experiments.common.data import texts
from experiments.common.data.manual_pages import find_languages, read_manual

LS = r"""'\" t
.\" -*- coding: UTF-8 -*-
.TH LS 1 "September 2022" "GNU coreutils 9.1" "Dienstprogramme"
.SH ÜBERSICHT
\fBls\fP [\fI\,OPTION\/\fP]…
.PP
Optionen sind für deren Kurz\- und
Langform gleich, siehe
.BR dir (1).
.TP
\fB\-a\fP, \fB\-\-all\fP
Einträge nicht ignorieren
"""
LS_PLAIN = """ÜBERSICHT
ls [OPTION]…
Optionen sind für deren Kurz- und Langform gleich, siehe dir(1).
-a, --all
Einträge nicht ignorieren
"""


def page(words):
    return f".TH A 1\n.SH {words}\n"


@pytest.fixture
def german(tmp_path):
    """Pages of two sections, one compressed, one in BSD's markup, and a link."""
    for section in ("man1", "man8"):
        (tmp_path / "de" / section).mkdir(parents=True)
    section = tmp_path / "de" / "man1"
    (section / "ls.1.gz").write_bytes(gzip.compress(LS.encode()))
    (section / "dir.1.gz").symlink_to("ls.1.gz")
    (section / "bsd.1").write_text(".Dd March 1\n.Dt BSD 1\n.Sh WEG\n.Os Linux\n")
    (tmp_path / "de" / "man8" / "zuletzt.8").write_text(page("zuletzt"))
    return tmp_path / "de"


def test_markup_goes_and_words_stay_in_the_order_of_names(german):
    assert read_manual(german) == LS_PLAIN + "zuletzt\n"


def test_the_page_that_reaches_the_length_is_the_last(german):
    assert read_manual(german, len(LS_PLAIN)) == LS_PLAIN
    assert read_manual(german, len(LS_PLAIN) + 1) == LS_PLAIN + "zuletzt\n"


def test_a_page_that_cannot_be_read_is_named(german):
    broken = german / "man1" / "broken.1.gz"
    whole = gzip.compress(LS.encode())
    for content in (b"no gzip", whole[:40], whole[:20] + b"\xff" * 20 + whole[40:]):
        broken.write_bytes(content)
        with pytest.raises(ValueError, match=r"broken\.1\.gz is no manual page"):
            read_manual(german)
    broken.write_bytes(gzip.compress("Übersicht".encode("latin-1")))
    with pytest.raises(ValueError, match=r"broken\.1\.gz is no .* 'utf-8' codec"):
        read_manual(german)


def test_pandoc_is_asked_for_by_the_name_it_is_installed_by(german, monkeypatch):
    monkeypatch.setitem(sys.modules, "pypandoc", None)
    with pytest.raises(ValueError, match="`pip install pypandoc_binary`"):
        read_manual(german)


def test_every_language_is_a_worker(german):
    folder = german.parent
    for name in ("man1", "de_AT", "fi/man7"):  # English, not a language, Finnish
        (folder / name).mkdir(parents=True)
    (folder / "man1" / "ls.1").write_text(page("summary"))
    (folder / "fi" / "man7" / "a.7").write_text(page("yhteenveto" * 2))
    assert find_languages(folder) == [german, folder / "fi"]
    whole = [LS_PLAIN + "zuletzt\n", "yhteenvetoyhteenveto\n"]
    tenths = [-(len(text) // 10) for text in whole]
    kept = tuple(text[:cut] for text, cut in zip(whole, tenths, strict=True))
    held = tuple(text[cut:] for text, cut in zip(whole, tenths, strict=True))
    assert texts.files_parts(folder, 2) == texts.Source(kept, held)
    assert texts.files_parts(folder, 1) == texts.Source(("".join(kept),), held)
    with pytest.raises(ValueError, match=r"folder NAME of manual pages .* has 2: set"):
        texts.files_parts(folder, 3)
