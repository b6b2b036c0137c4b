"""The seven ways to share samples among workers.

Each scheme is the same three moves: line the samples up (at random, or by label and at
random inside a label), name the worker of each place in the line, and group by worker
(`group`). No loop depends on luck: the repair of small workers is one pass with a
computed outcome.
"""

import numpy as np
import numpy.typing as npt

from jaxmedian.splits.classes import (
    check_classes,
    class_shares,
    count_places,
    deal_classes,
)
from jaxmedian.splits.grouping import (
    blocks,
    by_label_order,
    even_sizes,
    group,
    stable_argsort,
)
from jaxmedian.splits.holdings import MAX_CELLS, Split
from jaxmedian.splits.proportions import dirichlet_workers, repair, size_floors
from jaxmedian.splits.validation import concentration, encode, fraction, whole_number


def iid(labels: npt.ArrayLike, num_workers: int, *, seed: int = 0) -> Split:
    """Deals the shuffled samples out evenly: the homogeneous reference.

    Args:
      labels: [N] integers or strings; only their number matters here.
      num_workers: M >= 1. With M > N the last M - N workers stay empty, with a warning.
      seed: integer >= 0.

    Returns:
      A `Split` whose sizes differ by at most 1.

    Raises:
      TypeError: if the labels are neither integers nor strings, or a count no integer.
      ValueError: if the labels are empty or not one-dimensional, or a count too small.

    >>> iid([0, 0, 0, 1, 1, 1, 1], 3).sizes
    array([3, 2, 2])
    """
    _, codes, num_workers, rng = _inputs(labels, num_workers, seed)
    worker = blocks(even_sizes(codes.size, num_workers))
    return group(rng.permutation(codes.size), worker, num_workers, rng)


def by_label(
    labels: npt.ArrayLike,
    num_workers: int,
    *,
    classes_per_worker: int | None = None,
    seed: int = 0,
) -> Split:
    """Gives every worker classes of its own: the hardest split, and the paper's.

    With C classes and k = ``classes_per_worker``, the M k places are dealt to the
    classes in turn, so that numbers of workers per class differ by at most 1, and a
    class with several workers is shared out evenly among them (up to 1 sample). A class
    is exclusive to one worker whenever M k <= C. Workers are numbered by their smallest
    class: with M = C and k = 1, worker i holds the i-th label. The guarantee is checked
    on the result, not assumed. A class with fewer samples than workers leaves some of
    its workers without it; those left with nothing are named in a warning.

    Args:
      labels: [N] integers or strings.
      num_workers: M >= 1.
      classes_per_worker: k, from 1 to C, with M k >= C so that no sample is left out.
        By default as few as cover all classes: 1 if M >= C, else C / M exclusive
        classes, rounded up or down.
      seed: integer >= 0; picks which classes share a worker or get one worker more,
        and which samples go where.

    Returns:
      A `Split`; the sizes follow the classes.

    Raises:
      TypeError: if the labels are neither integers nor strings, or a count no integer.
      ValueError: if the labels are empty or not one-dimensional, a count is too small,
        or k exceeds C or leaves a class without a worker.

    Reference: the heterogeneous setting of Chen et al., "Distributed Training with
    Heterogeneous Data: Bridging Median- and Mean-Based Algorithms", NeurIPS 2020.

    >>> labels = [0, 0, 0, 0, 1, 1, 2]
    >>> print(by_label(labels, 3).describe(labels))
    7 samples, 3 workers of 1 to 4 samples, 3 labels
    worker  size |  0  1  2
         0     4 |  4  .  .
         1     2 |  .  2  .
         2     1 |  .  .  1
       all     7 |  4  2  1
    label divergence 0.667: mean over workers of (1/2) sum_c |p_worker(c) - p(c)|
    """
    values, codes, num_workers, rng = _inputs(labels, num_workers, seed)
    num_places = count_places(values.size, num_workers, classes_per_worker)
    place_class, place_worker = deal_classes(values.size, num_workers, num_places, rng)
    worker = np.repeat(place_worker, class_shares(np.bincount(codes), place_class))
    split = group(by_label_order(codes, rng), worker, num_workers, rng)
    check_classes(split, codes, place_class)
    return split


def shards(
    labels: npt.ArrayLike,
    num_workers: int,
    *,
    shards_per_worker: int | None = None,
    seed: int = 0,
) -> Split:
    """Cuts the samples, sorted by label, into shards and deals these out at random.

    A worker sees few classes, at most about two per shard, and workers overlap: milder
    than `by_label`, with nearly even sizes.

    Args:
      labels: [N] integers or strings.
      num_workers: M >= 1.
      shards_per_worker: shards that each worker gets, M times this at most N. By
        default 2, McMahan's, or 1 where there are fewer than 2 M samples (with fewer
        than M samples, M - N workers then stay empty, with a warning).
      seed: integer >= 0.

    Returns:
      A `Split` whose sizes differ by at most ``shards_per_worker``.

    Raises:
      TypeError: if the labels are neither integers nor strings, or a count no integer.
      ValueError: if the labels are empty or not one-dimensional, a count is too small,
        or there would be more shards than samples.

    Reference: McMahan et al., "Communication-Efficient Learning of Deep Networks from
    Decentralized Data", AISTATS 2017, section 3 (200 shards of 300 digits, 2 each).

    >>> labels = [digit for digit in range(10) for _ in range(60)]
    >>> split = shards(labels, 100)
    >>> int((split.label_table(labels)[1] > 0).sum(axis=1).max())
    2
    """
    _, codes, num_workers, rng = _inputs(labels, num_workers, seed)
    if shards_per_worker is None:
        shards_per_worker = 2 if codes.size >= 2 * num_workers else 1
        num_shards = num_workers * shards_per_worker
    else:
        shards_per_worker = whole_number("shards_per_worker", shards_per_worker, 1)
        num_shards = num_workers * shards_per_worker
        if num_shards > codes.size:
            raise ValueError(
                f"`shards_per_worker` = {shards_per_worker} for {num_workers} workers "
                f"makes {num_shards} shards of only {codes.size} samples. Use fewer "
                "workers or shards, or leave `shards_per_worker` out."
            )
    shard_worker = rng.permutation(num_shards) // shards_per_worker
    worker = np.repeat(shard_worker, even_sizes(codes.size, num_shards))
    return group(by_label_order(codes, rng), worker, num_workers, rng)


def dirichlet(
    labels: npt.ArrayLike,
    num_workers: int,
    *,
    alpha: float = 0.5,
    min_size: int = 1,
    seed: int = 0,
) -> Split:
    """Spreads each class over the workers in Dirichlet proportions.

    What alpha means here: for **each class, proportions over workers**
    p_c ~ Dirichlet(alpha, ..., alpha) of length M, and worker i gets the share p_c[i]
    of the samples of class c. Small alpha sends nearly all of a class to one worker,
    large alpha tends to equal shares (each class evenly spread); sizes are uneven, the
    more so the smaller alpha. (The other convention in use draws, for each worker,
    proportions over classes, which leaves the sizes even. Values of alpha do not carry
    over from one to the other.)

    Repair: a worker below ``min_size`` is filled up with samples drawn at random from
    the largest workers, which are lowered to a common level. This is one bounded pass,
    and changes nothing if no worker is small. It cannot fail: if N < M min_size,
    the workers end up with N / M samples, rounded up or down, and a warning says so.

    Args:
      labels: [N] integers or strings.
      num_workers: M >= 1.
      alpha: concentration > 0, without unit; 1e-3 to 1e3 is the useful range.
      min_size: samples that every worker holds at least; 0 allows empty workers, which
        are named in a warning.
      seed: integer >= 0.

    Returns:
      A `Split` with uneven sizes.

    Raises:
      TypeError: if the labels are neither integers nor strings, or a number no number.
      ValueError: if the labels are empty or not one-dimensional, alpha is not finite
        and positive, a count is too small, or C * M is above 100 million.

    References: Hsu, Qi and Brown, "Measuring the Effects of Non-Identical Data
    Distribution for Federated Visual Classification", 2019 (the Dirichlet family of
    splits; they draw per worker); Yurochkin et al., "Bayesian Nonparametric Federated
    Learning of Neural Networks", ICML 2019 (per class over workers, as here).

    >>> labels = [0] * 100 + [1] * 100
    >>> dirichlet(labels, 4, alpha=1000.0).label_divergence(labels) < 0.1
    True
    >>> int(dirichlet(labels, 4, alpha=0.001, min_size=10).sizes.min())
    10
    """
    values, codes, num_workers, rng = _inputs(labels, num_workers, seed)
    alpha = concentration("alpha", alpha)
    min_size = whole_number("min_size", min_size, 0)
    if values.size * num_workers > MAX_CELLS:
        raise ValueError(
            f"`labels` has {values.size} distinct values: proportions over "
            f"{num_workers} workers are above the limit of {MAX_CELLS:,} cells. Bin "
            "them first."
        )
    floors = size_floors(codes.size, num_workers, min_size)
    worker = dirichlet_workers(np.bincount(codes), num_workers, alpha, rng)
    worker = repair(worker, floors, rng)
    return group(by_label_order(codes, rng), worker, num_workers, rng)


def similarity(
    labels: npt.ArrayLike, num_workers: int, *, s: float = 0.1, seed: int = 0
) -> Split:
    """Mixes a fraction s of iid samples with a rest that is sorted by label.

    round(s N) samples are dealt out at random, the others sorted by label and cut into
    M blocks: a dial from one or few classes a worker (s = 0) to `iid` (s = 1), at even
    sizes throughout.

    Args:
      labels: [N] integers or strings.
      num_workers: M >= 1. With M > N the last M - N workers stay empty, with a warning.
      s: fraction in [0, 1]; SCAFFOLD's "10 % similarity" is 0.1.
      seed: integer >= 0.

    Returns:
      A `Split` whose sizes differ by at most 1.

    Raises:
      TypeError: if the labels are neither integers nor strings, or a number no number.
      ValueError: if the labels are empty or not one-dimensional, s is outside [0, 1] or
        NaN, or a count too small.

    Reference: Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for
    Federated Learning", ICML 2020, section 7.

    >>> labels = [0] * 10 + [1] * 10
    >>> similarity(labels, 2, s=0.0).label_divergence(labels)
    0.5
    """
    _, codes, num_workers, rng = _inputs(labels, num_workers, seed)
    samples = rng.permutation(codes.size)
    num_iid = round(fraction("s", s) * codes.size)
    rest = samples[num_iid:]
    rest = rest[stable_argsort(codes[rest])]

    iid_sizes = even_sizes(num_iid, num_workers)
    rest_sizes = even_sizes(codes.size, num_workers) - iid_sizes
    worker = np.concatenate([blocks(iid_sizes), blocks(rest_sizes)])
    line = np.concatenate([samples[:num_iid], rest])
    return group(line, worker, num_workers, rng)


def quantity(
    labels: npt.ArrayLike,
    num_workers: int,
    *,
    alpha: float = 0.5,
    min_size: int = 1,
    seed: int = 0,
) -> Split:
    """Gives workers unequal numbers of iid samples: skew of size, not of labels.

    Sizes are N q with one draw q ~ Dirichlet(alpha, ..., alpha) over the M workers,
    rounded, and repaired as in `dirichlet`.

    Args:
      labels: [N] integers or strings; only their number matters here.
      num_workers: M >= 1.
      alpha: concentration > 0, without unit; small is uneven.
      min_size: samples that every worker holds at least; 0 allows empty workers, which
        are named in a warning.
      seed: integer >= 0.

    Returns:
      A `Split` with uneven sizes.

    Raises:
      TypeError: if the labels are neither integers nor strings, or a number no number.
      ValueError: if the labels are empty or not one-dimensional, alpha is not finite
        and positive, or a count too small.

    Reference: Li et al., "Federated Learning on Non-IID Data Silos: An Experimental
    Study", ICDE 2022 (quantity skew).

    >>> split = quantity([0] * 50 + [1] * 50, 4, alpha=0.1, min_size=5)
    >>> int(split.sizes.min()), int(split.sizes.sum())
    (5, 100)
    """
    _, codes, num_workers, rng = _inputs(labels, num_workers, seed)
    alpha = concentration("alpha", alpha)
    floors = size_floors(codes.size, num_workers, whole_number("min_size", min_size, 0))
    worker = dirichlet_workers(np.array([codes.size]), num_workers, alpha, rng)
    worker = repair(worker, floors, rng)
    return group(rng.permutation(codes.size), worker, num_workers, rng)


def natural(
    labels: npt.ArrayLike, num_workers: int, *, ids: npt.ArrayLike, seed: int = 0
) -> Split:
    """Follows ids that came with the data: a writer, a hospital, a device.

    Integer ids that all lie in 0..M-1 name the worker. All other ids (strings, numbers
    of writers) are groups, numbered in sorted order: the first id is worker 0.

    Args:
      labels: [N] integers or strings; only their number matters here.
      num_workers: M, at least the number of distinct ids; workers without samples stay
        empty, with a warning.
      ids: [N] integers or strings, whose each sample is.
      seed: integer >= 0; orders the samples within a worker, nothing else.

    Returns:
      A `Split` whose sizes follow the ids.

    Raises:
      TypeError: if labels or ids are neither integers nor strings.
      ValueError: if they are empty, not one-dimensional or of different lengths, or
        name more than M workers.

    Reference: Caldas et al., "LEAF: A Benchmark for Federated Settings", 2018.

    >>> natural([0, 1, 1, 0], 2, ids=["eve", "bob", "bob", "bob"]).sizes
    array([3, 1])
    """
    _, codes, num_workers, rng = _inputs(labels, num_workers, seed)
    names, worker = encode("ids", ids)
    if worker.size != codes.size:
        raise ValueError(
            f"`ids` has {worker.size} entries, `labels` {codes.size}; each sample "
            "needs one of both."
        )
    if names.size > num_workers:
        raise ValueError(
            f"`ids` names {names.size} workers, `num_workers` is {num_workers}. Pass "
            f"num_workers={names.size}, or merge ids first."
        )
    if names.dtype.kind in "iu" and names[0] >= 0 and names[-1] < num_workers:
        worker = names[worker].astype(np.int64)
    return group(np.arange(codes.size), worker, num_workers, rng)


def _inputs(
    labels: npt.ArrayLike, num_workers: int, seed: int
) -> tuple[np.ndarray, np.ndarray, int, np.random.Generator]:
    """Checks the common arguments: (label values [C], codes [N], M, generator)."""
    values, codes = encode("labels", labels)
    num_workers = whole_number("num_workers", num_workers, 1)
    return (
        values,
        codes,
        num_workers,
        np.random.default_rng(whole_number("seed", seed, 0)),
    )
