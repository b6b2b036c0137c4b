"""Figure 2 at the paper's size, on random images: rate only.

60,000 images among 10 workers, the 784-128-10 network, 50,000 steps: a few steps of
each kind of curve are timed on the device at hand, and the whole figure is extrapolated
from them. The images are random, so no accuracy is measured and none reported.

    python -m experiments paper_size                 60,000 random images
    python -m experiments paper_size --preset quick  6,000 of them

Differs from the paper in: the images. Those of `mnist` are real, but 5,000.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import jaxmedian as jm
from experiments.common.harness.options import Count
from experiments.common.harness.plots import draw_curves, panels
from experiments.common.harness.results import Claim, Result
from experiments.common.training.models import mnist_network


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the timing.

    Attributes:
      num_images: random images of 784 pixels, shared out evenly.
      num_workers: M; each holds one class.
      hidden: units of the hidden layer.
      batch_size: sub-samples a worker and step, for the curve that says "batch".
      scale: b of the noisy curves.
      timed_steps: steps behind each rate, after one that compiles.
      paper_steps: steps of the whole figure.
      seed: of images, network, noise and batches.
    """

    num_images: Count = 60_000
    num_workers: Count = 10
    hidden: Count = 128
    batch_size: Count = 128
    scale: float = 1e-3
    timed_steps: Count = 20
    paper_steps: Count = 50_000
    seed: int = 0


PRESETS = {
    "quick": Config(num_images=6_000),
    "tiny": Config(num_images=60, hidden=4, batch_size=2, timed_steps=2),
}


class Timed(NamedTuple):
    """The steps of one curve.

    Attributes:
      seconds: [T], of each step.
      core_seconds: [T], this process's CPU time: what a busy machine lengthens less.
      loss: [T], before each step.
    """

    seconds: np.ndarray
    core_seconds: np.ndarray
    loss: np.ndarray

    def rate(self) -> float:
        """Returns steps a second, by the median step."""
        return 1.0 / float(np.median(self.seconds))


def run(config: Config) -> Result:
    """Times each kind of curve of the figure."""
    images = _random_images(config)
    whole = jm.full_batch(images)
    some = jm.mini_batches(images, config.batch_size)
    noise = jm.noise.gaussian(config.scale)
    noisy = jm.noisy_sign_sgd(1e-3, noise, config.seed)
    timed = {
        "vote": _time(config, jm.sign_sgd(1e-3), whole),
        f"vote, b = {config.scale:g}": _time(config, noisy, whole),
        f"vote, batch {config.batch_size}": _time(config, jm.sign_sgd(1e-3), some),
    }
    curves = {
        name: {"step": np.arange(1, len(found.seconds) + 1), **found._asdict()}
        for name, found in timed.items()
    }
    return Result(curves, _claims(config, timed))


def _random_images(config: Config) -> dict[str, jax.Array]:
    """Draws pixels at random: leaves ``[M, n, ...]``, one label a worker."""
    rng = np.random.default_rng(config.seed)
    shape = config.num_workers, config.num_images // config.num_workers
    pixels = rng.integers(256, size=(*shape, 784), dtype=np.uint8)
    classes = np.arange(config.num_workers, dtype=np.int32) % 10
    labels = np.broadcast_to(classes[:, None], shape)
    return {"images": jnp.asarray(pixels), "labels": jnp.asarray(labels)}


def _time(
    config: Config,
    optimizer: optax.GradientTransformation,
    next_batch: Callable[..., Any],
) -> Timed:
    """Times single steps, the first of which compiles and does not count."""
    model = mnist_network(config.seed, config.hidden)
    step = jm.make_step(model.loss, optimizer)
    key = jax.random.key(config.seed)

    @jax.jit
    def advance(params: Any, state: Any, next_batch: Any, number: jax.Array) -> Any:
        batch = next_batch(jax.random.fold_in(key, number), number)
        params, state, metrics = step(params, state, batch)
        return (params, state), metrics["loss"]

    state = model.params, optimizer.init(model.params)
    rows = []
    for number in range(config.timed_steps + 1):
        start = np.array([time.perf_counter(), time.process_time()])
        state, loss = jax.block_until_ready(
            advance(*state, next_batch, jnp.int32(number))
        )
        taken = np.array([time.perf_counter(), time.process_time()]) - start
        rows.append((*taken, float(loss)))
    return Timed(*np.array(rows[1:]).T)


def _claims(config: Config, timed: dict[str, Timed]) -> tuple[Claim, ...]:
    images = config.num_images
    rates = [
        Claim(
            f"{name}: steps a second on {images:,} random images, and the time of "
            f"{config.paper_steps:,} steps",
            f"{found.rate():.3g} a second (steps of {found.seconds.min():.3g} to "
            f"{found.seconds.max():.3g} s, {np.median(found.core_seconds):.3g} core "
            f"seconds), {_hours(config, found):.3g} hours; synthetic: rate only",
            paper="50,000 steps on 60,000 digits",
        )
        for name, found in timed.items()
    ]
    finite = all(np.isfinite(found.loss).all() for found in timed.values())
    size = Claim(
        "The step runs at this size, and every loss is finite",
        f"{config.num_workers} workers of {images // config.num_workers:,} images, "
        f"{config.timed_steps} steps each",
        finite,
    )
    return (*rates, size)


def _hours(config: Config, timed: Timed) -> float:
    return config.paper_steps / timed.rate() / 3600


def plot(result: Result) -> Figure:
    """Draws how long each step took."""
    figure, (axes,) = panels(1)
    draw_curves(axes, result.curves, "seconds")
    axes.set(yscale="log", title="seconds a step; random images: rate only")
    axes.legend(fontsize=7)
    return figure
