"""Where data are kept between runs: downloads, and what was parsed or decoded once."""

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import joblib


def cache_folder() -> Path:
    """Returns where data are kept: ``$JAXMEDIAN_CACHE``, or ``~/.cache/jaxmedian``."""
    chosen = os.environ.get("JAXMEDIAN_CACHE")
    return Path(chosen or "~/.cache/jaxmedian").expanduser()


def remembered(
    function: Callable[..., Any], folder: Path, ignore: Sequence[str]
) -> Any:
    """Returns a function whose results are kept on disk, compressed.

    Where the folder cannot be written it says so, and nothing is kept.

    Args:
      function: what is slow; arguments not ignored identify a result.
      folder: where results are kept.
      ignore: names of arguments that do not change the result.
    """
    try:
        memory = joblib.Memory(folder, verbose=0, compress=1)
        return memory.cache(function, ignore=list(ignore))
    except OSError as error:
        warnings.warn(
            f"Cannot write {folder} ({error}), so that data are parsed every time. Set "
            "JAXMEDIAN_CACHE to a folder you may write to.",
            stacklevel=4,
        )
        return joblib.Memory(None).cache(function)
