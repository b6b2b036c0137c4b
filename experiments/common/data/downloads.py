"""Archives from their official mirrors, checked, kept, and never half there.

pooch writes a download beside its final name, compares the published checksum and only
then renames it: the cache holds the right archive or none. A cached file that was
truncated or altered is noticed by its checksum and fetched again.
"""

import sys
from pathlib import Path
from typing import NamedTuple


class Archive(NamedTuple):
    """One published file.

    Attributes:
      name: of the file, at the end of each address too.
      checksum: "md5:..." or "sha256:...", as its publisher states it.
      mirrors: folders on the web that serve it, tried in order.
    """

    name: str
    checksum: str
    mirrors: tuple[str, ...]


def fetch(archive: Archive, folder: Path) -> Path:
    """Returns the path of an archive in ``folder``, downloaded if it is not there.

    Args:
      archive: what to fetch.
      folder: where to keep it; made if need be.

    Raises:
      ConnectionError: if no mirror gave the file whose checksum is published. Nothing
        new is left in ``folder``.
      ImportError: if a download is needed and pooch is not installed.
    """
    try:
        import pooch
    except ImportError as error:
        raise ImportError(
            f"{archive.name} is fetched with pooch, which is not installed: "
            "pip install 'jaxmedian[experiments]', or `pip install pooch`."
        ) from error
    failures = []
    for mirror in archive.mirrors:
        url = mirror + archive.name
        try:
            return Path(
                pooch.retrieve(
                    url,
                    archive.checksum,
                    fname=archive.name,
                    path=folder,
                    progressbar=sys.stderr.isatty(),
                )
            )
        except (ValueError, OSError) as error:  # a checksum; the network or the disk
            failures.append(f"  {url}: {error}")
    raise ConnectionError(
        "\n".join(
            [
                f"Cannot fetch {archive.name}:",
                *failures,
                f"Download it on a machine with a network and put it into {folder} "
                "(JAXMEDIAN_CACHE names another cache folder), or use the digits that "
                "need no download: load_mnist5k, load_digits8x8.",
            ]
        )
    )
