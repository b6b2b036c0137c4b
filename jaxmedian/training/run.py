"""Runs of many steps with simulated workers.

`run` repeats the step of `jaxmedian.training.step` in compiled chunks and returns to
the host between them, to measure, report, save and stop; `run_pure` is the same without
the host, so that whole runs can be vmapped over seeds and noise scales.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from jaxmedian.checkpoint import Folder, Path
from jaxmedian.noise import keys
from jaxmedian.training.chunks import (
    Metric,
    TrainState,
    as_arrays,
    build_chunk,
    model_of,
    start_state,
)
from jaxmedian.training.evaluation import (
    Evaluate,
    build_evaluation,
    first_best,
    join_scores,
)
from jaxmedian.training.feeds import ExtraArgs, NextBatch, as_extra_args, build_feed
from jaxmedian.training.identity import check_alike, configuration_of, first_keys
from jaxmedian.training.interrupts import deferred_interrupts
from jaxmedian.training.loop import Plan, RunResult, result_of, take_chunks
from jaxmedian.training.model_state import StateOverWorkers
from jaxmedian.training.remembering import remember
from jaxmedian.training.reporting import OnChunk, build_report
from jaxmedian.training.resume import Edge, open_run
from jaxmedian.training.sources import Drawn, Loaded, is_loader
from jaxmedian.training.spreading import Spread
from jaxmedian.workers.checks import check_count
from jaxmedian.workers.collectives import AxisName, PyTree
from jaxmedian.workers.gradients import LossFn


def run(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    params: optax.Params,
    next_batch: NextBatch | Iterable[PyTree],
    num_steps: int,
    key: keys.Key,
    *,
    mesh: Mesh | None = None,
    chunk: int = 100,
    metrics: Sequence[Metric] = (),
    evaluate: Evaluate | None = None,
    keep_best: str | None = None,
    has_aux: bool = False,
    progress: bool = False,
    on_chunk: OnChunk | None = None,
    checkpoint: Folder | Path | None = None,
    worker_chunk: int | None = None,
    num_workers: int | None = None,
    extra_args: ExtraArgs | None = None,
    model_state: PyTree = None,
    state_over_workers: StateOverWorkers = "mean",
    opt_state: optax.OptState = None,
    step: int = 0,
    replay: bool = False,
    donate: bool = True,
) -> RunResult:
    """Trains up to step ``num_steps``, in compiled chunks.

    Ctrl-C stops at the next chunk edge and returns what is there, whatever the run is
    doing: compiling, restoring, writing a checkpoint; a second Ctrl-C raises
    KeyboardInterrupt at once, or when the compiler returns. With ``checkpoint``, the
    same call goes on from there, and so it does after a kill at any moment: it ends
    with the parameters, state and metrics of a run that nobody stopped, to the bit.

    Called again with the same optimizer, loss and settings it compiles nothing: the
    program lives as long as the optimizer. As under `jax.jit`, what functions (a loss,
    metrics, ``next_batch``) read beside their arguments is read once. Chains, losses
    and metrics made anew compile anew.

    A SIGINT handler of the program's own is called first: where it raises
    KeyboardInterrupt the run stops as above, where it returns the run goes on. Where
    SIGINT is ignored it stays so. In threads other than the main one Python delivers no
    signals.

    Args:
      loss_fn: as in `jaxmedian.make_step`. One with an argument called ``key``, for
        dropout say, ``loss_fn(params, batch, key)``, is given one of its own for each
        worker and step: ``fold_in(fold_in(step_key, noise.keys.LOSS_KEYS), worker)``,
        ``step_key`` being the key that ``next_batch`` gets. Of a model with state
        ``loss_fn(params, model_state, batch) -> (loss, model_state)``: see
        ``model_state``.
      optimizer: an optax chain with exactly one aggregator. It gets the mean loss over
        the workers present as ``value``, for `optax.contrib.reduce_on_plateau` and its
        like, unless ``extra_args`` gives another; with ``worker_chunk``, where the loss
        is known too late, a transform with an argument ``value`` needs that.
      params: initial parameters. The run works on copies: these arrays live on.
      next_batch: ``next_batch(key, step) -> batch [M, ...]``, traced. Its key is
        already the step's own, ``fold_in(fold_in(key, noise.keys.RUN), step)``: one
        seed may serve the optimizer too. See `jaxmedian.full_batch`,
        `jaxmedian.mini_batches` and `jaxmedian.epochs`, whose key is its own. Or an
        iterator or iterable (no list: `iter` of one) of batches ``[M, ...]`` that
        Python makes, all of the same shapes: a generator, a grain ``DataLoader`` or
        ``MapDataset``. Batches are read and placed while steps compute, for a call up
        to 16, of 32 MB in all (on several processes one), and none that is not trained
        on: what is measured at an edge is measured on the last batch again. Batches are
        copied, so a buffer may be filled again. Where the data end, the run ends. With
        a checkpoint the iterator's state is saved and restored, if it has ``get_state``
        and ``set_state`` as those of grain do; see ``replay`` for others.
      num_steps: the step at which the run ends, >= 0.
      key: of the batches; the optimizer's noise has its own branches of it, or its own.
      mesh: devices over which the workers are spread, along its axis "workers" or its
        only one; see `jaxmedian.sharding.workers_mesh`. The chain's transforms are
        built with that ``axis_name``, and M is a multiple of the devices along it.
        Votes and medians have the bits of one device with ``worker_chunk=1``.
        `full_batch`, `mini_batches` and `epochs` hold and draw on each device the data
        of its own workers only; a function of your own is evaluated whole on each
        device, then cut, as are the extra arguments named ``worker_...``. Arrays that
        lie on this mesh already stay where they are. With several processes each gives
        the data or batches of its own workers, and calls ``run`` alike: where the
        chain, its numbers, the parameters, a key, an option or the form of the data
        differ, all of them raise at the start. What a function computes, a loss or a
        schedule, is known by its name alone.
      chunk: steps between two measurements, >= 1.
      metrics: functions ``(params, grads, updates) -> {name: scalar or array}``,
        evaluated at each chunk edge beside "loss" and those of
        `jaxmedian.diagnostics.of_step`. They see what the next step would: the
        parameters at the edge, and the gradients ``[M, ...]`` and updates of the batch
        that comes next. No name may be "loss" or "step", or that of two functions. On a
        mesh the gradients of all workers are gathered for them on each device.
      evaluate: ``evaluate(params) -> {name: scalar or array}``, traced and compiled
        once: of held-out data, say. Its values at each chunk edge are measurements too,
        and shown by ``progress``. Data that it holds as a `jax.tree_util.Partial` is no
        constant of the program. Of a model with state ``evaluate(params,
        model_state)``.
      keep_best: name of a measurement, "accuracy" say, whose highest value decides
        which parameters the result holds as ``best_params``, and which state of a
        model as ``best_model_state``; "-loss" for the lowest.
        Edges alone count, NaN never; without any number they are those of the start.
        They are saved with checkpoints, of which they are a part then; but for those of
        an edge at the end of a run that its ``chunk`` does not divide, which a longer
        run does not have.
      has_aux: whether ``loss_fn`` returns ``(loss, aux)``, aux an array or a flat
        dictionary of arrays. The mean of each over the workers present is measured at
        chunk edges, under its name or "aux". With a model's state it returns
        ``(loss, (model_state, aux))``.
      progress: show a progress bar (needs tqdm).
      on_chunk: ``on_chunk(step, row)``, called on the host at each chunk edge with the
        row of metrics, scalars as floats and arrays as NumPy arrays; True stops the
        run, False or None does not. A run that was stopped so is not over for its
        checkpoints: the same call goes on. A function ``(step, row, params)``, or one
        with an argument called ``params``, gets a copy of the parameters too. A resumed
        run is not called again for edges it was saved at, and once more for any it
        passed since.
      checkpoint: folder of this run's checkpoints (needs orbax-checkpoint), or a
        `jaxmedian.checkpoint.Folder` to save less often or keep more: one is written
        while the next chunk computes, so where chunks are shorter than a second, save
        every few. If the folder holds one, the run resumes there; a run already
        finished returns at once; ``num_steps`` may be raised. A folder that another run
        is writing to is refused. So is the checkpoint of a run with another ``key``,
        another ``chunk``, state or ``state_over_workers``, other keys in the optimizer,
        other transforms in its chain, or other options of words or flags there: the law
        and coupling of noise, ``ties``, ``even``, ``nesterov``. Not compared are
        numbers (learning rates, noise scales, how many workers a rule trims),
        schedules, what `optax.inject_hyperparams` builds from a lambda, mesh axes and
        transports, the loss and the data: change them and change the folder. The
        parameters and the model's state come from the checkpoint; a warning says where
        those given are others than the run started from.
      worker_chunk: as in `jaxmedian.make_step`. Measurements that need the gradients
        of all workers are left out where they are streamed; functions in ``metrics``
        then get None for them.
      num_workers: M, over all devices, to check batches against; None takes any.
      extra_args: ``extra_args(key, step) -> {name: value}``, traced: what the optimizer
        gets beside the gradients in each step, a ``worker_mask`` of
        `jaxmedian.participants`, say. Its key is that of ``next_batch``. "loss" is the
        mean over the workers present, NaN if nobody is; what is measured of gradients
        is of those present too, and functions in ``metrics`` get those of all.
      model_state: what the model remembers from step to step beside its parameters, the
        running statistics of BatchNorm for example: a tree of arrays, handed to the
        loss, which returns it anew in the same structure, shapes and types. It has no
        gradient, is saved with checkpoints, and is the result's ``model_state``.
      state_over_workers: "mean": all workers start each step from one state, the mean
        of those that the workers present have returned, weighted as the mean of their
        losses is (federated averaging of the statistics). Of integers and booleans,
        such as counters of batches, the largest is taken. ``model_state`` has the
        leaves of one worker. "per_worker": each worker goes on with what it returned
        itself (as in FedBN), leaves ``[M, ...]``, whole in each process at the start.
        Workers that are absent keep theirs; if all are, either kind stays as it was.
        On a mesh both have the bits of one device with ``worker_chunk=1``, weighted
        means up to rounding; means gather the states of all workers on each device.
      opt_state: state of the optimizer to start from, as an earlier run returned it
        beside ``params``; None for a fresh one. Copied like ``params``.
      step: steps taken before, at which the numbers and keys of batches go on: with the
        ``params``, ``opt_state`` and ``step`` of an earlier result the run ends with
        the bits of an unbroken one. An iterator is read on from where it stands; an
        iterable, which `iter` starts anew, needs ``replay``.
      replay: whether a resumed run may read and drop the batches it has had, from an
        iterator that starts anew and cannot be moved: those since ``step``; of an
        iterable those since step 0, also where ``step`` alone says that the run goes
        on. Functions need no replay.
      donate: whether each chunk overwrites the parameters and the state of the one
        before, which saves their memory.

    Returns:
      A `RunResult`; its metrics are NumPy arrays, of the edges of this call (and of
      those its checkpoint remembers). If it stopped before the first edge they are
      empty, under the same names; of an iterator of which no batch was read, "step"
      alone.

    Raises:
      TypeError, ValueError: for a bad number, or as `make_step` while tracing; for a
        ``model_state`` that the loss does not return, or not in its form; for a
        checkpoint that is damaged, foreign, or of another run; for an ``opt_state`` of
        another optimizer; if ``on_chunk`` returns anything but a bool or None; under
        `jax.vmap` or `jax.jit`, for which there is `run_pure`; for batches that change
        their shapes, cannot be resumed, or start anew at a ``step``; as
        `jaxmedian.sharding.shard_step` for a mesh or a chain that does not name its
        axis; for processes that start another run than the rest. What an iterator
        raises is raised.
      RuntimeError: if another run is writing to the folder of checkpoints.
      OSError: if that is moved, removed, full, or may only be read.
      ImportError: for ``progress`` without tqdm, ``checkpoint`` without orbax.
      KeyboardInterrupt: on a second Ctrl-C.

    >>> import jax, jax.numpy as jnp, jaxmedian as jm
    >>> loss = lambda params, batch: 0.5 * jnp.mean((params - batch) ** 2)
    >>> batches = jm.full_batch(jnp.array([1., 2., 10.])[:, None])
    >>> result = jm.run(loss, jm.median_sgd(0.1), jnp.float32(0), batches, 200, 0)
    >>> result.step, result.metrics["step"].tolist()
    (200, [100.0, 200.0])
    >>> round(float(result.params), 3), result.metrics["gradient_norm"].round(3)
    (2.0, array([2.333, 2.333]))

    Batches that Python makes, over a mesh, measured at the end on data held out:

    >>> mesh = jm.sharding.workers_mesh(1)
    >>> optimizer = jm.median_sgd(0.1, axis_name="workers")
    >>> batches = (jnp.array([[1.], [2.], [10. + i]]) for i in range(30))
    >>> evaluate = lambda params: {"error": jnp.abs(params - 2)}
    >>> result = jm.run(loss, optimizer, jnp.float32(0), batches, 100, 0, mesh=mesh,
    ...                 evaluate=evaluate)
    >>> result.step, round(float(result.metrics["error"][-1]), 3)  # 2 * 0.9^30
    (30, 0.085)

    A model with state: a running mean of what each worker sees, and the mean of those:

    >>> def loss(params, model_state, batch):
    ...     seen = 0.5 * model_state + 0.5 * jnp.mean(batch)
    ...     return 0.5 * jnp.mean((params - batch) ** 2), seen
    >>> for state, over in ((jnp.zeros(3), "per_worker"), (jnp.zeros([]), "mean")):
    ...     result = jm.run(
    ...         loss, jm.median_sgd(0.1), jnp.float32(0),
    ...         jm.full_batch(jnp.array([1., 2., 9.])[:, None]), 10, 0,
    ...         model_state=state, state_over_workers=over)
    ...     print(result.model_state.round(1))
    [1. 2. 9.]
    4.0
    """
    with deferred_interrupts() as stop:  # nothing big is left to free behind it
        _check_lengths(num_steps, chunk, step)
        spread = None if mesh is None else Spread(mesh, optimizer)
        options = {
            "has_aux": has_aux,
            "worker_chunk": worker_chunk,
            "num_workers": num_workers,
            "has_model_state": model_state is not None,
        }
        measured = tuple(metrics) if isinstance(metrics, Sequence) else metrics
        source = _open_source(next_batch, extra_args, replay, chunk)
        # What a function closes over stays in its program: one program for each.
        functions = jax.tree.structure((source.feed, as_extra_args(extra_args)))
        compute = remember(
            optimizer,
            ("run", loss_fn, measured, mesh, *options.values(), functions),
            lambda: _build_compute(loss_fn, optimizer, measured, spread, **options),
        )
        key, params = keys.as_threefry_key(key), as_arrays(params)
        given = (params, opt_state, model_state, state_over_workers)
        if spread is None:
            state = start_state(optimizer, *given)
        else:
            if spread.is_of_all_processes:
                first = (
                    first_keys(optimizer, params) if opt_state is None else opt_state
                )
                configuration = configuration_of(
                    optimizer,
                    params=params,
                    opt_state=first,
                    model_state=model_state,
                    state_over_workers=state_over_workers,
                    loss_fn=loss_fn,
                    evaluate=evaluate,
                    mesh=str(mesh),
                    key=key,
                    num_steps=num_steps,
                    step=step,
                    chunk=chunk,
                    worker_chunk=worker_chunk,
                    has_aux=has_aux,
                    keep_best=keep_best,
                )
                check_alike(configuration | source.described(), "start the same run")
            key, state = spread.replicate(key), spread.start_state(*given)
        source.place(spread)
        plan = Plan(
            compute,
            source,
            key,
            num_steps,
            chunk,
            build_evaluation(evaluate, optimizer),
            keep_best,
            build_report(on_chunk),
            progress and jax.process_index() == 0,
            donate,
        )
        return take_chunks(
            plan,
            Edge(int(step), state, [], first_best(keep_best, model_of(state))),
            functools.partial(
                open_run,
                checkpoint,
                optimizer,
                None if model_state is None else state_over_workers,
            ),
            stop,
        )


def _build_compute(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    metrics: Sequence[Metric],
    spread: Spread | None,
    **options: Any,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Builds the chunk of all devices."""
    axis_name = None if spread is None else spread.axis_name
    compute = build_chunk(loss_fn, optimizer, metrics, axis_name=axis_name, **options)
    return compute if spread is None else spread.chunk(compute)


def _open_source(
    next_batch: Any, extra_args: ExtraArgs | None, replay: bool, chunk: int
) -> Drawn | Loaded:
    """Opens the batches of a run."""
    if callable(next_batch) or not is_loader(next_batch):
        return Drawn(build_feed(next_batch, extra_args))
    return Loaded(next_batch, as_extra_args(extra_args), replay, chunk)


def run_pure(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    params: optax.Params,
    next_batch: NextBatch,
    num_steps: int,
    key: keys.Key,
    *,
    chunk: int = 100,
    metrics: Sequence[Metric] = (),
    evaluate: Evaluate | None = None,
    has_aux: bool = False,
    worker_chunk: int | None = None,
    num_workers: int | None = None,
    axis_name: AxisName | None = None,
    extra_args: ExtraArgs | None = None,
    model_state: PyTree = None,
    state_over_workers: StateOverWorkers = "mean",
    opt_state: optax.OptState = None,
    step: int = 0,
) -> RunResult:
    """Trains like `run`, as one pure function: for `jax.vmap` over seeds and scales.

    It takes the arguments of `run`, but nothing touches the host, so everything may be
    traced except ``num_steps``, ``chunk`` and ``step``, and ``next_batch`` is a
    function. Inside `jax.shard_map` give ``axis_name``, the mesh axis of the workers:
    the data of `full_batch`, `mini_batches` and `epochs`, what other functions return,
    the extra arguments ``worker_...`` and the model's state "per_worker" are then those
    of the device's own workers.

    Returns:
      A `RunResult`; its metrics are JAX arrays, one entry a chunk edge.

    Raises:
      TypeError, ValueError: as `run`.

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
    _check_lengths(num_steps, chunk, step)
    advance = build_chunk(
        loss_fn,
        optimizer,
        metrics,
        has_aux=has_aux,
        worker_chunk=worker_chunk,
        axis_name=axis_name,
        num_workers=num_workers,
        has_model_state=model_state is not None,
    )
    feed, key = build_feed(next_batch, extra_args), keys.as_threefry_key(key)
    feed, evaluation = feed.spread(axis_name), build_evaluation(evaluate, optimizer)
    edges = range(step - step % chunk + chunk, num_steps, chunk)
    starts = jnp.asarray([step, *edges] if step < num_steps else [], jnp.int32)

    def body(state: PyTree, start: jax.Array) -> tuple[PyTree, dict[str, jax.Array]]:
        edge = start - start % np.int32(chunk) + np.int32(chunk)
        end = jnp.minimum(edge, np.int32(num_steps))
        state, row = advance(state, feed, key, start, end)
        return state, join_scores(row, evaluation(*model_of(state)))

    start = start_state(optimizer, params, opt_state, model_state, state_over_workers)
    state, rows = jax.lax.scan(body, start, starts)
    return result_of(state, rows, num_steps)


def _check_lengths(num_steps: Any, chunk: Any, step: Any) -> None:
    check_count("chunk", chunk)
    check_count("num_steps", num_steps, least=0)
    check_count("step", step, least=0)
    if num_steps < step:
        raise ValueError(
            f"`num_steps` {num_steps} is before `step` {step}: it is the step at which "
            "the run ends, counted from the very first."
        )
