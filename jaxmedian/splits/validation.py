"""Validate arguments of splits: labels, counts, numbers, each refused with its remedy.

Wrong types (a float where a count is meant, booleans, float labels) raise TypeError;
wrong values (negative, NaN, two-dimensional labels) raise ValueError. Labels become
codes 0..C-1 in the sorted order of their values here, once, and nowhere else.
"""

import math
import numbers
import operator
from typing import Any

import numpy as np
import numpy.typing as npt


def encode(name: str, labels: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Numbers the distinct values of a label vector in sorted order.

    Args:
      name: of the argument, for messages.
      labels: [N] integers or strings; an array, a list or a column of a table.

    Returns:
      ``(values [C], codes [N] int64)`` with ``values[codes] == labels``.

    Raises:
      TypeError: if they are neither integers nor strings.
      ValueError: if they are not one-dimensional, or empty.
    """
    array = _one_dimensional(name, labels)
    if array.dtype.kind in "iu":
        values, codes = np.unique(array, return_inverse=True)
        return values, codes
    words = array.tolist() if array.dtype.kind in "UTO" else []
    if not words or not all(isinstance(word, str) for word in words):
        raise TypeError(
            f"`{name}` must be integers or strings; got dtype {array.dtype}"
            f"{_remedy(name, array)}"
        )
    # A dictionary, since sorting a million strings takes NumPy more than a second.
    distinct = sorted(set(words))
    code_of = {word: code for code, word in enumerate(distinct)}
    codes = np.fromiter(map(code_of.__getitem__, words), np.int64, len(words))
    return np.array(distinct), codes


def _remedy(name: str, array: np.ndarray) -> str:
    """Says what to do about labels of a type that is no class: what works for these."""
    if array.dtype.kind == "S":
        return f". Decode them: `np.char.decode({name})`."
    if array.dtype.kind == "b":
        return f". Convert them: `np.asarray({name}).astype(int)`."
    if array.dtype.kind == "f":
        if np.isnan(array).any():
            return (
                f", and {int(np.isnan(array).sum())} of them are NaN. Leave these "
                f"samples out: `keep = ~np.isnan({name})`, then "
                f"`{name}[keep].astype(np.int64)`, and the data likewise."
            )
        if np.isfinite(array).all() and (array == np.rint(array)).all():
            return f". Convert them: `np.asarray({name}).astype(int)`."
        return f". Bin a continuous target: `np.digitize({name}, edges)`."
    if array.dtype.kind == "O":
        kinds = sorted({type(label).__name__ for label in array.tolist()})
        return (
            f" of {', '.join(kinds)}. Leave samples without a label out, and make the "
            f"others one type: `np.array([str(label) for label in {name}])`."
        )
    return f". Convert them: `np.asarray({name}).astype(str)`."


def _one_dimensional(name: str, labels: npt.ArrayLike) -> np.ndarray:
    """Returns labels as an array [N] with N >= 1, of whatever type."""
    wanted = f"`{name}` must be one-dimensional, one entry a sample"
    try:
        array = np.asarray(labels)
    except ValueError as error:
        raise ValueError(f"{wanted}; got rows of different lengths.") from error
    if array.ndim == 0:
        raise TypeError(f"{wanted}; got {labels!r}.")
    if array.ndim != 1:
        raise ValueError(
            f"{wanted}; got shape {array.shape}. For one-hot rows pass "
            f"`{name}.argmax(1)`, for a column `{name}.ravel()`."
        )
    if array.size == 0:
        raise ValueError(f"`{name}` is empty; a split needs at least one sample.")
    return array


def whole_number(name: str, value: Any, minimum: int) -> int:
    """Returns a count as an int; refuses booleans, floats and what is too small."""
    wanted = f"`{name}` must be an integer >= {minimum}; got {value!r}."
    if isinstance(value, bool | np.bool_):
        raise TypeError(wanted)
    try:
        number = operator.index(value)
    except TypeError as error:
        raise TypeError(wanted) from error
    if number < minimum:
        raise ValueError(wanted)
    return number


def concentration(name: str, value: object) -> float:
    """Returns the parameter of a Dirichlet law as a float > 0."""
    number = _real(name, value)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(
            f"`{name}` must be finite and > 0; got {value!r}. Near one label or one "
            "worker takes all: 0.01; close to equal proportions: 1000."
        )
    return number


def fraction(name: str, value: object) -> float:
    """Returns a number in [0, 1] as a float."""
    number = _real(name, value)
    if not 0 <= number <= 1:
        raise ValueError(
            f"`{name}` must be a fraction between 0 and 1; got {value!r}. For 10 % "
            "pass 0.1."
        )
    return number


def _real(name: str, value: object) -> float:
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
        raise TypeError(f"`{name}` must be a number; got {value!r}.")
    return float(value)
