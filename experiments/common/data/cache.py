"""Where data sets are kept between runs."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Returns ``$JAXMEDIAN_CACHE``, or else ``~/.cache/jaxmedian``."""
    chosen = os.environ.get("JAXMEDIAN_CACHE")
    return Path(chosen or "~/.cache/jaxmedian").expanduser()
