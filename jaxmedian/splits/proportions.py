"""Dirichlet proportions, their rounding to counts, and the repair of small workers.

Every step is one bounded pass: proportions are drawn in logarithms, so that no alpha
underflows; rounding is unbiased; and the sizes after the repair are computed before a
single sample moves, so nothing is drawn again until it fits.
"""

import warnings

import numpy as np

from jaxmedian.splits.grouping import blocks, even_sizes, stable_argsort


def dirichlet_workers(
    class_sizes: np.ndarray, num_workers: int, alpha: float, rng: np.random.Generator
) -> np.ndarray:
    """Names the worker of each sample of a line ordered by class.

    Proportions become counts by cutting at floor(n * (p_1 + ... + p_i) + u) with one
    uniform u a class: unbiased, where the usual u = 0 hands the samples of rare classes
    to the last worker.
    """
    classes_at_once = max(1, 1_000_000 // num_workers)
    workers = []
    for start in range(0, class_sizes.size, classes_at_once):
        sizes = class_sizes[start : start + classes_at_once, None]
        shares = _proportions(sizes.size, num_workers, alpha, rng)
        edges = np.floor(np.cumsum(shares, axis=1) * sizes + rng.random(sizes.shape))
        edges = np.minimum(edges.astype(np.int64), sizes)
        edges[:, -1:] = sizes
        counts = np.diff(edges, axis=1, prepend=0)
        names = np.tile(np.arange(num_workers), sizes.size)
        workers.append(np.repeat(names, counts.ravel()))
    return np.concatenate(workers)


def _proportions(
    num_rows: int, num_workers: int, alpha: float, rng: np.random.Generator
) -> np.ndarray:
    """Draws rows from Dirichlet(alpha, ..., alpha), for any positive float alpha.

    Gamma(alpha) has the law of Gamma(alpha + 1) * U^(1 / alpha), which is computed in
    logarithms and relative to the largest U of the row: plain gammas of alpha = 1e-3
    are all 0 in one row of many, and 0 / 0 is where other libraries return NaN.
    """
    log_u = -rng.standard_exponential((num_rows, num_workers))
    log_u -= log_u.max(axis=1, keepdims=True)
    with np.errstate(over="ignore", under="ignore"):
        log_gamma = np.log(rng.standard_gamma(alpha + 1, log_u.shape)) + log_u / alpha
        weights = np.exp(log_gamma - log_gamma.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def size_floors(num_samples: int, num_workers: int, min_size: int) -> np.ndarray:
    """Sizes [M] that no worker may fall below: min_size, or what there is to share."""
    even = even_sizes(num_samples, num_workers)
    if num_workers <= num_samples < num_workers * min_size:
        warnings.warn(
            f"`min_size` = {min_size} for {num_workers} workers needs "
            f"{num_workers * min_size} samples and there are {num_samples}: workers "
            f"get {even[-1]} to {even[0]}.",
            stacklevel=3,
        )
    return np.minimum(even, min_size)


def repair(
    worker: np.ndarray, floors: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Moves random samples of the largest workers to those below their floor."""
    sizes = np.bincount(worker, minlength=floors.size)
    targets = _repaired_sizes(sizes, floors)
    shuffle = rng.permutation(worker.size)
    grouped = shuffle[stable_argsort(worker[shuffle])]
    rank = np.arange(worker.size) - (np.cumsum(sizes) - sizes)[worker[grouped]]
    moved = grouped[rank >= targets[worker[grouped]]]
    repaired = worker.copy()
    repaired[moved] = blocks(np.maximum(targets - sizes, 0))
    return repaired


def _repaired_sizes(sizes: np.ndarray, floors: np.ndarray) -> np.ndarray:
    """Raises sizes to their floors and lowers the largest to one level, sum kept.

    The level is the largest integer at which the cut covers the need, found by
    bisection; what it cuts too much is handed back, one sample each.
    """
    need = np.maximum(floors - sizes, 0).sum()
    low, high = 0, int(sizes.max())
    while low < high:
        level = (low + high + 1) // 2
        if np.maximum(sizes - np.maximum(floors, level), 0).sum() >= need:
            low = level
        else:
            high = level - 1
    cut = np.maximum(sizes - np.maximum(floors, low), 0)
    targets = np.maximum(sizes, floors) - cut
    donors = np.flatnonzero(cut)
    targets[donors[: cut.sum() - need]] += 1
    return targets
