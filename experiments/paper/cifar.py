"""CIFAR-10 held by label: the pipeline of the paper's Fig. 3, ResNet-20 and all.

Claim (the paper's): with b_W = 0.1 max|g| a tensor and step, noisy signSGD on workers
of exclusive classes each approaches signSGD on iid workers, where signSGD without noise
falls behind: test accuracy .75 against .70.

    python -m experiments cifar                    CIFAR-10, downloaded once; for a GPU
    python -m experiments cifar --preset paper-cpu 5 workers, batches of 16, one seed
    python -m experiments cifar --data PATH        images: train/<class>/*.jpg, test/...
    python -m experiments cifar --data synthetic   the same on random images
    python -m experiments cifar --preset quick     a small network on random images

Each curve has checkpoints of its own: ``--curves`` picks some, and ``--resume`` goes on
with them, others or all. Within ten minutes at a time, ``timeout -s INT 570`` before
the command with ``--resume`` stops it as Ctrl-C does: finished curves are written.

Random images of the same shape show that the pipeline runs and how fast. Accuracy is
reported for images that were there and for nothing else, under the name of what they
are ("CIFAR-10, JPEG copies"); if there are none and none can be downloaded, the run
stops and says so.

Differs from the paper in: 10 workers and batches of 32 (5 and 16 with ``paper-cpu``),
which it does not state; biases and smaller residual branches at the start, which take
the place of BatchNorm; no tuning of the step; 5 seeds; the systematic coupling, the
scale for every coordinate and the mean, which are ours.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import jaxmedian as jm
from experiments.common.data.catalog import load_data
from experiments.common.data.data_set import DataSet
from experiments.common.data.mixtures import image_classes
from experiments.common.harness.misuse import Misuse
from experiments.common.harness.options import Count, tiny
from experiments.common.harness.plots import draw_band, panels
from experiments.common.harness.results import Claim, Curves, Result, each_part
from experiments.common.training.models_convolutional import resnet20
from experiments.common.training.outcomes import Runs, report, seeds_in_words
from experiments.common.training.problems import Problem, build_problem
from experiments.common.training.trainer import build_trainer, part_folder

_EVALUATED_AT_ONCE = 100
EVERY = 50  # steps from one running mean of squares that is sent to the next


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the CIFAR-10 runs.

    Attributes:
      curves: names of the curves to draw; all by default.
      data: "cifar10", "synthetic", or the path of a folder or archive of images of
        32 x 32 pixels: train/<class>/*.png|jpg, test/<class>/....
      data_dir: folder in which archives of data are looked for first.
      num_workers: M; each holds 10 / M classes, or an iid share in the reference.
      num_seeds: runs of each curve, vmapped.
      num_steps: steps of every run.
      learning_rate: the step before it is divided.
      boundaries: steps after which it is divided by 2, by 10 and by 20.
      mean_rate: that of the mean, divided likewise.
      factor: of the noise, b = factor * max|g| a tensor and step.
      coordinate_factor: of the noise with a scale for every coordinate, in root mean
        squares of the gradients there.
      batch_size: samples a worker and step.
      worker_chunk: workers whose gradients are computed at a time, run by run; None for
        all workers and seeds at once. CPUs are faster with 1.
      width: channels of the first stage.
      blocks_per_stage: 3 for ResNet-20.
      num_synthetic: random images, if there are to be any.
      chunk: steps between two measurements.
    """

    curves: tuple[str, ...] = ()
    data: str = "cifar10"
    data_dir: Path | None = None
    num_workers: Count = 10
    num_seeds: Count = 5
    num_steps: Count = 7000
    learning_rate: float = 1e-3
    boundaries: tuple[int, int, int] = (1000, 3000, 5000)
    mean_rate: float = 0.1
    factor: float = 0.1
    coordinate_factor: float = 1.0
    batch_size: Count = 32
    worker_chunk: Count | None = None
    width: Count = 16
    blocks_per_stage: Count = 3
    num_synthetic: Count = 10_000
    chunk: Count = 100


_SMALL = Config(
    data="synthetic", boundaries=(20, 40, 50), width=4, blocks_per_stage=1, batch_size=4
)
PRESETS = {
    "paper-cpu": Config(
        num_workers=5, batch_size=16, num_seeds=1, worker_chunk=1, chunk=250
    ),
    "quick": dataclasses.replace(_SMALL, num_steps=60, chunk=10, num_synthetic=2000),
    "tiny": tiny(
        _SMALL,
        curves=("by label, noisy",),
        boundaries=_SMALL.boundaries,
        num_workers=3,
        num_synthetic=60,
    ),
}


Rule = Literal["independent", "systematic", "per coordinate", "mean"]


class Curve(NamedTuple):
    """A curve: how data are shared out, the rule, and whether there is noise.

    Without noise the factor is 0, which is exactly the plain vote, so that three curves
    are one compiled program.
    """

    split: Literal["iid", "by label"]
    rule: Rule
    is_noisy: bool = True


_CURVES = {
    "iid, no noise": Curve("iid", "independent", is_noisy=False),
    "by label, no noise": Curve("by label", "independent", is_noisy=False),
    "by label, noisy": Curve("by label", "independent"),
    "by label, noisy systematic": Curve("by label", "systematic"),
    "by label, noisy per coordinate": Curve("by label", "per coordinate"),
    "by label, mean": Curve("by label", "mean"),
}


def run(config: Config, checkpoints: Path | None = None) -> Result:
    """Trains the reference and the heterogeneous curves."""
    names = _chosen(config)
    data = _load(config)
    problem = build_problem(
        data,
        {},
        lambda seed: resnet20(seed, config.width, config.blocks_per_stage),
        range(config.num_seeds),
    )
    labels = problem.labels_for(config.num_workers)
    splits = {
        "iid": jm.splits.iid(labels, config.num_workers),
        "by label": jm.splits.by_label(labels, config.num_workers),
    }
    trainer = functools.cache(functools.partial(_trainer, config, problem))

    def train(name: str) -> Runs:
        split, rule, is_noisy = _CURVES[name]
        factors = {"per coordinate": config.coordinate_factor, "mean": 0.0}
        factor = factors.get(rule, config.factor) if is_noisy else 0.0
        folder = part_folder(checkpoints, name)
        return trainer(rule)({"factor": np.array([factor])}, splits[split], folder)

    runs, partial = each_part(names, train)
    curves = {name: found.curve(0) for name, found in runs.items()}
    size = sum(leaf.size for leaf in jax.tree.leaves(problem.model.params))
    pace = {name: found.pace() for name, found in runs.items()}
    claims = _claims(config, data.description, runs, size)
    extra = {"pace": pace, "parameters": size}
    return Result(curves, claims, extra, "step", partial, data.description)


def _chosen(config: Config) -> tuple[str, ...]:
    unknown = [name for name in config.curves if name not in _CURVES]
    if unknown:
        raise Misuse(f"--curves takes some of {list(_CURVES)}; got {unknown}.")
    return config.curves or tuple(_CURVES)


def _load(config: Config) -> DataSet:
    if config.data == "synthetic":
        return image_classes(config.num_synthetic, test_size=0)
    try:
        data = load_data(config.data, config.data_dir)
    except ConnectionError as error:
        raise ConnectionError(
            f"{error}\nOr give a folder or archive of its images, --data PATH; or try "
            "the pipeline on random images, --data synthetic."
        ) from error
    shape, classes = data.train_images.shape[1:], np.unique(data.train_labels).size
    if shape != (32, 32, 3) or classes > 10:
        raise Misuse(
            "--data must be colour images of 32 x 32 pixels here, in up to "
            f"10 classes; got {classes} classes of shape {shape}: {data.description}."
        )
    return data


def step_schedule(config: Config, learning_rate: float) -> optax.Schedule:
    """Divides the step by 2, by 10 and by 20 after the boundaries."""
    first, second, third = config.boundaries
    # Each factor applies on top of those before it.
    return optax.piecewise_constant_schedule(
        learning_rate, {first: 0.5, second: 0.2, third: 0.5}
    )


def _trainer(config: Config, problem: Problem, rule: Rule) -> Callable[..., Runs]:
    """Builds the trainer of a rule; what b is a factor of is the rule's."""

    def mean(key: jax.Array, factor: jax.Array) -> optax.GradientTransformation:
        del key, factor
        schedule = step_schedule(config, config.mean_rate)
        return optax.chain(jm.worker_mean(), optax.sgd(schedule))

    def vote(key: jax.Array, factor: jax.Array) -> optax.GradientTransformation:
        if rule == "per coordinate":
            squares = jm.noise.per_coordinate(factor, "rms", every=EVERY)
            noise = jm.noise.uniform(squares, "systematic")
        else:
            coupling: jm.noise.Coupling = (
                "systematic" if rule == "systematic" else "independent"
            )
            noise = jm.noise.gaussian(jm.noise.relative(factor), coupling)
        schedule = step_schedule(config, config.learning_rate)
        return jm.noisy_sign_sgd(schedule, noise, key)

    def measure(params: Any) -> dict[str, jax.Array]:
        if config.data == "synthetic":
            return {}
        return {"test_accuracy": _accuracy(problem, params)}

    return build_trainer(
        problem,
        mean if rule == "mean" else vote,
        batch_size=config.batch_size,
        num_steps=config.num_steps,
        chunk=config.chunk,
        measure=measure,
        worker_chunk=config.worker_chunk,
    )


def _accuracy(problem: Problem, params: Any) -> jax.Array:
    """Evaluates the test images a hundred at a time, to spare memory."""
    size = len(problem.test["labels"])
    missing = -size % _EVALUATED_AT_ONCE

    def in_parts(leaf: jax.Array) -> jax.Array:
        padded = jnp.pad(leaf, ((0, missing), *[(0, 0)] * (leaf.ndim - 1)))
        return padded.reshape(-1, _EVALUATED_AT_ONCE, *leaf.shape[1:])

    weights = jnp.ones(size)
    parts = jax.tree.map(in_parts, problem.test | {"weights": weights})

    def right_answers(part: dict[str, jax.Array]) -> jax.Array:
        return problem.model.accuracy(params, part) * part["weights"].sum()

    return jax.lax.map(right_answers, parts).sum() / size


def _claims(
    config: Config, description: str, runs: dict[str, Runs], size: int
) -> tuple[Claim, ...]:
    losses = [found.metrics["loss"] for found in runs.values()]
    rate = max(found.pace()["steps a second"] for found in runs.values())
    speed = Claim(
        "The whole pipeline runs, and every loss stays finite",
        f"{rate * config.num_seeds:.2f} steps a second, those of "
        f"{seeds_in_words(config.num_seeds)} added up: {config.num_workers} workers, "
        f"batch {config.batch_size}, {size:,} parameters",
        bool(np.isfinite(losses).all()),
    )
    if config.data == "synthetic":
        nothing = Claim(
            "Noise brings workers of exclusive classes near the iid reference",
            "no accuracy: synthetic, CIFAR-shaped, rate only",
            paper=".75 against .70 without noise",
        )
        return (speed, nothing)
    return (speed, _comparison(config, description, runs))


def _comparison(config: Config, description: str, runs: dict[str, Runs]) -> Claim:
    """Compares how far noise and no noise end from the iid reference, if all ran."""
    last = {name: found.last(0).mean() for name, found in runs.items()}
    default = Config(num_seeds=config.num_seeds, data_dir=config.data_dir)
    judged = config == default and len(runs) == len(_CURVES)
    reached = "; ".join(
        f"{name} {report(found.last(0))}" for name, found in runs.items()
    )
    here = (
        f"{reached} ({description}, {config.num_steps:,} steps, "
        f"{seeds_in_words(config.num_seeds)})"
    )
    compared = ("by label, noisy", "by label, no noise", "iid, no noise")
    if not set(compared) <= set(last):
        return Claim("Last test accuracy", here)
    noisy, plain, reference = (last[name] for name in compared)
    nearer = abs(noisy - reference) < abs(plain - reference)
    return Claim(
        "Noise brings workers of exclusive classes nearer to the iid reference",
        here,
        bool(nearer) if judged else None,
        paper=".75 against .70 without noise",
    )


def plot(result: Result) -> Figure:
    """Draws the loss and, if it was measured, the accuracy; else the mean gradient."""
    figure, (left, right) = panels(2)
    for name, curve in result.curves.items():
        draw_band(left, curve, "loss", name)
    left.set_title("training loss, mean over workers")
    left.legend(fontsize=7)
    _draw_right(right, result.curves)
    return figure


def _draw_right(axes: Any, curves: Curves) -> None:
    for name, curve in curves.items():
        if "test_accuracy" in curve:
            draw_band(axes, curve, "test_accuracy", name)
        elif "gradient_norm" in curve:
            axes.plot(curve["step"], curve["gradient_norm"], label=name)
    measured = any("test_accuracy" in curve for curve in curves.values())
    axes.set(
        title="test accuracy" if measured else "norm of the mean gradient",
        xlabel="step",
    )
