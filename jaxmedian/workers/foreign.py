"""What an error in an optimizer's update means, where transforms of optax cause it.

They are written for updates like the parameters, and meet the worker axis, or a stream
of blocks in place of arrays. What fails then fails deep inside JAX or optax: the frames
that the error passed say in whose update.
"""

import types
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import optax

from jaxmedian.workers.collectives import PyTree
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


def explain(error: Exception, gradients: PyTree, params: optax.Params) -> None:
    """Raises what an error means, with the remedy, where that is known.

    Args:
      error: of an optimizer's update.
      gradients: what the optimizer was given: leaves ``[M, ...]``, or a stream.
      params: parameters.
    """
    if "value_fn" in str(error) and any(name in str(error) for name in _LINE_SEARCHES):
        raise TypeError(
            "The optimizer searches along a line for its learning rate, as L-BFGS does "
            "by default, and wants `grad` and `value_fn`, gradient and loss at other "
            "parameters, which a step does not give. Give it a learning rate: "
            "`optax.lbfgs(rate, linesearch=None)`."
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
