"""Synthetic mixtures: workers whose mean-median gap is dialled, and image classes.

`worker_mixture` gives each worker its own cluster, so placed that the median of the
clusters lies a chosen distance from their mean: for a quadratic loss that distance *is*
the gap that noise has to close. `image_classes` makes pictures of the shape of CIFAR-10
to run a pipeline without its data; accuracy on them says nothing about CIFAR-10.
"""

import numpy as np

from experiments.common.data.data_set import DataSet, check_integer, from_arrays


def worker_mixture(
    num_workers: int,
    num_samples: int,
    dimensions: int,
    *,
    gap: float,
    spread: float = 1.0,
    seed: int = 0,
) -> np.ndarray:
    """Draws one Gaussian cluster a worker, the median of their centres off the mean.

    In every coordinate the centres are the M exponential quantiles -log(1 - (i + 1/2) /
    M) in an order and a direction of their own, moved to mean 0 and scaled. Under the
    loss mean ||x - a||^2 / 2 worker i's full-batch gradient is x - centre_i, so that
    ``mean_median_gap`` is ``gap`` at every x, exactly: a worker's samples are moved so
    that their own mean is its centre.

    Args:
      num_workers: M >= 3; fewer have no gap.
      num_samples: n >= 1 of each worker.
      dimensions: d >= 1.
      gap: ||median_i(centre_i) - mean_i(centre_i)|| >= 0, in units of x.
      spread: standard deviation of a worker's samples around its centre, >= 0.
      seed: integer >= 0.

    Returns:
      ``[M, n, d]`` float32, whose mean over workers and samples is 0.

    Raises:
      TypeError, ValueError: for a number that is no integer or out of range.

    >>> samples = worker_mixture(5, 20, 3, gap=2.0)
    >>> round(float(np.linalg.norm(np.median(samples.mean(axis=1), axis=0))), 5)
    2.0
    """
    check_integer("num_workers", num_workers, 3, None)
    for name, value in (("num_samples", num_samples), ("dimensions", dimensions)):
        check_integer(name, value, 1, None)
    check_integer("seed", seed, 0, None)
    for name, size in (("gap", gap), ("spread", spread)):
        if not 0 <= size < np.inf:
            raise ValueError(f"`{name}` must be finite and >= 0; got {size!r}.")
    rng = np.random.default_rng(seed)
    skewed = -np.log1p(-(np.arange(num_workers) + 0.5) / num_workers)
    skewed -= skewed.mean()
    centres = rng.permuted(np.tile(skewed, (dimensions, 1)), axis=1).T
    centres *= rng.choice([-1.0, 1.0], size=dimensions)
    centres *= gap / (np.sqrt(dimensions) * abs(np.median(skewed)))
    noise = spread * rng.normal(size=(num_workers, num_samples, dimensions))
    noise -= noise.mean(axis=1, keepdims=True)
    return (centres[:, None] + noise).astype(np.float32)


def image_classes(
    num_samples: int,
    test_size: int,
    *,
    num_classes: int = 10,
    side: int = 32,
    contrast: float = 0.25,
    seed: int = 0,
) -> DataSet:
    """Draws colour images of classes that differ by a coarse pattern each.

    A class is a random 4x4 pattern of three colours, enlarged; an image is its class's
    pattern at ``contrast``, plus another such pattern of its own and pixel noise.

    Args:
      num_samples: images in both parts together; classes are equally frequent, up to 1.
      test_size: of these, images set apart for testing.
      num_classes: classes, >= 1.
      side: pixels of an edge, a multiple of 4.
      contrast: the class pattern's share of the signal, 0 to 1: 0 tells no class.
      seed: integer >= 0.

    Returns:
      A `DataSet` of uint8 images ``[n, side, side, 3]``.

    Raises:
      TypeError, ValueError: for a number that is no integer or out of range.

    >>> image_classes(20, 5).train_images.shape
    (15, 32, 32, 3)
    """
    for name, value in (("num_samples", num_samples), ("num_classes", num_classes)):
        check_integer(name, value, 1, None)
    check_integer("side", side, 4, None)
    check_integer("seed", seed, 0, None)
    if side % 4:
        raise ValueError(f"`side` must be a multiple of 4; got {side}.")
    if not 0 <= contrast <= 1:
        raise ValueError(f"`contrast` must be 0 to 1; got {contrast!r}.")
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(num_samples) % num_classes)
    patterns = rng.standard_normal((num_classes, 4, 4, 3), np.float32)[labels]
    own = rng.standard_normal(patterns.shape, np.float32)
    coarse = contrast * patterns + (1 - contrast) * own
    images = coarse.repeat(side // 4, axis=1).repeat(side // 4, axis=2)
    images += 0.25 * rng.standard_normal(images.shape, np.float32)
    pixels = np.clip(128 + 48 * images, 0, 255).astype(np.uint8)
    drawn = from_arrays(pixels, labels, test_size=test_size, seed=seed)
    return drawn._replace(description="random images")
