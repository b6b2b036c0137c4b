"""Group samples by worker: a line of samples, a worker for each place in it.

A scheme lines the samples up (at random, or by label and at random inside a label) and
names the worker of each place in the line; `group` collects each worker's samples into
a `Split` and announces workers that got none.
"""

import warnings

import numpy as np

from jaxmedian.splits.holdings import Split


def even_sizes(total: int, parts: int) -> np.ndarray:
    """Cuts a total into parts that differ by at most 1, the larger ones first."""
    return total // parts + (np.arange(parts) < total % parts)


def blocks(sizes: np.ndarray) -> np.ndarray:
    """Names the workers of consecutive places: 0, ..., 0, 1, ..., 1, ..."""
    return np.repeat(np.arange(sizes.size), sizes)


def stable_argsort(keys: np.ndarray) -> np.ndarray:
    """Sorts small non-negative integers, equal ones in their given order."""
    # NumPy sorts keys of 16 bits by radix, several times faster than longer ones.
    if keys.size and keys.max() < 2**16:
        keys = keys.astype(np.uint16)
    return np.argsort(keys, kind="stable")


def by_label_order(codes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Lines the samples up by label, at random inside a label."""
    samples = rng.permutation(codes.size)
    return samples[stable_argsort(codes[samples])]


def group(
    line: np.ndarray, worker: np.ndarray, num_workers: int, rng: np.random.Generator
) -> Split:
    """Collects each worker's samples, in random order, and announces empty workers.

    Called by the public functions themselves: the warning points at their caller.
    """
    shuffle = rng.permutation(line.size)
    order = line[shuffle][stable_argsort(worker[shuffle])]
    sizes = np.bincount(worker, minlength=num_workers)
    empty = np.flatnonzero(sizes == 0)
    if empty.size:
        named = ", ".join(map(str, empty[:10]))
        more = f" and {empty.size - 10} more" if empty.size > 10 else ""
        warnings.warn(
            f"{empty.size} of {num_workers} workers hold no sample: {named}{more}. "
            "They enter a step as absent: pass `worker_mask=split.sizes > 0`, or split "
            "over fewer workers.",
            stacklevel=3,
        )
    return Split(order, np.concatenate([[0], np.cumsum(sizes)]), line.size)
