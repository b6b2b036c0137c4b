"""Whole runs on the MNIST network, as a user would write them: ours, JAX's and torch's.

Everybody draws batches of 32 from each worker's own samples, takes the gradients of all
workers, combines them and moves the parameters, a hundred steps a turn: `jm.run` by a
noisy vote, a plain JAX loop by the mean, torch by the noisy vote in a loop over workers
and under `torch.func.vmap`. Each samples as its users do. Beside them stand parts of
the run, compiled alone.
"""

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmedian as jm
from experiments.common.harness.installed import installed_torch
from experiments.common.harness.results import Claim
from experiments.common.training.models import Classifier, mnist_network
from experiments.common.training.models_convolutional import resnet20
from experiments.common.training.transformer import language
from experiments.systems.benchmark import torch_models
from experiments.systems.benchmark.kernels import SCALE, Run, compiled
from experiments.systems.benchmark.timing import Timing, take_turns
from experiments.systems.benchmark.whole_steps import torch_vote

RATE = 1e-3


class Size(NamedTuple):
    """How much one turn does.

    Attributes:
      num_workers: M.
      num_samples: n of each worker.
      batch_size: of each worker and step.
      num_steps: of one turn.
    """

    num_workers: int
    num_samples: int
    batch_size: int
    num_steps: int


def rows(size: Size, turns: int, budget: float) -> list[dict[str, Any]]:
    """Times everybody's run, and parts of ours; milliseconds are those of a step."""
    rng = np.random.default_rng(0)
    shape = (size.num_workers, size.num_samples)
    data: dict[str, np.ndarray] = {
        "images": rng.integers(0, 256, (*shape, 784), dtype=np.uint8),
        "labels": rng.integers(0, 10, shape, dtype=np.int32),
    }
    on_device = jax.tree.map(jnp.asarray, data)
    with tempfile.TemporaryDirectory() as folder:
        candidates = _ours(on_device, size, Path(folder))
        candidates |= _plain_jax(on_device, size) | _torch(data, size)
        timings = take_turns(candidates, turns, budget)
    place = {"work": f"run, {size.num_samples} samples", "M": size.num_workers}
    return _per_step(place, timings, size.num_steps)


def _per_step(
    place: dict[str, Any], timings: dict[str, Timing], num_steps: int
) -> list[dict[str, Any]]:
    found = []
    for name, timing in timings.items():
        milliseconds = 1e3 * timing.seconds / num_steps
        row = place | {
            "candidate": name,
            "ms": milliseconds,
            "turns": timing.turns,
            "steps": num_steps,
            "peak_mib": timing.peak_mib,
        }
        found.append(row)
        print(
            f"M={place['M']:5} {place['work']:34} {name:42}{milliseconds:9.3f} ms a "
            f"step  {timing.peak_mib:.0f} MiB",
            flush=True,
        )
    return found


RUN, EPOCHS = "jm.run, mini_batches", "jm.run, epochs"
ALONE, LOOP, DRAW = "gradients alone", "its steps in one compiled loop", "draw alone"
OFTEN, SAVED = "jm.run, in ten chunks", "jm.run, with a checkpoint"
RULE, UPDATE = "rule alone", "update alone"
JAX_LOOP = "JAX loop by the mean"
TORCH_LOOP, TORCH_VMAP = "torch loop over workers", "torch.func.vmap"


def _ours(data: dict[str, jax.Array], size: Size, folder: Path) -> dict[str, Run]:
    """Lists our runs, and what they are made of in compiled loops of as many steps."""
    model = mnist_network(seed=0)
    vote = jm.majority_vote(jm.noise.uniform(SCALE, "systematic"), 0)
    optimizer = optax.chain(vote, optax.sgd(RATE))
    batches = jm.mini_batches(data, size.batch_size)
    fresh = (folder / str(i) for i in range(10_000))

    def run(next_batch: Any, chunk: int, saved: bool) -> None:
        jm.run(
            model.loss,
            optimizer,
            model.params,
            next_batch,
            size.num_steps,
            0,
            chunk=chunk,
            checkpoint=next(fresh) if saved else None,
        )

    steps = size.num_steps
    runs: dict[str, Run] = {
        RUN: functools.partial(run, batches, steps, False),
        EPOCHS: functools.partial(
            run, jm.epochs(data, size.batch_size, 0), steps, False
        ),
        OFTEN: functools.partial(run, batches, max(steps // 10, 1), False),
        SAVED: functools.partial(run, batches, steps, True),
    }
    step = jm.make_step(model.loss, optimizer)
    gradients = jm.worker_grads(model.loss)
    first = batches(jax.random.key(0), 0)
    stacked = gradients(model.params, first)
    key = jax.random.key(0)

    def whole(batches: Any, i: jax.Array, carry: Any) -> Any:
        return step(*carry, batches(jax.random.fold_in(key, i), i))[:2]

    def draw(batches: Any, i: jax.Array, total: jax.Array) -> jax.Array:
        batch = jax.lax.optimization_barrier(batches(jax.random.fold_in(key, i), i))
        return total + batch["labels"][0, 0]

    def differentiate(first: Any, i: jax.Array, params: Any) -> Any:
        del i
        grads = jax.lax.optimization_barrier(gradients(params, first))
        return jax.tree.map(lambda p, g: p - 1e-12 * g[0], params, grads)

    def combine(_: None, i: jax.Array, carry: Any) -> Any:
        del i
        grads, state = carry
        tally, state = vote.update(jax.lax.optimization_barrier(grads), state)
        tally = jax.lax.optimization_barrier(tally)
        return jax.tree.map(lambda g, t: g.at[0, 0].set(t[0]), grads, tally), state

    def move(_: None, i: jax.Array, params: Any) -> Any:
        del i
        sgd = optax.sgd(RATE)
        return optax.apply_updates(params, sgd.update(params, sgd.init(params))[0])

    start = model.params, optimizer.init(model.params)
    runs[LOOP] = _loop(whole, start, size, batches)
    runs[DRAW] = _loop(draw, jnp.int32(0), size, batches)
    runs[ALONE] = _loop(differentiate, model.params, size, first)
    runs[RULE] = _loop(combine, (stacked, vote.init(model.params)), size)
    runs[UPDATE] = _loop(move, model.params, size)
    return runs


def _loop(
    body: Callable[[Any, Any, Any], Any], start: Any, size: Size, given: Any = None
) -> Run:
    """Compiles as many steps as a turn has, on their own; ``given`` is an argument."""

    def loop(start: Any, given: Any) -> Any:
        return jax.lax.fori_loop(
            0, size.num_steps, functools.partial(body, given), start
        )

    return compiled(loop, start, given)[0]


def _plain_jax(data: dict[str, jax.Array], size: Size) -> dict[str, Run]:
    """Draws with replacement, averages, and calls a jitted step from Python."""
    model = mnist_network(seed=0)
    workers = jnp.arange(size.num_workers)[:, None]

    @jax.jit
    def step(params: Any, data: dict[str, jax.Array], key: jax.Array) -> Any:
        shape = size.num_workers, size.batch_size
        chosen = jax.random.randint(key, shape, 0, size.num_samples)
        batch = {name: leaf[workers, chosen] for name, leaf in data.items()}
        grads = jax.vmap(jax.grad(model.loss), (None, 0))(params, batch)
        return jax.tree.map(lambda p, g: p - RATE * jnp.mean(g, 0), params, grads)

    def loop() -> None:
        params, key = model.params, jax.random.key(0)
        for i in range(size.num_steps):
            params = step(params, data, jax.random.fold_in(key, i))
        jax.block_until_ready(params)

    return {JAX_LOOP: loop}


def _torch(data: dict[str, np.ndarray], size: Size) -> dict[str, Run]:
    """The noisy vote in torch: a loop over workers, and torch.func.vmap."""
    torch = installed_torch()
    if torch is None:
        return {}
    params, loss, update = torch_vote(torch)
    images = torch.from_numpy(data["images"])
    labels = torch.from_numpy(data["labels"]).long()

    def loop() -> None:
        for _ in range(size.num_steps):
            rows = []
            for own_images, own_labels in zip(images, labels, strict=True):
                chosen = torch.randint(size.num_samples, (size.batch_size,))
                x, y = own_images[chosen].float() / 255, own_labels[chosen]
                rows.append(torch.autograd.grad(loss(params, x, y), [*params.values()]))
            update([torch.stack(grads) for grads in zip(*rows, strict=True)])

    per_worker = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))
    workers = torch.arange(size.num_workers)[:, None]

    def vectorised() -> None:
        for _ in range(size.num_steps):
            chosen = torch.randint(
                size.num_samples, (size.num_workers, size.batch_size)
            )
            x, y = images[workers, chosen].float() / 255, labels[workers, chosen]
            detached = {name: param.detach() for name, param in params.items()}
            update(list(per_worker(detached, x, y).values()))

    return {TORCH_LOOP: loop, TORCH_VMAP: vectorised}


def draw_rows(turns: int, budget: float) -> list[dict[str, Any]]:
    """Times the draw of 10 workers' batches of 32 from ever more samples of 8 bytes."""
    runs = {}
    size = Size(10, 0, 32, 200)
    key = jax.random.key(0)
    for num_samples in (1_000, 10_000, 100_000, 1_000_000):
        data = jnp.zeros((10, num_samples, 8), jnp.uint8)

        def run(data: jax.Array) -> jax.Array:
            def draw(i: jax.Array, total: jax.Array) -> jax.Array:
                batches = jm.mini_batches(data, 32)
                batch = batches(jax.random.fold_in(key, i), i)
                return total + jax.lax.optimization_barrier(batch)[0, 0, 0]

            return jax.lax.fori_loop(0, size.num_steps, draw, jnp.uint8(0))

        runs[f"{num_samples} samples"] = compiled(run, data)[0]
    timings = take_turns(runs, turns, budget)
    return _per_step({"work": "draw", "M": 10}, timings, size.num_steps)


GPT, RESNET = "step of a small GPT, batch 12", "step of ResNet-20, batch 16"


def model_rows(turns: int, budget: float) -> list[dict[str, Any]]:
    """Times a step of a small GPT and of ResNet-20, all workers at once and by ones.

    Beside them torch's step on the same model, from the same parameters.
    """
    rng = np.random.default_rng(0)
    gpt = language(65, context=64, layers=4, heads=4, width=128, seed=0)
    text = jnp.asarray(rng.integers(0, 65, (8, 12, 65)))
    images = {
        "images": jnp.asarray(rng.integers(0, 256, (5, 16, 32, 32, 3), dtype=np.uint8)),
        "labels": jnp.asarray(rng.integers(0, 10, (5, 16))),
    }
    network: Classifier = resnet20(seed=0)
    works: dict[str, tuple[Any, Any, Any]] = {
        GPT: (
            lambda params, windows: jnp.mean(gpt.losses(params, windows)),
            gpt.params,
            text,
        ),
        RESNET: (network.loss, network.params, images),
    }
    in_torch: dict[str, tuple[torch_models.Loss, Any, Any]] = {
        GPT: (torch_models.gpt_loss, text[:, :, :-1], text[:, :, 1:]),
        RESNET: (torch_models.resnet_loss, images["images"], images["labels"]),
    }
    noise = jm.noise.uniform(SCALE, "systematic")
    found = []
    for work, (loss, params, batch) in works.items():
        runs = {}
        for chunk, how in ((None, "at once"), (1, "worker_chunk=1")):
            grads = jm.worker_grads(loss, worker_chunk=chunk)
            runs[f"{ALONE}, {how}"] = compiled(grads, params, batch)[0]
            for name, optimizer in {
                "mean": optax.chain(jm.worker_mean(), optax.sgd(RATE)),
                "noisy vote": jm.noisy_sign_sgd(RATE, noise, 0),
            }.items():
                step = jm.make_step(loss, optimizer, worker_chunk=chunk)
                state = optimizer.init(params)
                runs[f"{name}, {how}"] = compiled(step, params, state, batch)[0]
        their_loss, x, y = in_torch[work]
        runs |= torch_models.candidates(their_loss, params, x, y)
        timings = take_turns(runs, turns, budget)
        num_workers = jax.tree.leaves(batch)[0].shape[0]
        found += _per_step({"work": work, "M": num_workers}, timings, 1)
    return found


def claims(rows: list[dict[str, Any]]) -> list[Claim]:
    """Judges runs of 100 steps or more; shorter ones are mostly their start."""
    found = []
    works = dict.fromkeys((row["work"], row["M"]) for row in rows)
    for work, num_workers in works:
        ms = {
            row["candidate"]: row["ms"]
            for row in rows
            if (row["work"], row["M"]) == (work, num_workers)
        }
        place = f"M = {num_workers}, {work}"
        if work == "draw":
            ratio = max(ms.values()) / min(ms.values())
            found.append(
                Claim(
                    f"{place}: from 1,000 to 1,000,000 samples within 1.3 times",
                    f"{ratio:.2f} times, {min(ms.values()):.3f} ms",
                    ratio <= 1.3,
                )
            )
        if RUN not in ms:
            continue
        judged = all(row["steps"] >= 100 for row in rows if row["work"] == work)
        most = {  # what -> ratio, and the most it may be
            "the draw takes at most a tenth of the step": (ms[DRAW] / ms[LOOP], 0.1),
            "at most 1.25 times the gradients alone": (ms[RUN] / ms[ALONE], 1.25),
            "at most 1.03 times its steps in one loop": (ms[RUN] / ms[LOOP], 1.03),
        }
        if all(row["steps"] >= 1000 for row in rows if row["work"] == work):
            what = "in ten chunks at most 1.03 times its steps in one loop"
            most[what] = ms[OFTEN] / ms[LOOP], 1.03
        found += [
            Claim(
                f"{place}: {what}", f"{ratio:.3f}", ratio <= at_most if judged else None
            )
            for what, (ratio, at_most) in most.items()
        ]
        found += [
            Claim(
                f"{place}: at least {times} times faster than {peer}",
                f"{ms[peer] / ms[RUN]:.2f} times",
                ms[peer] >= times * ms[RUN] if judged else None,
            )
            for peer, times in ((TORCH_LOOP, 4), (TORCH_VMAP, 3))
            if peer in ms
        ]
    return found
