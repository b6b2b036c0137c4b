"""Transforms of optax before the aggregator: what their errors mean, what they mix.

They are written for updates like the parameters, and meet the worker axis, or a stream
of blocks in place of arrays. What fails then fails deep inside JAX or optax: the frames
that the error passed say in whose update. On a mesh one may do worse and not fail: a
norm over all updates is one of the workers of a device, and differs from that of all.
"""

import re
import types
from collections.abc import Callable, Collection, Iterator

import jax
import jax.numpy as jnp
import optax
from jax.extend.core import Jaxpr, JaxprEqn, Var

from jaxmedian.workers.collectives import MARK, PyTree
from jaxmedian.workers.population import Watch
from jaxmedian.workers.stream import WorkerStream

_CHAINS = ("chain", "named_chain")
_LINE_SEARCHES = ("scale_by_backtracking_linesearch", "scale_by_zoom_linesearch")
_UPDATES = (".update", ".update_fn")  # what factories of transforms call theirs
# Those that give back, or keep, something like the updates they are given.
_WRAPPERS = {
    "apply_if_finite": "optax.apply_if_finite",
    "conditionally_mask": "optax.conditionally_mask",
    "conditionally_transform": "optax.conditionally_transform",
    "mechanize": "optax.contrib.mechanize",
}


def explain(
    error: Exception,
    gradients: PyTree,
    params: optax.Params,
    extra_args: Collection[str],
) -> None:
    """Raises what an error means, with the remedy, where that is known.

    Args:
      error: of an optimizer's update.
      gradients: what the optimizer was given: leaves ``[M, ...]``, or a stream.
      params: parameters.
      extra_args: the names of its extra arguments.
    """
    if "value_fn" in str(error) and any(name in str(error) for name in _LINE_SEARCHES):
        raise TypeError(
            "The optimizer searches along a line for its learning rate, as L-BFGS does "
            "by default, and wants `grad` and `value_fn`, gradient and loss at other "
            "parameters, which a step does not give. Give it a learning rate: "
            "`optax.lbfgs(rate, linesearch=None)`."
        ) from error
    refused = re.match(r"(\w+)\..*unexpected keyword argument '(\w+)'", str(error))
    if refused is not None and refused[2] in extra_args:
        raise TypeError(
            f"`{refused[1]}` says that it takes extra arguments, and does not know "
            f"`{refused[2]}`: hide them, `optax.GradientTransformation(*{refused[1]}"
            "(...))`, and put it behind the aggregator."
        ) from error
    for frame, package, factory in _updates_around(error):
        is_wrapper = package == "optax" and factory in _WRAPPERS
        if is_wrapper and _have_worker_axis(frame.f_locals.get("updates"), params):
            name = _WRAPPERS[factory]
            raise TypeError(
                f"`{name}` wants updates like the parameters, and these have the "
                "worker axis: it cannot stand around an aggregator. Put it behind: "
                f"`optax.chain(jm.majority_vote(), {name}(optax.sgd(rate), ...))`."
            ) from error
    if isinstance(gradients, WorkerStream) and _is_about_streams(error):
        gradients.refuse(_foreign_transform(error))


# What treats every number by itself.
_ENTRYWISE = frozenset(
    (
        *("abs", "add", "add_any", "and", "atan2", "cbrt", "ceil", "clamp", "copy"),
        *("convert_element_type", "cos", "div", "eq", "erf", "exp", "exp2", "expm1"),
        *("floor", "ge", "gt", "integer_pow", "is_finite", "le", "log", "log1p"),
        *("logistic", "lt", "max", "min", "mul", "ne", "neg", "nextafter", "not"),
        *("optimization_barrier", "or", "pcast", "pow", "pvary", "reduce_precision"),
        *("rem", "round", "rsqrt", "select_n", "sign", "sin", "sqrt", "square"),
        *("stop_gradient", "sub", "tan", "tanh", "xor"),
    )
)


def check_rows_stay_apart(
    update: Callable[[PyTree, Watch], PyTree], gradients: PyTree
) -> None:
    """Raises where a foreign transform before one of ours mixes workers of a device.

    Args:
      update: the optimizer's, of gradients ``[m, ...]`` and the watch that is to see
        what comes to transforms of ours.
      gradients: the gradients.

    Raises:
      ValueError: if that is more than each number by itself, or of its row: a mean or
        norm of the device's workers in place of all, or random numbers, which would be
        the same on every device.
    """

    def arrivals(gradients: PyTree) -> list[jax.Array]:
        watch = Watch(gradients, marks=True)
        update(gradients, watch)
        return watch.changed

    jaxpr = jax.make_jaxpr(arrivals)(gradients).jaxpr
    if (operation := _mixing(jaxpr, [True] * len(jaxpr.invars))) is not None:
        raise ValueError(
            "A transform before the aggregator looks at several workers at once, or "
            f"draws (`{operation}`): on a mesh it would see those of one device alone, "
            "and its result depend on their number. Lift it with "
            "`jaxmedian.per_worker(transform, num_workers)`, which treats each worker "
            "by itself, or put it behind the aggregator."
        )


def _mixing(jaxpr: Jaxpr, is_of_rows: list[bool]) -> str | None:
    """Names an operation on the way to the results that is not row by row, or None."""
    rows = {var for var, is_one in zip(jaxpr.invars, is_of_rows, strict=True) if is_one}
    way, wanted = [], {var for var in jaxpr.outvars if isinstance(var, Var)} - rows
    for equation in reversed(jaxpr.eqns):
        if wanted.isdisjoint(equation.outvars):
            continue
        if equation.primitive is MARK:  # what one of our own transforms has made
            rows.update(equation.outvars)
            continue
        way.append(equation)
        wanted.update(var for var in equation.invars if isinstance(var, Var))
    for equation in reversed(way):
        name, params = equation.primitive.name, equation.params
        of_rows = [isinstance(v, Var) and v in rows for v in equation.invars]
        inner = params.get("jaxpr", params.get("call_jaxpr"))
        if name.startswith(("random_", "threefry")):
            return name
        if inner is not None and name not in ("scan", "while", "cond"):
            inner = getattr(inner, "jaxpr", inner)
            if (operation := _mixing(inner, of_rows)) is not None:
                return operation
        elif any(of_rows) and not _is_by_row(equation):
            return name
        if any(of_rows):
            rows.update(equation.outvars)
    return None


def _is_by_row(equation: JaxprEqn) -> bool:
    name, params = equation.primitive.name, equation.params
    if name == "broadcast_in_dim":
        rows = getattr(equation.invars[0].aval, "shape", ())[:1]
        return params["shape"][:1] == rows and params["broadcast_dimensions"][:1] == (
            0,
        )
    if name.startswith("reduce_") and "axes" in params:
        return 0 not in params["axes"]
    return name in _ENTRYWISE


def _have_worker_axis(updates: PyTree, params: optax.Params) -> bool:
    if isinstance(updates, WorkerStream):
        return True
    ranks = map(jnp.ndim, jax.tree.leaves(updates))
    return [*ranks] == [jnp.ndim(leaf) + 1 for leaf in jax.tree.leaves(params)]


def _is_about_streams(error: BaseException) -> bool:
    """Returns whether a stream was taken for an array: by JAX, or a foreign transform.

    JAX says so in its own words; of a transform the innermost update tells, which holds
    a stream as an argument.
    """
    if "WorkerStream" in str(error) or "__jax_array__" in str(error):
        return True
    innermost = [
        (frame, package)
        for frame, package, factory in _updates_around(error)
        if factory not in _CHAINS
    ][-1:]
    return any(
        package != "jaxmedian"
        and any(isinstance(held, WorkerStream) for held in frame.f_locals.values())
        for frame, package in innermost
    )


def _foreign_transform(error: BaseException) -> str:
    """Names the innermost factory of a transform that is neither ours nor JAX's."""
    name = "another transform"
    for _, package, factory in _updates_around(error):
        if package != "jaxmedian" and factory not in _CHAINS:
            name = f"`{factory}`"
    return name


def _updates_around(
    error: BaseException,
) -> Iterator[tuple[types.FrameType, str, str]]:
    """Lists the updates of transforms that an error passed: frame, package, factory."""
    trace = error.__traceback__
    while trace is not None:
        frame, trace = trace.tb_frame, trace.tb_next
        package = frame.f_globals.get("__name__", "").split(".")[0]
        qualified = getattr(frame.f_code, "co_qualname", "")  # Python 3.11
        is_update = ".<locals>." in qualified and qualified.endswith(_UPDATES)
        if package != "jax" and is_update:
            yield frame, package, qualified.split(".<locals>.")[0]
