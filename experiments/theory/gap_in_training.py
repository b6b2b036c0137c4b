"""The gap along a run: what noise leaves of it, step by step, as the exact law says.

Claim: at any step of a training run the deviation of the noisy median from the mean is
the bias that `jm.theory.median_moments` computes from the workers' gradients there, and
the noisy vote goes downhill by what `jm.theory.vote_probability` says. So, summed over
coordinates and steps, measured minus predicted is noise of known variance. The gap is
||E[median] - mean|| / ||mean||; the descent is sum_j mean_j vote_j / sum_j |mean_j|.

    python -m experiments gap_in_training                   8x8 digits
    python -m experiments gap_in_training --preset mnist5k  28x28 digits

Once training has come far, gradients are noise and the vote of a constant b no longer
goes downhill: theory says so too.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from matplotlib.figure import Figure

import jaxmedian as jm
from experiments.common.harness.options import Amounts, Count, Seed, tiny
from experiments.common.harness.plots import panels
from experiments.common.harness.results import Claim, Result, each_part
from experiments.common.training.problems import Problem, load_problem, serve
from experiments.common.training.trainer import run_to_end

Array = np.ndarray

_TOLERANCE = 4.0  # standard errors
_BLOCK = 10  # measurements behind a dot


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the runs; workers hold exclusive digit classes.

    Attributes:
      data: name or path of the images, as `TrainingConfig` takes it.
      data_dir: folder in which archives of data are looked for first.
      num_workers: M.
      law: of the noise.
      median_scales: b of the runs with the noisy median.
      vote_scales: b of the runs with the noisy vote, independent and systematic.
      num_steps: steps of every run.
      chunk: steps between two measurements.
      num_coordinates: measured at each of them, the same ones all along.
      batch_size: samples a worker and step.
      hidden: units of the hidden layer.
      median_rate: learning rate of the medians.
      vote_rate: learning rate of the votes.
      seed: of network, batches, noise and coordinates.
    """

    data: str = "digits8x8"
    data_dir: Path | None = None
    num_workers: Count = 10
    law: str = "gaussian"
    median_scales: Amounts = (0.01, 0.03, 0.1)
    vote_scales: Amounts = (0.01, 0.1)
    num_steps: Count = 1000
    chunk: Count = 10
    num_coordinates: Count = 200
    batch_size: Count = 32
    hidden: Count = 32
    median_rate: float = 0.3
    vote_rate: float = 0.003
    seed: Seed = 0

    def __post_init__(self) -> None:
        jm.noise.Noise(self.law, 1.0)  # says which laws there are


PRESETS = {
    "quick": Config(num_steps=300, num_coordinates=100),
    "mnist5k": Config(data="mnist5k", batch_size=64, hidden=128),
    "tiny": tiny(
        Config(),
        median_scales=(0.1,),
        vote_scales=(0.1,),
        num_steps=4,
        chunk=2,
        num_coordinates=8,
    ),
}


class Prediction(NamedTuple):
    """What the theory says about an outcome less an offset, [C] each.

    Attributes:
      offset: taken from the outcome first.
      expected: what is left, on average.
      variance: of the outcome.
      weights: of the coordinates in the sum that is the gap, or the descent.
    """

    offset: Array
    expected: Array
    variance: Array
    weights: Array


Predict = Callable[[Array], Prediction]  # from the workers' gradients [M, C]


class Training(NamedTuple):
    """An optimizer whose updates are minus a rate times outcomes of known law."""

    optimizer: optax.GradientTransformation
    rate: float
    predict: Predict


def run(config: Config) -> Result:
    """Trains with every noise, and compares each run with its own predictions."""
    problem = load_problem(config.data, config.hidden, 1, config.data_dir)
    trainings = _runs(config)

    def train(name: str) -> dict[str, Array]:
        optimizer, rate, predict = trainings[name]
        steps, gradients, updates = _sample(config, problem, optimizer)
        return {"step": steps} | _compare(gradients, updates / -rate, predict)

    curves, partial = each_part(trainings, train)
    averages = {name: _average(curve) for name, curve in curves.items()}
    extra = {"figures": _figures(averages)} if averages else {}
    return Result(
        curves, _claims(averages), extra, partial=partial, data=problem.description
    )


def _runs(config: Config) -> dict[str, Training]:
    key = jax.random.key(config.seed)
    rate = config.median_rate
    runs = {}
    for scale in config.median_scales:
        noise = jm.noise.Noise(config.law, scale)
        runs[f"median, b = {scale:g}"] = Training(
            jm.noisy_median_sgd(rate, noise, key), rate, _predict_median(noise)
        )
    for coupling in ("independent", "systematic"):
        for scale in config.vote_scales:
            noise = jm.noise.Noise(config.law, scale, coupling)
            optimizer = jm.noisy_sign_sgd(config.vote_rate, noise, key)
            runs[f"vote, {coupling}, b = {scale:g}"] = Training(
                optimizer, config.vote_rate, _predict_vote(noise)
            )
    return runs


def _predict_median(noise: jm.noise.Noise) -> Predict:
    """Returns u -> the law of median - mean, weighted so that its sum is the gap."""

    def predict(u: Array) -> Prediction:
        mean = u.mean(axis=0)
        expected, variance = map(np.asarray, jm.theory.median_moments(u, noise))
        bias = expected - mean
        weights = bias / (np.linalg.norm(bias) * np.linalg.norm(mean))
        return Prediction(mean, bias, variance, weights)

    return predict


def _predict_vote(noise: jm.noise.Noise) -> Predict:
    """Returns u -> the law of the vote, weighted so that its sum is the descent."""

    def predict(u: Array) -> Prediction:
        plus, minus, _ = map(np.asarray, jm.theory.vote_probability(u, noise))
        mean, expected = u.mean(axis=0), plus - minus
        variance = plus + minus - expected**2
        return Prediction(
            np.zeros_like(mean), expected, variance, mean / np.abs(mean).sum()
        )

    return predict


def _sample(
    config: Config, problem: Problem, optimizer: optax.GradientTransformation
) -> tuple[Array, Array, Array]:
    """Trains; returns steps [T], workers' gradients [T, M, C] and updates [T, C]."""

    def sample(params: Any, grads: Any, updates: Any) -> dict[str, jax.Array]:
        del params
        key, number = config.seed, config.num_coordinates
        one_row = jax.tree.map(lambda leaf: leaf[None], updates)
        return {
            "gradients": jm.diagnostics.sample_coordinates(grads, number, key),
            "updates": jm.diagnostics.sample_coordinates(one_row, number, key)[0],
        }

    labels = problem.labels_for(config.num_workers)
    split = jm.splits.by_label(labels, config.num_workers, seed=config.seed)
    metrics = run_to_end(
        problem.model.loss,
        optimizer,
        problem.model.params,
        serve(problem.train, split, config.batch_size),
        config.num_steps,
        key=config.seed,
        chunk=config.chunk,
        metrics=[sample],
    ).metrics
    return (
        metrics["step"],
        np.asarray(metrics["gradients"], np.float64),
        np.asarray(metrics["updates"], np.float64),
    )


def _compare(gradients: Array, outcomes: Array, predict: Predict) -> dict[str, Array]:
    """Returns what was predicted and measured at each step, and by what error.

    The columns of squares compare the spread: the sum over coordinates of squared
    deviations from what was expected, that of their variances, and the sum of squares
    of the difference of both.
    """
    rows = []
    for u, outcome in zip(gradients, outcomes, strict=True):
        found = predict(u)
        left = outcome - found.offset
        square = (left - found.expected) ** 2
        rows.append(
            {
                "predicted": found.weights @ found.expected,
                "measured": found.weights @ left,
                "measured_error": np.sqrt(found.weights**2 @ found.variance),
                "squares": square.sum(),
                "variances": found.variance.sum(),
                "squares_error": np.linalg.norm(square - found.variance),
            }
        )
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


class Average(NamedTuple):
    """A run's gap or descent, averaged over its steps, and its spread.

    Attributes:
      measured: the average.
      predicted: what theory says it is.
      error: the standard error of the average.
      spread: measured squares over the variances that theory says.
      spread_error: its standard error.
    """

    measured: float
    predicted: float
    error: float
    spread: float
    spread_error: float

    def off(self) -> float:
        """Returns how many standard errors too large the average is."""
        return (self.measured - self.predicted) / self.error


def _average(curve: dict[str, Array]) -> Average:
    variances = float(curve["variances"].sum())
    return Average(
        float(curve["measured"].mean()),
        float(curve["predicted"].mean()),
        float(np.linalg.norm(curve["measured_error"])) / len(curve["step"]),
        float(curve["squares"].sum()) / variances,
        float(np.linalg.norm(curve["squares_error"])) / variances,
    )


def _figures(averages: dict[str, Average]) -> dict[str, Any]:
    """Returns what pages quote."""
    gaps = [a.measured for name, a in averages.items() if name.startswith("median")]
    spreads = [a.spread for a in averages.values()]
    return {
        "runs": len(averages),
        "standard errors": max(abs(a.off()) for a in averages.values()),
        "gaps": ", ".join(f"{gap:.2f}" for gap in gaps),
        "variances": f"{min(spreads):.3f} to {max(spreads):.3f}",
    }


def _claims(averages: dict[str, Average]) -> tuple[Claim, ...]:
    claims = []
    for name, found in averages.items():
        quantity = "gap" if name.startswith("median") else "descent"
        claims.append(
            Claim(
                f"{name}: the {quantity}, averaged over the run, is what theory says "
                f"({_TOLERANCE:g} standard errors)",
                f"{found.measured:.4f} +- {found.error:.4f}, predicted "
                f"{found.predicted:.4f} ({found.off():+.2f} standard errors)",
                abs(found.off()) <= _TOLERANCE,
            )
        )
        claims.append(
            Claim(
                f"{name}: so is the variance ({_TOLERANCE:g} standard errors)",
                f"{found.spread:.4f} +- {found.spread_error:.4f} of what is predicted",
                abs(found.spread - 1) <= _TOLERANCE * found.spread_error,
            )
        )
    return tuple(claims)


def plot(result: Result) -> Figure:
    """Draws predicted curves, and averages of ten measurements, against the step."""
    figure, axes = panels(2)
    for rule, ax in zip(("median", "vote"), axes, strict=True):
        for name, curve in result.curves.items():
            if name.startswith(rule):
                (line,) = ax.plot(
                    curve["step"], curve["predicted"], label=name.split(", ", 1)[1]
                )
                blocks = {key: _blocks(curve[key]) for key in ("step", "measured")}
                error = _block_errors(curve["measured_error"])
                ax.errorbar(
                    blocks["step"],
                    blocks["measured"],
                    error,
                    fmt=".",
                    color=line.get_color(),
                )
        ax.set_xlabel("step")
        ax.legend(fontsize=7)
    axes[0].set_title("gap of the noisy median: exact and measured")
    axes[1].set_title("descent of the noisy vote: exact and measured")
    return figure


def _blocks(values: Array) -> Array:
    """Averages blocks of about ten neighbouring measurements."""
    return np.array([block.mean() for block in _split(values)])


def _block_errors(errors: Array) -> Array:
    """Returns the standard errors of these averages."""
    return np.array([np.linalg.norm(block) / len(block) for block in _split(errors)])


def _split(values: Array) -> list[Array]:
    return np.array_split(values, max(1, len(values) // _BLOCK))
