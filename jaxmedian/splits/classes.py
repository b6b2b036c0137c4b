"""Classes dealt to workers in turn, and the check that the promise was kept.

A *place* is a pair (class, worker). `by_label` deals the places, cuts every class
evenly over its places, and has the finished split checked against what it promises.
"""

import numpy as np

from jaxmedian.splits.grouping import blocks, even_sizes
from jaxmedian.splits.holdings import Split
from jaxmedian.splits.validation import whole_number


def count_places(
    num_classes: int, num_workers: int, classes_per_worker: int | None
) -> int:
    """Counts the pairs (worker, class) to deal, after checking that they fit."""
    if classes_per_worker is None:
        return max(num_classes, num_workers)
    each = whole_number("classes_per_worker", classes_per_worker, 1)
    if each > num_classes:
        raise ValueError(
            f"`classes_per_worker` = {each}, but `labels` has only {num_classes} "
            "classes."
        )
    if each * num_workers < num_classes:
        fewest = -(-num_classes // num_workers)
        raise ValueError(
            f"`classes_per_worker` = {each} for {num_workers} workers leaves "
            f"{num_classes - each * num_workers} of {num_classes} classes without a "
            f"worker. Pass {fewest} or more, leave it out, or drop classes from the "
            "data first."
        )
    return each * num_workers


def deal_classes(
    num_classes: int, num_workers: int, num_places: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Deals shuffled classes in turn: (class, worker) of each place, by class.

    A worker's places follow one another and are at most C, so its classes differ.
    """
    place_class = rng.permutation(num_classes)[np.arange(num_places) % num_classes]
    place_worker = blocks(even_sizes(num_places, num_workers))
    smallest = np.full(num_workers, num_classes)
    np.minimum.at(smallest, place_worker, place_class)
    number = np.empty(num_workers, np.int64)
    number[np.argsort(smallest, kind="stable")] = np.arange(num_workers)
    by_class = np.lexsort([number[place_worker], place_class])
    return place_class[by_class], number[place_worker][by_class]


def class_shares(class_sizes: np.ndarray, place_class: np.ndarray) -> np.ndarray:
    """Counts the samples of each place: every class cut evenly over its places.

    Which places of a class get one sample more turns with the class, lest the
    remainders of all classes pile up on the first workers.
    """
    places = np.bincount(place_class)
    first = np.cumsum(places) - places
    rank = np.arange(place_class.size) - first[place_class]
    turned = (rank - place_class) % places[place_class]
    quotient, remainder = np.divmod(class_sizes, places)
    return quotient[place_class] + (turned < remainder[place_class])


def check_classes(split: Split, codes: np.ndarray, place_class: np.ndarray) -> None:
    """Raises if the finished split breaks what `by_label` promises."""
    places = np.bincount(place_class)
    cells = blocks(split.sizes) * places.size + codes[split.order]
    held, counts = np.unique(cells, return_counts=True)
    classes_held = np.bincount(held // places.size, minlength=split.num_workers)
    holders = np.bincount(held % places.size, minlength=places.size)
    most = np.zeros(places.size, np.int64)
    np.maximum.at(most, held % places.size, counts)
    least = np.full(places.size, codes.size)
    np.minimum.at(least, held % places.size, counts)
    least[holders < places] = 0  # some worker of this class went without

    kept = {
        "at most k classes a worker": (
            classes_held.max() <= -(-place_class.size // split.num_workers)
        ),
        "as many workers for each class, up to 1": np.ptp(places) <= 1,
        "no worker with a class of others": bool((holders <= places).all()),
        "a class shared out evenly": (most - least).max() <= 1,
    }
    broken = [promise for promise, holds in kept.items() if not holds]
    if broken:
        raise RuntimeError(
            f"`by_label` broke its promise ({'; '.join(broken)}). This is a bug: "
            "please report it with the labels."
        )
