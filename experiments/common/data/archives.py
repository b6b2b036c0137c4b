"""Published archives, known by what they hold: found on disk, or downloaded once.

An archive is looked for in a folder of the caller's, in ``$JAXMEDIAN_CACHE`` (or
``~/.cache/jaxmedian``), where a package of the system puts it, and then on its mirrors.
Files on disk are told by the SHA-256 of their *decompressed* content, so that copies
from another compressor, or not compressed at all, are as good as the publisher's own,
and altered ones are refused. Downloads are compared with the publisher's checksum.

pooch writes a download beside its final name, compares the checksum and only then
renames it: the cache gets the right archive or none. Archives are read in memory;
nothing is extracted.
"""

import gzip
import hashlib
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.common.data.cache import cache_folder
from experiments.common.harness.misuse import Misuse

_GZIP = b"\x1f\x8b"  # how its files begin


class Archive(NamedTuple):
    """One published file.

    Attributes:
      name: of the file, at the end of each address too.
      checksum: "md5:..." or "sha256:...", as its publisher states it.
      mirrors: folders on the web that serve it, tried in order.
      content: SHA-256 of what it decompresses to; None where that is not known, and a
        copy has to be the publisher's to the bit.
    """

    name: str
    checksum: str
    mirrors: tuple[str, ...]
    content: str | None = None


def read(
    archive: Archive,
    folder: str,
    data_dir: str | Path | None = None,
    system_folders: Sequence[Path] = (),
) -> bytes:
    """Returns the decompressed content of an archive, from the first place that has it.

    Args:
      archive: what to read; a file of its name with or without ".gz" is taken.
      folder: name of the data set's folder, in ``data_dir`` (where it may lie beside
        it too) and in the cache.
      data_dir: where to look first.
      system_folders: where to look before it is downloaded.

    Raises:
      Misuse: if a file in ``data_dir`` is damaged or holds something else.
      ConnectionError: if it is nowhere, and no mirror gives the right one.
      ImportError: if a download is needed and pooch is not installed.
    """
    if data_dir is not None:
        given = Path(data_dir).expanduser()
        for path in _copies(archive, (given / folder, given)):
            return _content(archive, path)
    cache, refused = cache_folder() / folder, []
    for path in _copies(archive, (cache, *system_folders)):
        try:
            return _content(archive, path)
        except ValueError as error:
            refused.append(f"  {error}")
    return _content(archive, fetch(archive, cache, refused))


def _copies(archive: Archive, folders: Sequence[Path]) -> list[Path]:
    names = (archive.name, archive.name.removesuffix(".gz"))
    paths = [folder / name for folder in folders for name in names]
    return [path for path in paths if path.is_file()]


def _content(archive: Archive, path: Path) -> bytes:
    """Decompresses a file, and raises Misuse unless it holds what is meant."""
    raw = path.read_bytes()
    try:
        content = gzip.decompress(raw) if raw.startswith(_GZIP) else raw
    except (OSError, EOFError, zlib.error) as error:
        raise Misuse(f"{path} is damaged: {error}.") from error
    if archive.content is None:
        algorithm, wanted = archive.checksum.split(":")
        found, what = hashlib.new(algorithm, raw).hexdigest(), algorithm
    else:
        wanted, found = archive.content, hashlib.sha256(content).hexdigest()
        what = "SHA-256 of its decompressed content"
    if found != wanted:
        raise Misuse(
            f"{path} is altered, or belongs to another data set: {what} is {found}, "
            f"where {wanted} is wanted."
        )
    return content


def fetch(archive: Archive, folder: Path, failures: Sequence[str] = ()) -> Path:
    """Returns the path of an archive in ``folder``, downloaded if it is not there.

    Args:
      archive: what to fetch.
      folder: where to keep it; made if need be.
      failures: what is wrong with the copies found elsewhere, for the error.

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
    failures = list(failures)
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
                "(JAXMEDIAN_CACHE names another cache folder) or into the folder that "
                "--data-dir names, or use the digits that need no download: mnist5k, "
                "digits8x8.",
            ]
        )
    )
