"""`Split`: which samples each worker holds, and how heterogeneous that is.

Stored as ragged rows, ``order[offsets[i] : offsets[i + 1]]`` for worker i, which cost
O(N) however uneven the workers are. The rectangles that jitted code wants,
``indices`` and ``mask`` [M, n], are built when first asked for; n is the size of the
largest worker.
"""

import dataclasses
import functools
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from jaxmedian.splits.validation import encode

# 400 MB of int32: beyond it a rectangle is a mistake more often than a wish.
MAX_CELLS = 100_000_000

_DIVERGENCE = "mean over workers of (1/2) sum_c |p_worker(c) - p(c)|"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Split:
    """Which of N samples each of M workers holds.

    The functions of `jaxmedian.splits` build one that uses every sample exactly once.
    Built by hand it may leave samples out or give one to several workers. The arrays
    are copied and read-only. Two splits are equal if their arrays are.

    Attributes:
      order: [N] int64 sample numbers, worker after worker, at random within a worker.
      offsets: [M + 1] int64, from 0 to N; worker i holds
        ``order[offsets[i] : offsets[i + 1]]``.
      num_samples: N of the data, where all of it was split; None, by hand, for any.

    Raises:
      TypeError: if the arrays do not hold integers.
      ValueError: if they are not one-dimensional, ``order`` is empty or negative, or
        ``offsets`` does not rise from 0 to N.

    >>> split = Split(order=[4, 0, 2, 1, 3], offsets=[0, 2, 5])
    >>> split
    Split(5 samples, 2 workers of 2 to 3 samples)
    >>> split.indices
    array([[4, 0, 4],
           [2, 1, 3]], dtype=int32)
    >>> split.mask
    array([[ True,  True, False],
           [ True,  True,  True]])
    """

    order: np.ndarray
    offsets: np.ndarray
    num_samples: int | None = None

    def __post_init__(self) -> None:
        order = _frozen_integers("order", self.order)
        offsets = _frozen_integers("offsets", self.offsets)
        if order.size == 0 or order.min() < 0:
            raise ValueError("`order` must hold at least one sample, numbered from 0.")
        rises = offsets.size >= 2 and bool((np.diff(offsets) >= 0).all())
        if not rises or offsets[0] != 0 or offsets[-1] != order.size:
            raise ValueError(
                f"`offsets` must rise from 0 to the number of samples, {order.size}, "
                f"with one entry more than there are workers; got {offsets}."
            )
        object.__setattr__(self, "order", order)
        object.__setattr__(self, "offsets", offsets)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Split):
            return NotImplemented
        return np.array_equal(self.order, other.order) and np.array_equal(
            self.offsets, other.offsets
        )

    def __hash__(self) -> int:
        return hash((self.order.tobytes(), self.offsets.tobytes()))

    def __repr__(self) -> str:
        sizes = self.sizes
        return (
            f"Split({self.order.size} samples, {self.num_workers} workers of "
            f"{sizes.min()} to {sizes.max()} samples)"
        )

    @property
    def num_workers(self) -> int:
        """M, empty workers included."""
        return self.offsets.size - 1

    @property
    def sizes(self) -> np.ndarray:
        """[M] samples of each worker; ``sizes > 0`` is the `worker_mask` of a step."""
        return np.diff(self.offsets)

    @functools.cached_property
    def indices(self) -> np.ndarray:
        """[M, n] int32 sample numbers, rows padded to the largest worker.

        Padding is always a valid index, so that ``x[split.indices]`` needs no guard: a
        worker's own samples again, from its first on; an empty worker is given the
        first sample of the first worker that has one. ``mask`` tells them apart.

        Raises:
          ValueError: if M * n is above 100 million, or a number above 2^31 - 1.
        """
        width = self._width()
        if self.order.max() > np.iinfo(np.int32).max:
            raise ValueError(
                f"`indices` are int32, and sample {self.order.max():,} is above them: "
                "use `order` and `offsets`."
            )
        # int32 throughout: width <= N, and N <= M * n is bounded by the check above.
        columns = np.arange(width, dtype=np.int32)
        repeat_after = np.maximum(self.sizes, 1).astype(np.int32)
        starts = np.where(self.sizes > 0, self.offsets[:-1], 0).astype(np.int32)
        positions = columns % repeat_after[:, None] + starts[:, None]
        return _read_only(self.order.astype(np.int32)[positions])

    @functools.cached_property
    def mask(self) -> np.ndarray:
        """[M, n] bool, True where ``indices`` holds a sample and not padding.

        Raises:
          ValueError: if M * n is above 100 million.
        """
        return _read_only(np.arange(self._width()) < self.sizes[:, None])

    def _width(self) -> int:
        width = int(self.sizes.max())
        if self.num_workers * width > MAX_CELLS:
            raise ValueError(
                f"`indices` and `mask` would have {self.num_workers} workers x {width} "
                f"samples = {self.num_workers * width:,} cells, above the limit of "
                f"{MAX_CELLS:,}. Use `order` and `offsets`, more even workers (`iid`, "
                "`shards`, `similarity`), or fewer samples."
            )
        return width

    def label_table(self, labels: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Counts the samples of each worker by label.

        Args:
          labels: [N] integers or strings, those the split was made from.

        Returns:
          ``(values [C], counts [M, C])``: the distinct labels, sorted, and the table.

        Raises:
          TypeError: if the labels are neither integers nor strings.
          ValueError: if there are too few, or others than were split, or the table
            would have more than 100 million cells.

        >>> Split([0, 1, 2], [0, 1, 3]).label_table(["b", "a", "b"])
        (array(['a', 'b'], dtype='<U1'), array([[0, 1],
               [1, 1]]))
        """
        values, codes = encode("labels", labels)
        needed = self.num_samples or int(self.order.max()) + 1
        if codes.size < needed or (self.num_samples and codes.size > needed):
            raise ValueError(
                f"`labels` has {codes.size} entries, but the split has {needed} "
                "samples. Pass the labels that the split was made from."
            )
        shape = (self.num_workers, values.size)
        if shape[0] * shape[1] > MAX_CELLS:
            raise ValueError(
                f"`labels` has {values.size} distinct values: a table over {shape[0]} "
                f"workers is above the limit of {MAX_CELLS:,} cells. Bin them first."
            )
        worker = np.repeat(np.arange(self.num_workers), self.sizes)
        cells = worker * values.size + codes[self.order]
        return values, np.bincount(cells, minlength=shape[0] * shape[1]).reshape(shape)

    def label_divergence(self, labels: npt.ArrayLike) -> float:
        """Measures how far the workers' label mixtures lie from the overall one.

        The mean over workers i that hold samples, each counted once, of the total
        variation distance TV_i = (1/2) sum_c |p_i(c) - p(c)|, with p_i(c) the share of
        label c among worker i's samples and p(c) among all. 0: every worker has the
        overall mixture. C equal classes, one a worker: 1 - 1/C. Few samples a worker
        give a positive value even to `iid`.

        Args:
          labels: [N] integers or strings, those the split was made from.

        Returns:
          A number in [0, 1).

        Raises:
          TypeError: as `label_table`.
          ValueError: as `label_table`.

        >>> Split([0, 1, 2, 3], [0, 2, 4]).label_divergence([0, 0, 1, 1])
        0.5
        """
        return _mean_total_variation(self.label_table(labels)[1])

    def describe(
        self, labels: npt.ArrayLike, *, max_workers: int = 20, max_labels: int = 12
    ) -> str:
        """Writes the worker x label table and the label divergence as text.

        What the split does to a model, the gradient dissimilarity (G, B), needs JAX:
        `jaxmedian.diagnostics.gradient_dissimilarity` measures it and its ``describe``
        gives the line to print below this.

        Args:
          labels: [N] integers or strings, those the split was made from.
          max_workers: rows to show; the middle is left out beyond (at least 2).
          max_labels: columns to show; the others are added up in a column "+k".

        Returns:
          Lines to print, without a final newline. A dot is no sample.

        Raises:
          TypeError: as `label_table`.
          ValueError: as `label_table`.

        >>> print(Split([0, 1, 2, 3, 4], [0, 2, 5]).describe([0, 0, 1, 1, 0]))
        5 samples, 2 workers of 2 to 3 samples, 2 labels
        worker  size |  0  1
             0     2 |  2  .
             1     3 |  1  2
           all     5 |  3  2
        label divergence 0.333: mean over workers of (1/2) sum_c |p_worker(c) - p(c)|
        """
        values, counts = self.label_table(labels)
        lines = [
            f"{self.order.size} samples, {self.num_workers} workers of "
            f"{self.sizes.min()} to {self.sizes.max()} samples, {values.size} labels",
            *_table_lines(values, counts, max(max_workers, 2), max(max_labels, 1)),
            f"label divergence {_mean_total_variation(counts):.3f}: {_DIVERGENCE}",
        ]
        num_empty = int((self.sizes == 0).sum())
        if num_empty:
            lines.append(f"{num_empty} workers are empty and left out of that mean")
        return "\n".join(lines)

    def plot(self, labels: npt.ArrayLike, ax: Any = None) -> Any:
        """Draws the worker x label table as an image.

        Args:
          labels: [N] integers or strings, those the split was made from.
          ax: matplotlib axes to draw into; a new figure by default.

        Returns:
          The axes.

        Raises:
          ImportError: if matplotlib is not installed.
          TypeError: as `label_table`.
          ValueError: as `label_table`.
        """
        values, counts = self.label_table(labels)
        if ax is None:
            _, ax = _pyplot().subplots(layout="constrained")
        image = ax.imshow(counts, aspect="auto", interpolation="nearest", vmin=0)
        ax.figure.colorbar(image, ax=ax, label="samples")
        divergence = _mean_total_variation(counts)
        ax.set(xlabel="label", ylabel="worker")
        ax.set_title(f"label divergence {divergence:.3f}")
        if values.size <= 20:
            ax.set_xticks(range(values.size), [str(value) for value in values])
        return ax


def _frozen_integers(name: str, values: Any) -> np.ndarray:
    """Returns a read-only int64 copy of a vector of integers."""
    array = np.array(values)
    if array.ndim != 1:
        raise ValueError(f"`{name}` must be one-dimensional; got shape {array.shape}.")
    if array.size and array.dtype.kind not in "iu":
        raise TypeError(f"`{name}` must hold integers; got dtype {array.dtype}.")
    return _read_only(array.astype(np.int64))


def _read_only(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array


def _mean_total_variation(counts: np.ndarray) -> float:
    """Computes the mean over non-empty rows of the distance to the pooled row."""
    present = counts[counts.any(axis=1)]
    shares = present / present.sum(axis=1, keepdims=True)
    overall = counts.sum(axis=0) / counts.sum()
    return float(0.5 * np.abs(shares - overall).sum(axis=1).mean())


def _table_lines(
    values: np.ndarray, counts: np.ndarray, max_workers: int, max_labels: int
) -> list[str]:
    """Aligns the table in columns; rows and columns beyond the limits are summed up."""
    num_workers, num_labels = counts.shape
    header = ["worker", "size", *(str(value)[:12] for value in values[:max_labels])]
    if num_labels > max_labels:
        header.append(f"+{num_labels - max_labels}")
        others = counts[:, max_labels:].sum(axis=1, keepdims=True)
    else:
        others = counts[:, :0]
    sizes = counts.sum(axis=1, keepdims=True)
    table = np.hstack([sizes, counts[:, :max_labels], others])

    shown = np.arange(num_workers)
    if num_workers > max_workers:
        tail = min(3, max_workers // 2)
        shown = np.r_[shown[: max_workers - tail], shown[-tail:]]
    names = [*(str(worker) for worker in shown), "all"]
    numbers = np.vstack([table[shown], table.sum(axis=0)])
    rows = [
        [name, *(str(cell) if cell else "." for cell in row)]
        for name, row in zip(names, numbers.tolist(), strict=True)
    ]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [_line(row, widths) for row in [header, *rows]]
    if num_workers > max_workers:
        gap = f"... {num_workers - max_workers} more workers ..."
        lines.insert(1 + max_workers - tail, gap)
    return lines


def _line(cells: list[str], widths: list[int]) -> str:
    padded = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
    return "  ".join(padded[:2]) + " |  " + "  ".join(padded[2:])


def _pyplot() -> ModuleType:
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError(
            "`Split.plot` draws with matplotlib, which is not installed: `pip install "
            "matplotlib`, or print `split.describe(labels)`."
        ) from error
    return pyplot
