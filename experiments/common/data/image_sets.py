"""MNIST, Fashion-MNIST and CIFAR-10, in full, from their official mirrors.

Found where `archives` looks, or downloaded once (12, 31 and 170 MB), and read from the
archives themselves: IDX files (MNIST and Fashion-MNIST), and the *binary* version of
CIFAR-10, since the Python one is a pickle, which may run code when it is read. Pixels
stay uint8; scaling is the model's.
"""

import io
import math
import struct
import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.common.data.archives import Archive, read
from experiments.common.data.data_set import DataSet, Images, Labels


def load_mnist(data_dir: str | Path | None = None) -> DataSet:
    """Loads MNIST: 60,000 + 10,000 handwritten digits of 28x28 pixels.

    Args:
      data_dir: folder in which the archives are looked for first, or in its subfolder
        "mnist"; compressed by anybody, or not at all. Then come ``$JAXMEDIAN_CACHE``
        (or ``~/.cache/jaxmedian``) and the mirrors.

    Returns:
      A `DataSet` with 784 pixels an image, in the publisher's order.

    Raises:
      ValueError: if an archive in ``data_dir`` is damaged, altered, or another's.
      ConnectionError: if an archive is not there and no mirror gives the right one.
      ImportError: if a download is needed and pooch is not installed.

    Reference: LeCun, Cortes, Burges, "The MNIST database of handwritten digits", 1998.
    """
    return _load_idx(_MNIST, data_dir)


def load_fashion_mnist(data_dir: str | Path | None = None) -> DataSet:
    """Loads Fashion-MNIST: 60,000 + 10,000 images of clothing of 28x28 pixels.

    As `load_mnist`, from "fashion-mnist"; before the mirrors, where Debian's package
    ``dataset-fashion-mnist`` puts it.

    Reference: Xiao, Rasul, Vollgraf, "Fashion-MNIST", 2017.
    """
    return _load_idx(_FASHION_MNIST, data_dir)


def load_cifar10(data_dir: str | Path | None = None) -> DataSet:
    """Loads CIFAR-10: 50,000 + 10,000 colour images of 32x32 pixels in 10 classes.

    As `load_mnist`, from "cifar10", but for images ``[n, 32, 32, 3]``; its archive has
    to be the publisher's to the bit. Reference: Krizhevsky,
    "Learning Multiple Layers of Features from Tiny Images", 2009.
    """
    return _load_cifar(_CIFAR10, data_dir)


class _Source(NamedTuple):
    """A published data set; ``archives`` as its reader expects them."""

    name: str
    folder: str
    archives: tuple[Archive, ...]
    system_folders: tuple[Path, ...] = ()

    def contents(self, data_dir: str | Path | None) -> list[bytes]:
        return [
            read(archive, self.folder, data_dir, self.system_folders)
            for archive in self.archives
        ]


# --- IDX: type, rank, big-endian lengths, then the array ------------------------------

_IDX_UINT8 = 8


def _load_idx(source: _Source, data_dir: str | Path | None) -> DataSet:
    arrays = [
        _read_idx(content, archive.name)
        for content, archive in zip(
            source.contents(data_dir), source.archives, strict=True
        )
    ]
    train_images, train_labels, test_images, test_labels = arrays
    train = _paired(train_images, train_labels, source.name)
    test = _paired(test_images, test_labels, source.name)
    return DataSet(*train, *test, description=source.name)


def _read_idx(content: bytes, name: str) -> np.ndarray:
    try:
        _, kind, rank = struct.unpack_from(">HBB", content)
        shape = struct.unpack_from(f">{rank}I", content, 4)
    except struct.error:
        kind, shape = None, ()
    start = 4 + 4 * len(shape)
    if kind != _IDX_UINT8 or len(content) != start + math.prod(shape):
        raise ValueError(f"{name} is no IDX file of uint8.")
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


def _load_cifar(source: _Source, data_dir: str | Path | None) -> DataSet:
    (content,) = source.contents(data_dir)
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        members = {Path(member.name).name: member for member in archive.getmembers()}

        def read_member(name: str) -> bytes:
            # Read in place: nothing is extracted, so no path in it can do harm.
            file = archive.extractfile(members[name]) if name in members else None
            if file is None:
                raise ValueError(f"The archive of {source.name} holds no {name}.")
            return file.read()

        train = b"".join(
            read_member(f"data_batch_{number}.bin") for number in range(1, 6)
        )
        test = read_member("test_batch.bin")
    parts = (*_read_rows(train, source.name), *_read_rows(test, source.name))
    return DataSet(*parts, description=source.name)


def _read_rows(content: bytes, name: str) -> tuple[Images, Labels]:
    if len(content) % _CIFAR_ROW:
        raise ValueError(f"The archive of {name} does not hold whole CIFAR-10 images.")
    rows = np.frombuffer(content, np.uint8).reshape(-1, _CIFAR_ROW)
    images = rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), rows[:, 0].astype(np.int32)


# --- where they are published, with the checksums published there, and of the content -

_IDX_NAMES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)


def _idx_archives(
    checksums: tuple[str, ...], contents: tuple[str, ...], mirrors: tuple[str, ...]
) -> tuple[Archive, ...]:
    return tuple(
        Archive(name, checksum, mirrors, content)
        for name, checksum, content in zip(_IDX_NAMES, checksums, contents, strict=True)
    )


_MNIST = _Source(
    "MNIST",
    "mnist",
    _idx_archives(
        (
            "md5:f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "md5:d53e105ee54ea40749a09fcbcd1e9432",
            "md5:9fb629c4189551a2d022fa330f9573f3",
            "md5:ec29112dd5afa0611ce80d1b7f02629c",
        ),
        (
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
        (
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
    ),
)
_FASHION_MNIST = _Source(
    "Fashion-MNIST",
    "fashion-mnist",
    _idx_archives(
        (
            "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "md5:25c81989df183df01b3e8a0aad5dffbe",
            "md5:bef4ecab320f06d8554ea6380940ec79",
            "md5:bb300cfdad3c16e7a12a480ee83cd310",
        ),
        (
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
        (
            "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        ),
    ),
    (Path("/usr/share/datasets/fashion-mnist"),),
)
_CIFAR10 = _Source(
    "CIFAR-10",
    "cifar10",
    (
        Archive(
            "cifar-10-binary.tar.gz",
            "md5:c32a1d4ab5d03f1284b67883e8d87530",
            ("https://www.cs.toronto.edu/~kriz/",),
        ),
    ),
)
