"""Systematic against independent noise in training: every b, law and M.

Claim: in the table of b, law and M, votes train to a higher accuracy with systematic
noise than with independent noise in every cell, medians on average: they are behind in
some cells, within chance. Both couplings have the same data, seeds and
learning rates, and take the best rate of each cell on validation digits. What theory
expects is computed from gradients that a run with the mean meets halfway: the descent
of a vote (`jm.theory.vote_probability`), and the squared error of a median over the
square of the mean (`jm.theory.simulate_median`).

    python -m experiments coupling_in_training                   8x8 digits
    python -m experiments coupling_in_training --preset quick    two laws, fewer b
    python -m experiments coupling_in_training --preset coordinates

The last is of noise with a scale for every coordinate: b times a statistic of it.
"""

import dataclasses
import itertools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import scipy.stats
from matplotlib.figure import Figure

import jaxmedian as jm
from experiments.common.harness.options import Amounts, Count, tiny
from experiments.common.harness.results import Claim, Result, each_part
from experiments.common.training.outcomes import (
    Runs,
    chance,
    grid,
    report,
    standard_error,
    verdict,
)
from experiments.common.training.problems import Problem, load_problem, serve
from experiments.common.training.trainer import (
    build_trainer,
    part_folder,
    run_to_end,
)
from experiments.theory.descents import expected_descent

Array = np.ndarray

COUPLINGS = jm.noise.COUPLINGS
STATISTICS: dict[str, jm.noise.CoordinateStatistic] = {"vote": "rms", "median": "sd"}
EVERY = 50  # steps from one running mean of squares that is sent to the next
_DRAWS = 400  # of a median, for each coordinate of the sample


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the table.

    Attributes:
      rules: of "vote" and "median".
      laws: of the noise.
      scales: b; with ``per_coordinate`` in units of ``STATISTICS``.
      per_coordinate: whether every coordinate has a scale of its own.
      workers: M; workers hold exclusive classes, or share one.
      data: name or path of the images, as `TrainingConfig` takes it.
      data_dir: folder in which archives of data are looked for first.
      num_seeds: runs of each cell.
      num_steps: steps of every run; the learning rate falls to 0 by a cosine.
      batch_size: samples a worker and step.
      hidden: units of the hidden layer.
      vote_rates: learning rates that votes choose from.
      median_rates: learning rates that medians choose from.
      mean_rate: learning rate of the run in which gradients are sampled.
      num_coordinates: of that sample.
    """

    rules: tuple[str, ...] = ("vote", "median")
    laws: tuple[str, ...] = ("gaussian", "laplace", "logistic", "uniform")
    scales: Amounts = (0.01, 0.03, 0.1, 0.3)
    per_coordinate: bool = False
    workers: tuple[Count, ...] = (10, 11, 31)
    data: str = "digits8x8"
    data_dir: Path | None = None
    num_seeds: Count = 5
    num_steps: Count = 500
    batch_size: Count = 32
    hidden: Count = 32
    vote_rates: Amounts = (0.003, 0.01)
    median_rates: Amounts = (0.3, 1.0)
    mean_rate: float = 0.3
    num_coordinates: Count = 100

    def __post_init__(self) -> None:
        for law in self.laws:
            jm.noise.Noise(law, 1.0)  # says which laws there are
        unknown = set(self.rules) - {"vote", "median"}
        if unknown or not self.rules:
            raise ValueError(
                f"--rules takes vote and median, one at least; got {self.rules}."
            )


PRESETS = {
    "quick": Config(laws=("gaussian", "uniform"), scales=(0.03, 0.1), workers=(10, 11)),
    "coordinates": Config(
        laws=("gaussian", "uniform"),
        scales=(0.5, 1.0, 2.0, 4.0),
        per_coordinate=True,
        workers=(10, 11),
    ),
    "tiny": tiny(
        Config(), laws=("uniform",), scales=(0.1,), workers=(3,), num_coordinates=8
    ),
}


class Cells(NamedTuple):
    """One row of the table: a rule, M and law at every b, [B] each.

    Attributes:
      accuracy: coupling -> [B, S], the last test accuracy of each seed.
      expected: coupling -> [B], what theory expects: more is better.
    """

    accuracy: dict[str, Array]
    expected: dict[str, Array]

    @property
    def ahead(self) -> Array:
        """By how much systematic noise is ahead, [B, S]."""
        return self.accuracy["systematic"] - self.accuracy["independent"]


def run(config: Config, checkpoints: Path | None = None) -> Result:
    """Trains both couplings in every cell."""
    problem = load_problem(
        config.data, config.hidden, config.num_seeds, config.data_dir
    )
    splits = {m: problem.split_by_label(m) for m in config.workers}
    samples = {m: _sample(config, problem, split) for m, split in splits.items()}
    rows = {
        f"{rule}, M = {m}, {law}": (rule, m, law)
        for m, rule, law in itertools.product(splits, config.rules, config.laws)
    }

    def train(name: str) -> Cells:
        rule, m, law = rows[name]
        accuracy: dict[str, Array] = {}
        for coupling in COUPLINGS:
            folder = part_folder(checkpoints, f"{name}, {coupling}")
            runs = _train(config, problem, splits[m], rule, law, coupling, folder)
            accuracy[coupling] = _best_rates(config, runs)
        return Cells(accuracy, _expect(config, rule, law, samples[m]))

    table, partial = each_part(rows, train)
    claims = _claims(config, table)
    return Result(
        _curves(config, table),
        claims,
        against="b",
        partial=partial,
        data=problem.description,
    )


def _sample(config: Config, problem: Problem, split: jm.splits.Split) -> Array:
    """Returns gradients [M, C] that a run with the mean meets halfway."""

    def measure(params: Any, grads: Any, updates: Any) -> dict[str, jax.Array]:
        del params, updates
        number = config.num_coordinates
        return {"sample": jm.diagnostics.sample_coordinates(grads, number, 0)}

    half = max(1, config.num_steps // 2)
    found = run_to_end(
        problem.model.loss,
        optax.chain(jm.worker_mean(), optax.sgd(config.mean_rate)),
        problem.model.params,
        serve(problem.train, split, config.batch_size),
        half,
        key=0,
        chunk=half,
        metrics=[measure],
    )
    return np.asarray(found.metrics["sample"][-1], np.float64)


def _train(
    config: Config,
    problem: Problem,
    split: jm.splits.Split,
    rule: str,
    law: str,
    coupling: jm.noise.Coupling,
    checkpoint: Path | None,
) -> Runs:
    optimizer = jm.noisy_sign_sgd if rule == "vote" else jm.noisy_median_sgd

    def build(key: Any, rate: Any, scale: Any) -> optax.GradientTransformation:
        schedule = optax.cosine_decay_schedule(rate, config.num_steps)
        if config.per_coordinate:
            statistic = STATISTICS[rule]
            every = EVERY if statistic == "rms" else 1
            scale = jm.noise.per_coordinate(scale, statistic, every=every)
        return optimizer(schedule, jm.noise.Noise(law, scale, coupling), key)

    train = build_trainer(
        problem,
        build,
        batch_size=config.batch_size,
        num_steps=config.num_steps,
        chunk=config.num_steps,
    )
    rates = config.vote_rates if rule == "vote" else config.median_rates
    return train(grid(scale=config.scales, rate=rates), split, checkpoint)


def _best_rates(config: Config, runs: Runs) -> Array:
    """Returns the last test accuracies [B, S] at the rate that validation prefers."""

    def last(metric: str) -> Array:
        ends = runs.metrics[metric][:, :, -1]
        return ends.reshape(len(config.scales), -1, config.num_seeds)

    best = last("validation_accuracy").mean(axis=2).argmax(axis=1)
    return last("test_accuracy")[np.arange(len(best)), best]


def _expect(config: Config, rule: str, law: str, u: Array) -> dict[str, Array]:
    """Computes what theory expects at every b: a descent, or minus an error.

    Noise of scale b s_j on u is noise of scale b on u / s_j, times s_j.
    """
    mean = u.mean(axis=0)
    units = _units(config, rule, u)

    def minus_error(noise: jm.noise.Noise) -> float:
        found = jm.theory.simulate_median(u / units, noise, 0, _DRAWS)
        squared = (units * found.mean - mean) ** 2 + units**2 * found.variance
        return -float(squared.sum() / (mean**2).sum())

    def descent(noise: jm.noise.Noise) -> float:
        return expected_descent(u / units, noise, weights=units)

    expect = descent if rule == "vote" else minus_error
    return {
        coupling: np.array(
            [expect(jm.noise.Noise(law, b, coupling)) for b in config.scales]
        )
        for coupling in COUPLINGS
    }


def _units(config: Config, rule: str, u: Array) -> Array:
    """Returns what b is a multiple of in each coordinate [C]: 1, or its statistic."""
    if not config.per_coordinate:
        return np.ones(u.shape[1])
    found = u.std(axis=0) if rule == "median" else np.sqrt((u**2).mean(axis=0))
    return np.where(found > 0, found, 1.0)  # all zeros: nothing to perturb


def _curves(config: Config, table: dict[str, Cells]) -> dict[str, dict[str, Array]]:
    return {
        name: {
            "b": np.array(config.scales),
            "ahead": cells.ahead.mean(axis=1),
            "ahead_error": standard_error(cells.ahead.T),
            **{f"{c} accuracy": cells.accuracy[c].mean(axis=1) for c in COUPLINGS},
            **{f"{c} expected": cells.expected[c] for c in COUPLINGS},
        }
        for name, cells in table.items()
    }


def _claims(config: Config, table: dict[str, Cells]) -> tuple[Claim, ...]:
    judged = config.num_steps >= 300 and config.num_seeds >= 5
    claims = []
    for rule in dict.fromkeys(name.split(", ")[0] for name in table):
        rows = {name: row for name, row in table.items() if name.startswith(rule)}
        ahead = np.concatenate([row.ahead for row in rows.values()])  # [cells, S]
        of_a_seed = ahead.mean(axis=0)
        expected = np.concatenate(
            [
                r.expected["systematic"] - r.expected["independent"]
                for r in rows.values()
            ]
        )
        agreement = np.nan  # of one cell
        if len(ahead) > 1:
            agreement = scipy.stats.kendalltau(ahead.mean(axis=1), expected).statistic
        claims += [
            Claim(
                f"{rule}: over all {len(ahead)} cells systematic noise is ahead (two "
                "standard errors)",
                f"by {report(100 * of_a_seed, 2)} points; ahead in "
                f"{(ahead.mean(axis=1) > 0).sum()} cells, rank correlation with what "
                f"theory expects {agreement:.2f}",
                verdict(of_a_seed, lambda x, error: x > 2 * error) if judged else None,
            ),
            *[_row_claim(config, name, row) for name, row in rows.items()],
        ]
    return tuple(claims)


def _row_claim(config: Config, name: str, row: Cells) -> Claim:
    """Reports a row, and names the cells where systematic noise loses, and why."""
    means, errors = row.ahead.mean(axis=1), standard_error(row.ahead.T)
    here = "; ".join(
        f"b = {b:g}: {100 * mean:+.1f}"
        + (f" +- {100 * error:.1f}" if np.isfinite(error) else "")
        for b, mean, error in zip(config.scales, means, errors, strict=True)
    )
    margins = chance(row.ahead.T)
    reasons = []
    for k, b in enumerate(config.scales):
        if means[k] < 0:
            one, other = (row.expected[c][k] for c in COUPLINGS)
            likely = ", within chance" if means[k] >= -margins[k] else ""
            likely = likely if np.isfinite(margins[k]) else ", by one seed"
            order = "is worse" if other < one else "is better"
            measure = "descent" if name.startswith("vote") else "minus error"
            reasons.append(
                f"behind at b = {b:g}{likely}; theory: systematic {order} there, "
                f"{measure} {other:.3g} against {one:.3g}"
            )
    return Claim(f"{name}: points ahead", here, reason="; ".join(reasons))


def plot(result: Result) -> Figure:
    """Draws the table: points ahead, one panel a rule, a row an M and law."""
    rules = list(dict.fromkeys(name.split(", ")[0] for name in result.curves))
    figure = Figure(figsize=(4.2 * len(rules), 4.5), layout="constrained")
    for rule, ax in zip(
        rules, figure.subplots(1, len(rules), squeeze=False)[0], strict=True
    ):
        rows = {n: c for n, c in result.curves.items() if n.startswith(rule)}
        points = 100 * np.array([row["ahead"] for row in rows.values()])
        largest = max(float(np.abs(points).max()), 1e-3)
        image = ax.imshow(
            points, cmap="RdBu", vmin=-largest, vmax=largest, aspect="auto"
        )
        for (i, j), value in np.ndenumerate(points):
            ax.text(j, i, f"{value:+.1f}", ha="center", va="center", fontsize=6)
        scales = next(iter(rows.values()))["b"]
        ax.set_xticks(range(len(scales)), [f"{b:g}" for b in scales])
        ax.set_yticks(range(len(rows)), [name.split(", ", 1)[1] for name in rows])
        ax.set(xlabel="b", title=f"{rule}: points ahead by systematic noise")
    figure.colorbar(image)
    return figure
