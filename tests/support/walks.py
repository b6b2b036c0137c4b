"""The walk of a gradient: which files of the package a traced step goes through."""

import pathlib
import sys
from collections.abc import Callable
from typing import NamedTuple

import jaxmedian

ROOT = str(pathlib.Path(jaxmedian.__file__).parent)


class Walk(NamedTuple):
    """The files entered while something is traced, and the calls from file to file."""

    files: frozenset[str]
    calls: frozenset[tuple[str, str]]

    def two_way_pairs(self) -> set[tuple[str, str]]:
        """Pairs of files of which each calls the other."""
        return {(a, b) for a, b in self.calls if a < b and (b, a) in self.calls}


def walk(call: Callable[[], object]) -> Walk:
    """Runs a call and records the frames of jaxmedian's own files."""
    files: set[str] = set()
    calls: set[tuple[str, str]] = set()

    def record(frame, event, argument):
        del argument
        if event != "call" or not frame.f_code.co_filename.startswith(ROOT):
            return
        here = frame.f_code.co_filename[len(ROOT) + 1 :]
        files.add(here)
        caller = frame.f_back
        while caller and not caller.f_code.co_filename.startswith(ROOT):
            caller = caller.f_back
        if caller:
            there = caller.f_code.co_filename[len(ROOT) + 1 :]
            if there != here:
                calls.add((there, here))

    sys.setprofile(record)
    try:
        call()
    finally:
        sys.setprofile(None)
    return Walk(frozenset(files), frozenset(calls))
