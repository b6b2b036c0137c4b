"""What a run evaluates at chunk edges, and the best parameters so far."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmedian.training.feeds import as_partial, kind_of
from jaxmedian.training.remembering import remember
from jaxmedian.workers.collectives import PyTree

Evaluate = Callable[..., dict[str, Any]]  # of the parameters, and a model's state
Scores = dict[str, jax.Array]


def build_evaluation(
    evaluate: Evaluate | None, optimizer: optax.GradientTransformation
) -> Evaluate:
    """Builds ``(params[, model_state]) -> {name: value}``, compiled, of a user's.

    It lives as long as the optimizer of the run.

    Raises:
      TypeError: if it is no function; when called, if it returns no dictionary of
        numbers.
    """
    if evaluate is None:
        return lambda *model: {}
    if not callable(evaluate):
        raise TypeError(
            "`evaluate` must be a function (params) -> {name: value}, traced, or "
            "(params, model_state) of a model with state; got "
            f"{kind_of(evaluate)}."
        )

    def evaluated(evaluate: jax.tree_util.Partial, *model: PyTree) -> Scores:
        scores = evaluate(*model)
        if not isinstance(scores, dict):
            raise TypeError(
                f"`evaluate` must return {{name: value}}; it returned "
                f"{kind_of(scores)}."
            )
        return {name: as_number("`evaluate`", name, x) for name, x in scores.items()}

    # Of a Partial the data are an argument: others of the same form compile once.
    partial = as_partial(evaluate)
    compiled = remember(
        optimizer,
        ("evaluate", jax.tree.structure(partial)),
        lambda: jax.jit(evaluated),
    )
    return functools.partial(compiled, partial)


def join_scores(row: dict[str, Any], scores: dict[str, Any]) -> dict[str, Any]:
    """Adds what was evaluated to what was measured.

    Raises:
      ValueError: for a name that the measurements have.
    """
    if scores.keys() & row.keys():
        raise ValueError(
            f"`evaluate` returns {sorted(scores.keys() & row.keys())}, names that are "
            "measurements of the run's own or of `metrics`. Rename them."
        )
    return row | scores


def as_number(function: str, name: object, value: object) -> jax.Array:
    """Returns a measurement as an array of real numbers.

    Raises:
      TypeError: if it is none, or has no name; naming the function that returned it.
    """
    try:
        if value is None or isinstance(value, list | tuple):
            raise TypeError
        array = jnp.asarray(value)
        is_real = any(
            jnp.issubdtype(array.dtype, kind)
            for kind in (jnp.floating, jnp.integer, jnp.bool_)
        )
        if not (isinstance(name, str) and is_real):
            raise TypeError
    except TypeError:
        raise TypeError(
            f"{function} must return {{name: array}}, names that are strings and "
            f"arrays of real numbers; it returned {value!r} as {name!r}."
        ) from None
    return array


class Best(NamedTuple):
    """The best parameters that a run has met at an edge.

    Attributes:
      value: theirs; -inf (inf if less is better) before the first that is a number.
      model: copies of them and of the model's state, if it has one; those of the start
        before.
    """

    value: float
    model: tuple[PyTree, ...]


def first_best(keep_best: str | None, model: tuple[PyTree, ...]) -> Best | None:
    """Returns what is best before the first edge, if anything is to be kept.

    Raises:
      TypeError: if ``keep_best`` is no name.
    """
    if keep_best is None:
        return None
    if not isinstance(keep_best, str):
        raise TypeError(
            '`keep_best` must be the name of a measurement, as "accuracy", or "-loss" '
            f"where less is better; got {keep_best!r}."
        )
    worst = math.inf if keep_best.startswith("-") else -math.inf
    return Best(worst, jax.tree.map(jnp.copy, model))


def better_of(
    best: Best | None,
    keep_best: str | None,
    row: dict[str, Any],
    model: tuple[PyTree, ...],
) -> Best | None:
    """Returns the better of the best so far and the parameters of an edge.

    Raises:
      ValueError: if the row has no such number.
    """
    if best is None or keep_best is None:
        return None
    value = row.get(keep_best.removeprefix("-"))
    if not isinstance(value, float):
        numbers = [name for name, held in row.items() if isinstance(held, float)]
        raise ValueError(
            f"`keep_best` {keep_best!r} names no number among the measurements of this "
            f'run: {numbers}; with "-" before it where less is better.'
        )
    is_better = value < best.value if keep_best.startswith("-") else value > best.value
    return Best(value, jax.tree.map(jnp.copy, model)) if is_better else best
