"""Runs of many steps with simulated workers.

`run` repeats the step of `jaxmedian.training_step` in compiled chunks and comes up for
air between them, to measure, report, save and stop; `run_pure` is the same without the
host, so that whole runs can be vmapped over seeds and noise scales.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmedian import diagnostics
from jaxmedian.checkpoint import Folder, Path
from jaxmedian.noise import keys
from jaxmedian.training.resume import Edge, Row, open_run
from jaxmedian.training.step import Proposal, build_proposal
from jaxmedian.workers.checks import check_count
from jaxmedian.workers.gradients import LossFn

NextBatch = Callable[[jax.Array, jax.Array], Any]
ExtraArgs = Callable[[jax.Array, jax.Array], dict[str, Any]]
Metric = Callable[[Any, Any, Any], dict[str, jax.Array]]
OnChunk = Callable[[int, Row], bool | None]


class RunResult(NamedTuple):
    """What a run leaves.

    Attributes:
      params: parameters after ``step`` steps.
      opt_state: optimizer state after ``step`` steps, keys included.
      metrics: name -> array with one entry a chunk edge, first axis; "step" says
        which.
      step: steps taken; fewer than asked for if the run was stopped.

    >>> import jax.numpy as jnp, jaxmedian as jm
    >>> loss = lambda params, batch: 0.5 * (params - batch) ** 2
    >>> batches = jm.full_batch(jnp.array([1., 2., 10.]))
    >>> result = jm.run(loss, jm.median_sgd(0.5), jnp.float32(0), batches, 3, key=0)
    >>> float(result.params), result.step, result.metrics["loss"].shape
    (1.75, 3, (1,))
    """

    params: Any
    opt_state: Any
    metrics: dict[str, Any]
    step: int


def run(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    params: Any,
    next_batch: NextBatch,
    num_steps: int,
    key: keys.Key,
    *,
    chunk: int = 100,
    metrics: Sequence[Metric] = (),
    progress: bool = False,
    on_chunk: OnChunk | None = None,
    checkpoint: Folder | Path | None = None,
    worker_chunk: int | None = None,
    extra_args: ExtraArgs | None = None,
) -> RunResult:
    """Trains for ``num_steps`` steps, in compiled chunks.

    Ctrl-C stops at the last chunk edge and returns what is there. With ``checkpoint``,
    the same call goes on from there, and so it does after a kill at any moment: it ends
    with the parameters, state and metrics of a run that nobody stopped, to the bit.

    Args:
      loss_fn: as in `jaxmedian.make_step`, without auxiliary output.
      optimizer: an optax chain with exactly one aggregator.
      params: initial parameters.
      next_batch: ``next_batch(key, step) -> batch [M, ...]``, traced. Its key is
        already the step's own, ``fold_in(key, step)``. See `jaxmedian.full_batch`,
        `jaxmedian.mini_batches` and `jaxmedian.epochs`, whose key is its own.
      num_steps: steps to take, >= 0.
      key: of the batches; the optimizer's noise has its own.
      chunk: steps between two measurements, >= 1.
      metrics: functions ``(params, grads, updates) -> {name: scalar or array}``,
        evaluated at each chunk edge beside "loss" and those of
        `jaxmedian.diagnostics.of_step`. They see what the next step would: the
        parameters at the edge, and the gradients ``[M, ...]`` and updates of the batch
        that comes next.
      progress: show a progress bar (needs tqdm).
      on_chunk: ``on_chunk(step, row)``, called on the host at each chunk edge with the
        row of metrics, scalars as floats and arrays as NumPy arrays; True stops the
        run. A resumed run is not called again for edges it was saved at, and once more
        for any it passed since.
      checkpoint: folder of this run's checkpoints (needs orbax-checkpoint), or a
        `jaxmedian.checkpoint.Folder` to save less often or keep more: one is written
        while the next chunk computes, so where chunks are shorter than a second, save
        every few. If the folder holds one, the run resumes there; a run already
        finished returns at once; ``num_steps`` may be raised. The checkpoint of a run
        with another ``key``, other keys in the optimizer, another ``chunk`` or state is
        refused. Learning rates, noise scales, the loss and the data are not compared:
        change them and change the folder.
      worker_chunk: as in `jaxmedian.make_step`. Measurements that need the gradients
        of all workers are left out where they are streamed; functions in ``metrics``
        then get None for them.
      extra_args: ``extra_args(key, step) -> {name: value}``, traced: what the optimizer
        gets beside the gradients in each step, a ``worker_mask`` of
        `jaxmedian.participants`, say. Its key is that of ``next_batch``. "loss" is the
        mean over the workers present; what is measured of gradients is of all workers.

    Returns:
      A `RunResult`; its metrics are NumPy arrays.

    Raises:
      TypeError, ValueError: for a bad number, or as `make_step` while tracing; for a
        checkpoint that is damaged, foreign, or of another run.
      ImportError: for ``progress`` without tqdm, ``checkpoint`` without orbax.

    >>> import jax, jax.numpy as jnp, jaxmedian as jm
    >>> loss = lambda params, batch: 0.5 * jnp.mean((params - batch) ** 2)
    >>> batches = jm.full_batch(jnp.array([1., 2., 10.])[:, None])
    >>> result = jm.run(loss, jm.median_sgd(0.1), jnp.float32(0), batches, 200, 0)
    >>> result.step, result.metrics["step"].tolist()
    (200, [100.0, 200.0])
    >>> round(float(result.params), 3), result.metrics["gradient_norm"].round(3)
    (2.0, array([2.333, 2.333]))
    """
    _check_lengths(num_steps, chunk)
    advance = jax.jit(_build_chunk(loss_fn, optimizer, metrics, worker_chunk))
    feed, key = _feed(next_batch, extra_args), keys.as_threefry_key(key)
    state = _start(optimizer, params)
    with open_run(checkpoint, key, state[1], chunk) as saved:
        edge = saved.restore(Edge(0, state, []), num_steps)
        with _progress_bar(edge.step, num_steps, progress) as advance_bar:
            try:
                while edge.step < num_steps:
                    stop = min(edge.step - edge.step % chunk + chunk, num_steps)
                    state, row = jax.block_until_ready(
                        advance(edge.state, feed, key, edge.step, stop)
                    )
                    edge = edge.go_on(stop, state, row)
                    advance_bar(stop, edge.rows[-1]["loss"])
                    if on_chunk is not None and on_chunk(stop, edge.rows[-1]):
                        break
                    saved.visit(edge)
            except KeyboardInterrupt:
                sys.stderr.write(
                    f"\nInterrupted: returning the run at step {edge.step}.\n"
                )
        saved.save(edge)
    names = edge.rows[0] if edge.rows else ()
    columns = {name: np.asarray([row[name] for row in edge.rows]) for name in names}
    params, opt_state = edge.state
    return RunResult(params, opt_state, columns, edge.step)


def run_pure(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    params: Any,
    next_batch: NextBatch,
    num_steps: int,
    key: keys.Key,
    *,
    chunk: int = 100,
    metrics: Sequence[Metric] = (),
    worker_chunk: int | None = None,
    extra_args: ExtraArgs | None = None,
) -> RunResult:
    """Trains like `run`, as one pure function: for `jax.vmap` over seeds and scales.

    Args: as `run`, but nothing touches the host, so everything may be traced except
      ``num_steps`` and ``chunk``.

    Returns:
      A `RunResult`; its metrics are JAX arrays, one entry a chunk edge.

    Raises: as `run`.

    >>> import jax, jax.numpy as jnp, jaxmedian as jm
    >>> loss = lambda params, batch: 0.5 * jnp.mean((params - batch) ** 2)
    >>> batches = jm.full_batch(jnp.array([1., 2., 10.])[:, None])
    >>> def mean_gradient(scale, seed):
    ...     optimizer = jm.noisy_median_sgd(0.01, jm.noise.gaussian(scale), seed)
    ...     result = jm.run_pure(loss, optimizer, jnp.float32(0), batches, 1000, 0)
    ...     return result.metrics["gradient_norm"][-1]
    >>> plain, noisy = jax.vmap(mean_gradient, (0, None))(jnp.array([0., 20.]), 0)
    >>> float(plain) > 2.2, float(noisy) < 1.0  # the gap, and noise that closes it
    (True, True)
    """
    _check_lengths(num_steps, chunk)
    advance = _build_chunk(loss_fn, optimizer, metrics, worker_chunk)
    feed, key = _feed(next_batch, extra_args), keys.as_threefry_key(key)
    starts = jnp.arange(0, num_steps, chunk, dtype=jnp.int32)

    def body(state: Any, start: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
        stop = jnp.minimum(start + np.int32(chunk), np.int32(num_steps))
        return advance(state, feed, key, start, stop)

    state, rows = jax.lax.scan(body, _start(optimizer, params), starts)
    return RunResult(*state, rows, num_steps)


# --- one chunk ------------------------------------------------------------------------

_TrainState = tuple[Any, Any]  # params, opt_state


class _Feed(NamedTuple):
    """What a step is given, as functions of its key and number, and with their data."""

    next_batch: jax.tree_util.Partial
    extra_args: jax.tree_util.Partial


def _build_chunk(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    metrics: Sequence[Metric],
    worker_chunk: int | None,
) -> Callable[..., tuple[_TrainState, dict[str, jax.Array]]]:
    """Builds the function that takes steps ``start`` to ``stop`` and then measures.

    The step number ``stop`` is computed too but measured in place of taken, so that one
    copy of the gradients and of the optimizer is compiled, not two.
    """
    for metric in metrics:
        if not callable(metric):
            raise TypeError(
                "`metrics` must be functions (params, grads, updates) -> "
                f"{{name: array}}; got {metric!r}."
            )
    propose = build_proposal(loss_fn, optimizer, False, None, worker_chunk)

    def measure(params: Any, proposal: Proposal) -> dict[str, jax.Array]:
        grads, updates = proposal.grads, proposal.updates
        row = {"loss": proposal.loss, **diagnostics.of_step(grads, updates)}
        for metric in metrics:
            row |= metric(params, grads, updates)
        return row

    def advance(
        state: _TrainState,
        feed: _Feed,
        key: jax.Array,
        start: jax.Array | int,
        stop: jax.Array | int,
    ) -> tuple[_TrainState, dict[str, jax.Array]]:
        def propose_step(number: jax.Array, state: _TrainState) -> Proposal:
            step_key = jax.random.fold_in(key, number)
            extra_args = feed.extra_args(step_key, number)
            return propose(*state, feed.next_batch(step_key, number), **extra_args)

        def visit(number: jax.Array, carry: Any) -> Any:
            (params, opt_state), row = carry
            proposal = propose_step(number, (params, opt_state))

            def take() -> Any:
                new_params = optax.apply_updates(params, proposal.updates)
                return (new_params, proposal.opt_state), row

            def stay() -> Any:
                return (params, opt_state), measure(params, proposal)

            return jax.lax.cond(number < stop, take, stay)

        shapes = jax.eval_shape(
            lambda state: measure(state[0], propose_step(jnp.asarray(stop), state)),
            state,
        )
        blank = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
        state, row = jax.lax.fori_loop(start, stop + 1, visit, (state, blank))
        return state, {"step": jnp.asarray(stop, jnp.int32), **row}

    return advance


def _start(optimizer: optax.GradientTransformation, params: Any) -> _TrainState:
    params = jax.tree.map(jnp.asarray, params)
    return params, optimizer.init(params)


def _feed(next_batch: NextBatch, extra_args: ExtraArgs | None) -> _Feed:
    if extra_args is not None and not callable(extra_args):
        raise TypeError(
            "`extra_args` must be a function (key, step) -> {name: value}; got "
            f"{extra_args!r}. For the same value in each step, return it."
        )
    nothing: ExtraArgs = _no_extra_args
    return _Feed(_as_pytree(next_batch), _as_pytree(extra_args or nothing))


def _no_extra_args(key: jax.Array, step: jax.Array) -> dict[str, Any]:
    del key, step
    return {}


def _as_pytree(function: Callable[..., Any]) -> jax.tree_util.Partial:
    """Makes a function an argument of jitted code, so that its data is one too.

    Data that a closure captures is compiled into the program as a constant, slowly.
    """
    if isinstance(function, jax.tree_util.Partial):
        return function
    return jax.tree_util.Partial(function)


def _check_lengths(num_steps: Any, chunk: Any) -> None:
    check_count("chunk", chunk)
    check_count("num_steps", num_steps, least=0)


@contextlib.contextmanager
def _progress_bar(
    start: int, total: int, shown: bool
) -> Iterator[Callable[[int, float], None]]:
    """Yields a function that moves a progress bar to a step, if it is shown."""
    if not shown:
        yield lambda step, loss: None
        return
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError(
            "`progress=True` needs tqdm: `pip install tqdm`, or leave it out."
        ) from error
    with tqdm(initial=start, total=total, unit="step") as bar:

        def move(step: int, loss: float) -> None:
            bar.set_postfix(loss=f"{loss:.4g}", refresh=False)
            bar.update(step - bar.n)

        yield move
