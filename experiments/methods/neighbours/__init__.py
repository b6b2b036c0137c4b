"""Votes, medians and their neighbours on one problem: accuracy against steps and bits.

Claim: where every worker holds one digit class, votes without noise fail, with momentum
(Signum, Distributed Lion) too; noise makes one bit a coordinate and worker enough, and
systematic noise more so. Every method has the same data, steps, seeds and number of
learning rates, and takes its best on validation digits. Bits are those that a worker
sends up.

    python -m experiments neighbours                   8x8 digits
    python -m experiments neighbours --preset quick    fewer steps and settings
    python -m experiments neighbours --preset mnist5k  28x28 digits

Expect (default, 5 seeds, standard errors .001 to .007 where not given), test accuracy:
mean .970; EF-signSGD .959, which remembers at each worker what a bit left out; median
.375 +- .037, with noise .914, systematic .959; vote .247 +- .023, with noise .934,
systematic .956; sto-sign .944; mean of noisy signs .924; Signum .148 and Distributed
Lion .133 (+- .03): momentum does not help a vote that points elsewhere. Under 3 minutes
of CPU, twice that on two busy cores.

With 28x28 digits and 3,000 steps, in points behind the mean's .940 +- .001: systematic
vote .02 +- .28, independent vote 1.92 +- .15, systematic median 2.66 +- .08 and
independent median 13.2 +- 1.9; without noise the vote reaches .391 +- .015, the median
.314 +- .022. One b serves coordinates of all sizes: a vote bounds what its noise does
to a small one, a median takes the step. An hour and a half of CPU for these; the others
were not run there.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import optax
from matplotlib.figure import Figure

import jaxmedian as jm
from experiments.common.harness.claims import Claim
from experiments.common.harness.plots import draw_band, panels
from experiments.common.harness.results import Result
from experiments.common.training.finished import once
from experiments.common.training.trainer import (
    Chosen,
    Problem,
    Runs,
    Settings,
    build_trainer,
    grid,
    load_problem,
    report,
    standard_error,
)
from experiments.methods.neighbours import methods


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the comparison.

    Attributes:
      methods: names of the methods to run; all by default.
      data: "digits8x8", "mnist5k", "mnist" or "fashion_mnist".
      num_workers: M; workers hold exclusive classes.
      num_seeds: runs of each setting.
      num_steps: steps of every run; the learning rate falls to 0 by a cosine.
      batch_size: samples a worker and step.
      hidden: units of the hidden layer.
      sign_rates: learning rates that votes choose from.
      gradient_rates: learning rates that what approximates a gradient chooses from.
      count_rates: learning rates that the mean of signs chooses from.
      scales: b that noisy votes and signs choose from.
      median_rates: learning rates that noisy medians choose from.
      median_scales: b that noisy medians choose from.
      chunk: steps between two measurements.
    """

    methods: tuple[str, ...] = ()
    data: str = "digits8x8"
    num_workers: int = 10
    num_seeds: int = 5
    num_steps: int = 1000
    batch_size: int = 32
    hidden: int = 32
    sign_rates: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1)
    gradient_rates: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0)
    count_rates: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0)
    scales: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3)
    median_rates: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0)
    median_scales: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3)
    chunk: int = 50


PRESETS = {
    "quick": Config(
        num_steps=300,
        sign_rates=(0.01, 0.03),
        gradient_rates=(0.3, 1.0),
        count_rates=(0.1, 0.3),
        scales=(0.03, 0.3),
        median_rates=(0.3, 1.0),
        median_scales=(0.03, 0.3),
    ),
    "mnist5k": Config(
        data="mnist5k",
        num_steps=3000,
        batch_size=64,
        hidden=128,
        sign_rates=(0.001, 0.003, 0.01),
        gradient_rates=(0.3, 1.0, 3.0),
        count_rates=(0.1, 0.3, 1.0),
        scales=(0.01, 0.03, 0.1),
        median_rates=(0.1, 0.3, 1.0),
        median_scales=(0.03, 0.1, 0.3, 1.0),
        chunk=100,
    ),
    "tiny": Config(
        methods=("EF-signSGD",),
        num_seeds=2,
        num_steps=2,
        hidden=4,
        sign_rates=(0.01,),
        gradient_rates=(0.3,),
        scales=(0.1,),
        chunk=1,
    ),
}


class Method(NamedTuple):
    """How to build a method, and what a worker sends.

    Attributes:
      build: ``(config, rate, noise_scale, key)`` -> optimizer.
      bits: that a worker sends up, a coordinate and step.
      rates: the field of the config with its learning rates.
      scales: the field with its noise scales; "" for a method without noise.
    """

    build: Callable[..., optax.GradientTransformation]
    bits: int
    rates: str
    scales: str = ""


def _noisy(rule: Any, law: str, coupling: str) -> Callable[..., Any]:
    def build(config: Config, rate: Any, scale: Any, key: Any) -> Any:
        return rule(rate, jm.noise.Noise(law, scale, coupling), key)

    return build


METHODS = {
    "mean": Method(lambda c, r, b, k: methods.mean(r), 32, "gradient_rates"),
    "vote": Method(lambda c, r, b, k: methods.vote(r), 1, "sign_rates"),
    "median": Method(lambda c, r, b, k: methods.median(r), 32, "gradient_rates"),
    "EF-signSGD": Method(
        lambda c, r, b, k: methods.ef_sign_sgd(r, c.num_workers), 1, "gradient_rates"
    ),
    "mean of noisy signs": Method(
        _noisy(methods.mean_of_noisy_signs, "gaussian", "independent"),
        1,
        "count_rates",
        "scales",
    ),
    "sto-sign, B = max|g|": Method(
        lambda c, r, b, k: methods.sto_sign(r, k), 1, "sign_rates"
    ),
    "Signum": Method(
        lambda c, r, b, k: methods.signum(r, c.num_workers), 1, "sign_rates"
    ),
    "Distributed Lion": Method(
        lambda c, r, b, k: methods.distributed_lion(r, c.num_workers), 1, "sign_rates"
    ),
    "vote, independent": Method(
        _noisy(jm.noisy_sign_sgd, "uniform", "independent"), 1, "sign_rates", "scales"
    ),
    "vote, systematic": Method(
        _noisy(jm.noisy_sign_sgd, "uniform", "systematic"), 1, "sign_rates", "scales"
    ),
    "median, independent": Method(
        _noisy(jm.noisy_median_sgd, "uniform", "independent"),
        32,
        "median_rates",
        "median_scales",
    ),
    "median, systematic": Method(
        _noisy(jm.noisy_median_sgd, "uniform", "systematic"),
        32,
        "median_rates",
        "median_scales",
    ),
}


def run(config: Config, checkpoints: Path | None = None) -> Result:
    """Trains every method in every setting; keeps its best.

    Args:
      config: what to train.
      checkpoints: folder that keeps what each method reached, and gives it back.
    """
    names = config.methods or tuple(METHODS)
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise ValueError(f"--methods takes some of {list(METHODS)}; got {unknown}.")
    problem = load_problem(config.data, config.hidden, config.num_seeds)
    split = jm.splits.by_label(np.asarray(problem.train["labels"]), config.num_workers)
    reached: dict[str, Chosen] = {}
    for name in names:
        print(f"{name} ({len(reached) + 1} of {len(names)})")
        train = functools.partial(_train, config, problem, split, METHODS[name])
        reached[name] = once(checkpoints, name, train).chosen()
    curves = {
        name: chosen.curve | {"bits": chosen.curve["step"] * METHODS[name].bits}
        for name, chosen in reached.items()
    }
    settings = {name: chosen.setting for name, chosen in reached.items()}
    return Result(curves, _claims(config, reached), {"chosen": settings})


def _train(
    config: Config, problem: Problem, split: jm.splits.Split, method: Method
) -> Runs:
    train = build_trainer(
        problem,
        _builder(config, method),
        batch_size=config.batch_size,
        num_steps=config.num_steps,
        chunk=config.chunk,
    )
    return train(_grid(config, method), split)


def _builder(config: Config, method: Method) -> Callable[..., Any]:
    def build(key: Any, rate: Any, scale: Any = None) -> optax.GradientTransformation:
        schedule = optax.cosine_decay_schedule(rate, config.num_steps)
        return method.build(config, schedule, scale, key)

    return build


def _grid(config: Config, method: Method) -> Settings:
    tuned = {"rate": getattr(config, method.rates)}
    if method.scales:
        tuned["scale"] = getattr(config, method.scales)
    return grid(**tuned)


def _claims(config: Config, reached: dict[str, Chosen]) -> tuple[Claim, ...]:
    claims = [
        Claim(
            f"{name}: last test accuracy, {METHODS[name].bits} bits a coordinate",
            "-",
            f"{report(chosen.last)} ({chosen.setting})",
            None,
        )
        for name, chosen in reached.items()
    ]
    claims += _behind_the_mean(config, reached)
    for name, other, least_steps in (
        ("vote, independent", "vote", 300),
        ("vote, systematic", "vote, independent", 1000),
        ("median, independent", "median", 300),
    ):
        if {name, other} <= set(reached):
            ahead, error = _difference(reached[name], reached[other])
            claims.append(
                Claim(
                    f"{name} is ahead of {other} (two standard errors)",
                    "-",
                    f"by {100 * ahead:.2f} +- {100 * error:.2f} points",
                    ahead > 2 * error if config.num_steps >= least_steps else None,
                )
            )
    return tuple(claims)


def _behind_the_mean(config: Config, reached: dict[str, Chosen]) -> list[Claim]:
    """States how far votes and medians are behind the mean.

    Medians are held to nothing: the goals were the votes', and they miss them.
    """
    claims = []
    judged = config.data == "mnist5k" and config.num_steps >= 3000
    for rule in ("vote", "median"):
        for coupling, points in (("systematic", 1), ("independent", 3)):
            name = f"{rule}, {coupling}"
            if not {"mean", name} <= set(reached):
                continue
            behind, error = _difference(reached["mean"], reached[name])
            close = behind <= points / 100 + 2 * error
            goal = f"{name}: within {points} points of the mean"
            claims.append(
                Claim(
                    f"{goal} on 5,000 digits in 3,000 steps (two standard errors)",
                    "-",
                    f"{100 * behind:.2f} +- {100 * error:.2f} points behind on "
                    f"{config.data} in {config.num_steps:,}",
                    close if judged and rule == "vote" else None,
                    "missed" if judged and not close else "",
                )
            )
    return claims


def _difference(one: Chosen, other: Chosen) -> tuple[float, float]:
    """Returns the mean of paired differences over seeds, and its standard error."""
    difference = one.last - other.last
    return float(difference.mean()), float(standard_error(difference))


def plot(result: Result) -> Figure:
    """Draws test accuracy with its band against steps and against bits."""
    figure, axes = panels(2)
    for ax, against in zip(axes, ("step", "bits"), strict=True):
        ax.set_prop_cycle(color=matplotlib.colormaps["tab20"](range(len(METHODS))))
        for name, curve in result.curves.items():
            draw_band(ax, curve, "test_accuracy", name, against)
        ax.set_ylim(0, 1)
    axes[1].set_xscale("log")
    axes[1].set_xlabel("bits a coordinate and worker")
    axes[0].set_title("test accuracy, one digit class a worker")
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside right upper")
    return figure
