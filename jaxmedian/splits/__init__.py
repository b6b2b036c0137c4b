"""Ways to share one labelled data set among workers, from iid to one class each.

Every function takes ``(labels, num_workers, *, seed=0, ...)``, uses every sample
exactly once and returns a frozen `Split`: who holds which samples, with padded index
arrays for jitted code, a printed table and a figure of how heterogeneous the outcome
is. NumPy only; the same seed and NumPy give the same split. Nothing here loads data,
draws mini-batches or knows a model. ``print(split.describe(labels))`` before each run.

    even sizes     `iid`, `shards`, `similarity`
    uneven sizes   `by_label` (as the classes are), `dirichlet`, `quantity`, `natural`
"""

from jaxmedian.splits.holdings import Split
from jaxmedian.splits.schemes import (
    by_label,
    dirichlet,
    iid,
    natural,
    quantity,
    shards,
    similarity,
)

__all__ = [
    "Split",
    "by_label",
    "dirichlet",
    "iid",
    "natural",
    "quantity",
    "shards",
    "similarity",
]
