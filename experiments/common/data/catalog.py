"""Data by name or path: what ``--data`` and ``--data-dir`` take in all experiments."""

from collections.abc import Callable
from pathlib import Path

from experiments.common.data.data_set import DataSet
from experiments.common.data.digits import load_digits8x8, load_mnist5k
from experiments.common.data.image_folders import load_image_folder
from experiments.common.data.image_sets import (
    load_cifar10,
    load_fashion_mnist,
    load_mnist,
)
from experiments.common.harness.misuse import Misuse

# Packaged digits, loaded by the seed that picks test digits
_PACKAGED: dict[str, Callable[[int], DataSet]] = {
    "digits8x8": load_digits8x8,
    "mnist5k": load_mnist5k,
}
# Archives with test images as published, loaded by the folder to look in first
_PUBLISHED: dict[str, Callable[[Path | None], DataSet]] = {
    "mnist": load_mnist,
    "fashion_mnist": load_fashion_mnist,
    "cifar10": load_cifar10,
}


def load_data(data: str, data_dir: Path | None = None, seed: int = 0) -> DataSet:
    """Loads a data set.

    Args:
      data: "digits8x8", "mnist5k", "mnist", "fashion_mnist", "cifar10", or the path of
        a folder or archive of images (`load_image_folder`), from here or ``data_dir``.
      data_dir: folder in which archives are looked for first.
      seed: that picks the test digits of those that come without a test part.

    Raises:
      Misuse: for an unknown name, a path where nothing lies, a ``data_dir`` that is
        no folder, or files that are not what they should be.
      ConnectionError: for data that are neither there nor to be downloaded.

    >>> load_data("digits8x8").train_images.shape
    (1437, 64)
    """
    if data_dir is not None and not data_dir.expanduser().is_dir():
        raise Misuse(f"`data_dir` must be a folder; got {data_dir}.")
    if data in _PACKAGED:
        return _PACKAGED[data](seed)
    if data in _PUBLISHED:
        return _PUBLISHED[data](data_dir)
    given = Path(data).expanduser()
    for path in (given, (data_dir or Path()).expanduser() / given):
        if path.exists():
            return load_image_folder(path)
    names = ", ".join([*_PACKAGED, *_PUBLISHED])
    raise Misuse(
        f"`data` must be one of {names}, or the path of a folder or archive of images; "
        f"got {data!r}."
    )
