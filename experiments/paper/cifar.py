"""CIFAR-10 held by label: the pipeline of the paper's Fig. 3, ResNet-20 and all.

Claim (the paper's): with b_W = 0.1 max|g| a tensor and step, noisy signSGD on workers
of one class each approaches signSGD on iid workers, where signSGD without noise falls
behind: test accuracy .75 against .70.

    python -m experiments cifar                    CIFAR-10, downloaded once; for a GPU
    python -m experiments cifar --data synthetic   the same on random images
    python -m experiments cifar --preset quick     a small network on random images

Random images of the same shape show that the pipeline runs and how fast. Accuracy is
reported for CIFAR-10 itself and for nothing else; if it is not there and cannot be
downloaded, the run stops and says so.

Differs from the paper in: 10 workers and batches of 32, which it does not state; biases
and smaller residual branches at the start, which take the place of BatchNorm; no tuning
of the step; 5 seeds; the systematic coupling, which is ours.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import jaxmedian as jm
from experiments.common.data.catalog import load_data
from experiments.common.data.data_set import DataSet
from experiments.common.data.mixtures import image_classes
from experiments.common.harness.options import Count, tiny
from experiments.common.harness.plots import draw_band, panels
from experiments.common.harness.results import Claim, Curves, Result, each_part
from experiments.common.training.models_convolutional import resnet20
from experiments.common.training.outcomes import Runs, report
from experiments.common.training.problems import Problem, build_problem
from experiments.common.training.trainer import build_trainer, part_folder

_EVALUATED_AT_ONCE = 500


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the CIFAR-10 runs.

    Attributes:
      curves: names of the curves to draw; all by default.
      data: "cifar10", "synthetic", or the path of a folder or archive of images of
        32 x 32 pixels: train/<class>/*.png|jpg, test/<class>/....
      data_dir: folder in which archives of data are looked for first.
      num_workers: M; each holds one class, or an iid share in the reference.
      num_seeds: runs of each curve, vmapped.
      num_steps: steps of every run.
      learning_rate: the step before it is divided.
      boundaries: steps after which it is divided by 2, by 10 and by 20.
      factor: of the noise, b = factor * max|g| a tensor and step.
      batch_size: samples a worker and step.
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
    factor: float = 0.1
    batch_size: Count = 32
    width: Count = 16
    blocks_per_stage: Count = 3
    num_synthetic: Count = 10_000
    chunk: Count = 100


_SMALL = Config(
    data="synthetic", boundaries=(20, 40, 50), width=4, blocks_per_stage=1, batch_size=4
)
PRESETS = {
    "quick": dataclasses.replace(_SMALL, num_steps=60, chunk=10, num_synthetic=2000),
    "tiny": tiny(
        _SMALL,
        curves=("by label, noisy",),
        boundaries=_SMALL.boundaries,
        num_workers=3,
        num_synthetic=60,
    ),
}


# Curve -> split, coupling, noise. Without noise the factor is 0, which is exactly the
# plain vote, so that three curves are one compiled program.
_CURVES: dict[str, tuple[str, jm.noise.Coupling, bool]] = {
    "iid, no noise": ("iid", "independent", False),
    "by label, no noise": ("by label", "independent", False),
    "by label, noisy": ("by label", "independent", True),
    "by label, noisy systematic": ("by label", "systematic", True),
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
    splits = {
        "iid": jm.splits.iid(data.train_labels, config.num_workers),
        "by label": jm.splits.by_label(data.train_labels, config.num_workers),
    }
    trainers = {c: _trainer(config, problem, c) for c in jm.noise.COUPLINGS}
    rates: dict[str, float] = {}

    def train(name: str) -> Runs:
        split, coupling, is_noisy = _CURVES[name]
        factor = np.array([config.factor if is_noisy else 0.0])
        start = time.perf_counter()
        folder = part_folder(checkpoints, name)
        runs = trainers[coupling]({"factor": factor}, splits[split], folder)
        steps = config.num_seeds * config.num_steps
        rates[name] = steps / (time.perf_counter() - start)
        return runs

    runs, partial = each_part(names, train)
    curves = {name: found.curve(0) for name, found in runs.items()}
    size = sum(leaf.size for leaf in jax.tree.leaves(problem.model.params))
    extra = {"steps a second, first compilation included": rates, "parameters": size}
    claims = _claims(config, runs, max(rates.values()), size)
    return Result(curves, claims, extra, partial=partial, data=data.description)


def _chosen(config: Config) -> tuple[str, ...]:
    unknown = [name for name in config.curves if name not in _CURVES]
    if unknown:
        raise ValueError(f"--curves takes some of {list(_CURVES)}; got {unknown}.")
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
        raise ValueError(
            "--data must be colour images of 32 x 32 pixels here, in up to "
            f"10 classes; got {classes} classes of shape {shape}: {data.description}."
        )
    return data


def step_schedule(config: Config) -> optax.Schedule:
    """Divides the step by 2, by 10 and by 20 after the boundaries."""
    first, second, third = config.boundaries
    # Each factor applies on top of those before it.
    return optax.piecewise_constant_schedule(
        config.learning_rate, {first: 0.5, second: 0.2, third: 0.5}
    )


def _trainer(config: Config, problem: Problem, coupling: jm.noise.Coupling) -> Any:
    schedule = step_schedule(config)

    def build(key: jax.Array, factor: jax.Array) -> optax.GradientTransformation:
        noise = jm.noise.gaussian(jm.noise.relative(factor), coupling)
        return jm.noisy_sign_sgd(schedule, noise, key)

    def measure(params: Any) -> dict[str, jax.Array]:
        if config.data == "synthetic":
            return {}
        return {"test_accuracy": _accuracy(problem, params)}

    return build_trainer(
        problem,
        build,
        batch_size=config.batch_size,
        num_steps=config.num_steps,
        chunk=config.chunk,
        measure=measure,
    )


def _accuracy(problem: Problem, params: Any) -> jax.Array:
    """Evaluates the test images a few hundred at a time, to spare memory."""
    parts = jax.tree.map(
        lambda leaf: leaf.reshape(-1, _EVALUATED_AT_ONCE, *leaf.shape[1:]), problem.test
    )
    return jnp.mean(
        jax.lax.map(lambda part: problem.model.accuracy(params, part), parts)
    )


def _claims(
    config: Config, runs: dict[str, Runs], rate: float, size: int
) -> tuple[Claim, ...]:
    losses = np.stack([found.metrics["loss"] for found in runs.values()])
    speed = Claim(
        "The whole pipeline runs, and every loss stays finite",
        f"{rate:.2f} steps a second, those of {config.num_seeds} seeds added up: "
        f"{config.num_workers} workers, batch {config.batch_size}, {size:,} parameters",
        bool(np.isfinite(losses).all()),
    )
    if config.data == "synthetic":
        nothing = Claim(
            "Noise brings one class a worker near the iid reference",
            "no accuracy: synthetic, CIFAR-shaped, rate only",
            paper=".75 against .70 without noise",
        )
        return (speed, nothing)
    last = {name: found.last(0).mean() for name, found in runs.items()}
    judged = config == dataclasses.replace(Config(), num_seeds=config.num_seeds)
    comparison = Claim(
        "Noise brings one class a worker nearer to the iid reference",
        "; ".join(f"{name} {report(found.last(0))}" for name, found in runs.items()),
        bool(last["by label, noisy"] > last["by label, no noise"]) if judged else None,
        paper=".75 against .70 without noise",
    )
    return (speed, comparison)


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
        else:
            axes.plot(curve["step"], curve["gradient_norm"], label=name)
    measured = any("test_accuracy" in curve for curve in curves.values())
    axes.set(
        title="test accuracy" if measured else "norm of the mean gradient",
        xlabel="step",
    )
