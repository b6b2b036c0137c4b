"""MNIST, Fashion-MNIST and CIFAR-10, in full, from their official mirrors.

Downloaded once (12, 31 and 170 MB) into ``$JAXMEDIAN_CACHE`` or ``~/.cache/jaxmedian``
and read from the archives themselves: IDX files (MNIST and Fashion-MNIST), and the
*binary* version of CIFAR-10, since the Python one is a pickle, which may run code when
it is read. Pixels stay uint8; scaling is the model's.

pooch writes a download beside its final name, compares the published checksum and only
then renames it: the cache holds the right archive or none, and a truncated or altered
one is fetched again. The checked archives themselves are read, in memory: the copies
that pooch's processors extract have no checksum, and would be twice the size.
"""

import gzip
import math
import struct
import sys
import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.common.data.data_set import DataSet, Images, Labels, cache_folder


def load_mnist(cache_dir: str | Path | None = None) -> DataSet:
    """Loads MNIST: 60,000 + 10,000 handwritten digits of 28x28 pixels.

    Args:
      cache_dir: folder for the archives; by default ``$JAXMEDIAN_CACHE``, or else
        ``~/.cache/jaxmedian``.

    Returns:
      A `DataSet` with 784 pixels an image, in the publisher's order.

    Raises:
      ConnectionError: if an archive is not there and no mirror gives the right one.
      ImportError: if pooch is not installed.

    Reference: LeCun, Cortes, Burges, "The MNIST database of handwritten digits", 1998.
    """
    return _load_idx(_MNIST, cache_dir)


def load_fashion_mnist(cache_dir: str | Path | None = None) -> DataSet:
    """Loads Fashion-MNIST: 60,000 + 10,000 images of clothing of 28x28 pixels.

    As `load_mnist`. Reference: Xiao, Rasul, Vollgraf, "Fashion-MNIST", 2017.
    """
    return _load_idx(_FASHION_MNIST, cache_dir)


def load_cifar10(cache_dir: str | Path | None = None) -> DataSet:
    """Loads CIFAR-10: 50,000 + 10,000 colour images of 32x32 pixels in 10 classes.

    As `load_mnist`, but for images ``[n, 32, 32, 3]``. Reference: Krizhevsky,
    "Learning Multiple Layers of Features from Tiny Images", 2009.
    """
    return _load_cifar(_CIFAR10, cache_dir)


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


class _Source(NamedTuple):
    """A published data set; ``archives`` as its reader expects them."""

    folder: str
    archives: tuple[Archive, ...]


def _fetched(source: _Source, cache_dir: str | Path | None) -> list[Path]:
    folder = cache_folder() if cache_dir is None else Path(cache_dir)
    return [fetch(archive, folder / source.folder) for archive in source.archives]


# --- IDX: type, rank, big-endian lengths, then the array ------------------------------

_IDX_UINT8 = 8


def _load_idx(source: _Source, cache_dir: str | Path | None) -> DataSet:
    arrays = [_read_idx(path) for path in _fetched(source, cache_dir)]
    train_images, train_labels, test_images, test_labels = arrays
    train = _paired(train_images, train_labels, source.folder)
    return DataSet(*train, *_paired(test_images, test_labels, source.folder))


def _read_idx(path: Path) -> np.ndarray:
    content = gzip.decompress(path.read_bytes())
    try:
        _, kind, rank = struct.unpack_from(">HBB", content)
        shape = struct.unpack_from(f">{rank}I", content, 4)
    except struct.error:
        kind, shape = None, ()
    start = 4 + 4 * len(shape)
    if kind != _IDX_UINT8 or len(content) != start + math.prod(shape):
        raise ValueError(f"{path} is no IDX file of uint8.")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _paired(images: np.ndarray, labels: np.ndarray, name: str) -> tuple[Images, Labels]:
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"The archives of {name} do not belong together: images {images.shape}, "
            f"labels {labels.shape}."
        )
    return images.reshape(len(images), -1), labels.astype(np.int32)


# --- CIFAR: a label byte, then 32x32 pixels of red, of green and of blue --------------

_CIFAR_ROW = 1 + 3 * 32 * 32


def _load_cifar(source: _Source, cache_dir: str | Path | None) -> DataSet:
    (path,) = _fetched(source, cache_dir)
    with tarfile.open(path, "r:gz") as archive:
        members = {Path(member.name).name: member for member in archive.getmembers()}

        def read(name: str) -> bytes:
            # Read in place: nothing is extracted, so no path in it can do harm.
            file = archive.extractfile(members[name]) if name in members else None
            if file is None:
                raise ValueError(f"{path} holds no {name}.")
            return file.read()

        train = b"".join(read(f"data_batch_{number}.bin") for number in range(1, 6))
        test = read("test_batch.bin")
    return DataSet(*_read_rows(train, path), *_read_rows(test, path))


def _read_rows(content: bytes, path: Path) -> tuple[Images, Labels]:
    if len(content) % _CIFAR_ROW:
        raise ValueError(f"{path} does not hold whole CIFAR-10 images.")
    rows = np.frombuffer(content, np.uint8).reshape(-1, _CIFAR_ROW)
    images = rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), rows[:, 0].astype(np.int32)


# --- where they are published, with the checksums published there ---------------------

_IDX_NAMES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)


def _idx_source(
    folder: str, checksums: tuple[str, ...], mirrors: tuple[str, ...]
) -> _Source:
    archives = zip(_IDX_NAMES, checksums, strict=True)
    return _Source(folder, tuple(Archive(*pair, mirrors) for pair in archives))


_MNIST = _idx_source(
    "mnist",
    (
        "md5:f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "md5:d53e105ee54ea40749a09fcbcd1e9432",
        "md5:9fb629c4189551a2d022fa330f9573f3",
        "md5:ec29112dd5afa0611ce80d1b7f02629c",
    ),
    (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
)
_FASHION_MNIST = _idx_source(
    "fashion-mnist",
    (
        "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "md5:25c81989df183df01b3e8a0aad5dffbe",
        "md5:bef4ecab320f06d8554ea6380940ec79",
        "md5:bb300cfdad3c16e7a12a480ee83cd310",
    ),
    (
        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    ),
)
_CIFAR10 = _Source(
    "cifar10",
    (
        Archive(
            "cifar-10-binary.tar.gz",
            "md5:c32a1d4ab5d03f1284b67883e8d87530",
            ("https://www.cs.toronto.edu/~kriz/",),
        ),
    ),
)
