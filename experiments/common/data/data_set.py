"""A labelled data set in two parts, from a loader or from arrays of your own.

    data = from_arrays(images, labels, test_size=1000)
    batches = serve(data.train(), jm.splits.by_label(data.train_labels, 10), 32)

Those two lines (`serve` is that of `common.training.problems`) take arrays to what
`jaxmedian.run` calls ``next_batch``.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

Images = np.ndarray  # [n, ...], uint8 pixels or floats
Labels = np.ndarray  # [n] int32


class DataSet(NamedTuple):
    """A data set in two parts.

    Attributes:
      train_images: [n, ...], one row an image.
      train_labels: [n] int32, from 0.
      test_images: [test_size, ...].
      test_labels: [test_size] int32.
      description: what results on it have to call it.
      brightest: the greatest value a pixel can have.
    """

    train_images: Images
    train_labels: Labels
    test_images: Images
    test_labels: Labels
    description: str = "arrays"
    brightest: int = 255

    def train(self) -> dict[str, jax.Array]:
        """Returns the training part as a batch."""
        return {
            "images": jnp.asarray(self.train_images),
            "labels": jnp.asarray(self.train_labels),
        }


def from_arrays(
    images: npt.ArrayLike, labels: npt.ArrayLike, *, test_size: int, seed: int = 0
) -> DataSet:
    """Makes a data set from arrays, with a test part that is stratified by class.

    Args:
      images: [n, ...] numbers, one row a sample; kept in their dtype.
      labels: [n] integers or strings; the distinct values, sorted, become 0, 1, ...
      test_size: samples set apart for testing, 0 to n.
      seed: integer >= 0; picks the test samples and the order of both parts.

    Returns:
      A `DataSet`.

    Raises:
      ValueError: if the lengths differ, there are no samples, or a number is out of
        range.
      TypeError: if ``images`` are not numbers, or a number is no integer.

    >>> data = from_arrays(np.zeros((6, 4)), list("aabbab"), test_size=2)
    >>> data.train_images.shape, data.test_labels.tolist()
    ((4, 4), [0, 1])
    """
    images, labels = np.asarray(images), np.asarray(labels)
    if images.dtype.kind not in "buif":
        raise TypeError(f"`images` must hold numbers; got dtype {images.dtype}.")
    if labels.ndim != 1 or images.shape[:1] != labels.shape or labels.size == 0:
        raise ValueError(
            "`images` and `labels` must have one row a sample, at least one; got "
            f"shapes {images.shape} and {labels.shape}."
        )
    codes = np.unique(labels, return_inverse=True)[1].astype(np.int32)
    kept, held_out = stratified_holdout(codes, test_size, seed)
    return DataSet(images[kept], codes[kept], images[held_out], codes[held_out])


def stratified_holdout(
    labels: np.ndarray, size: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Sets samples apart, of each class in proportion: for testing or validation.

    A class of n_c among n gets size * n_c / n places, rounded down or up; the largest
    remainders are rounded up, ties going to the smaller label.

    Args:
      labels: [n] integers.
      size: number of samples to set apart, 0 to n.
      seed: integer >= 0.

    Returns:
      ``(kept [n - size], held_out [size])``: sample numbers, each in random order.

    Raises:
      ValueError: if ``size`` or ``seed`` is out of range.
      TypeError: if one of them is no integer.

    >>> kept, held_out = stratified_holdout(np.array([0] * 6 + [1] * 3), 3)
    >>> sorted((held_out >= 6).tolist())
    [False, False, True]
    """
    check_integer("size", size, 0, labels.size)
    check_integer("seed", seed, 0, None)
    rng = np.random.default_rng(seed)
    _, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    quotas, remainders = np.divmod(size * counts, labels.size)
    rounded_up = np.argsort(-remainders, kind="stable")[: size - quotas.sum()]
    quotas[rounded_up] += 1

    shuffled = rng.permutation(labels.size)
    by_class = shuffled[np.argsort(codes[shuffled], kind="stable")]
    rank = np.arange(labels.size) - np.repeat(np.cumsum(counts) - counts, counts)
    apart = rank < np.repeat(quotas, counts)
    return rng.permutation(by_class[~apart]), rng.permutation(by_class[apart])


def check_integer(name: str, value: int, lowest: int, highest: int | None) -> None:
    """Raises unless ``value`` is an integer from ``lowest`` to ``highest``."""
    wanted = f"an integer >= {lowest}" if highest is None else f"{lowest} to {highest}"
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"`{name}` must be {wanted}; got {value!r}.")
    if value < lowest or (highest is not None and value > highest):
        raise ValueError(f"`{name}` must be {wanted}; got {value}.")
