"""Votes, medians and their neighbours on one problem: accuracy against steps and bits.

Claim: where every worker holds one digit class, votes without noise fail, with momentum
(Signum, Distributed Lion) too; noise makes one bit a coordinate and worker enough, and
systematic noise more so. Every method has the same data, steps, seeds and number of
settings (rates, or half as many and two scales of noise), and takes its best on
validation digits, over all seeds. A seed splits the digits anew into training,
validation and test ones, so that errors, paired with the mean's, are of seeds and of
test digits both. Bits are those that a worker sends up.

    python -m experiments neighbours                   8x8 digits
    python -m experiments neighbours --preset quick    fewer steps and settings
    python -m experiments neighbours --preset mnist5k  28x28 digits

One b serves coordinates of all sizes: a vote bounds what its noise does to a small one,
a median takes the step.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import optax
from matplotlib.figure import Figure

import jaxmedian as jm
from experiments.common.harness.options import Count, tiny
from experiments.common.harness.plots import draw_band, panels
from experiments.common.harness.results import Claim, Result, each_part
from experiments.common.training.outcomes import (
    Chosen,
    Runs,
    claim_ahead,
    grid,
    report,
    standard_error,
    verdict,
)
from experiments.common.training.problems import TrainingConfig
from experiments.common.training.trainer import build_trainer, part_folder
from experiments.methods.neighbours import sign_methods


@dataclasses.dataclass(frozen=True)
class Config(TrainingConfig):
    """Settings of the comparison; workers hold exclusive classes.

    Attributes:
      methods: names of the methods to run; all by default.
      num_steps: steps of every run; the learning rate falls to 0 by a cosine.
      sign_rates: learning rates of votes without noise.
      gradient_rates: learning rates of what approximates a gradient.
      noisy_sign_rates: learning rates of noisy votes.
      noisy_gradient_rates: learning rates of noisy medians.
      noisy_count_rates: learning rates of the mean of noisy signs.
      scales: b of noisy votes and signs.
      median_scales: b of noisy medians.
      factors: of a scale for every coordinate, of votes and medians.
    """

    num_steps: Count = 1000
    chunk: Count = 50
    methods: tuple[str, ...] = ()
    sign_rates: tuple[float, ...] = (0.003, 0.005, 0.01, 0.02, 0.03, 0.1)
    gradient_rates: tuple[float, ...] = (0.1, 0.3, 0.5, 1.0, 2.0, 3.0)
    noisy_sign_rates: tuple[float, ...] = (0.01, 0.03, 0.1)
    noisy_gradient_rates: tuple[float, ...] = (0.3, 1.0, 3.0)
    noisy_count_rates: tuple[float, ...] = (0.1, 0.3, 1.0)
    scales: tuple[float, ...] = (0.03, 0.1)
    median_scales: tuple[float, ...] = (0.1, 0.3)
    factors: tuple[float, ...] = (1.0, 2.0)


PRESETS = {
    "quick": Config(
        num_steps=300,
        sign_rates=(0.01, 0.03),
        gradient_rates=(0.3, 1.0),
        noisy_sign_rates=(0.03,),
        noisy_gradient_rates=(1.0,),
        noisy_count_rates=(0.3,),
    ),
    "mnist5k": Config(
        data="mnist5k",
        num_steps=3000,
        batch_size=64,
        hidden=128,
        sign_rates=(0.001, 0.003, 0.005, 0.01),
        gradient_rates=(0.3, 0.5, 1.0, 2.0),
        noisy_sign_rates=(0.003, 0.01),
        noisy_gradient_rates=(0.3, 1.0),
        noisy_count_rates=(0.3, 1.0),
        scales=(0.01, 0.03),
        chunk=100,
    ),
    "tiny": tiny(Config(), methods=("EF-signSGD",)),
}


class Method(NamedTuple):
    """How to build a method, and what a worker sends.

    Attributes:
      build: ``(config, rate, noise_scale, key)`` -> optimizer.
      bits: that a worker sends up, per coordinate and step.
      rates: the field of the config with its learning rates.
      scales: the field with its noise scales; "" for a method without noise.
    """

    build: Callable[..., optax.GradientTransformation]
    bits: float
    rates: str
    scales: str = ""


def _noisy(rule: Any, law: str, coupling: jm.noise.Coupling) -> Callable[..., Any]:
    def build(config: Config, rate: Any, scale: Any, key: Any) -> Any:
        return rule(rate, jm.noise.Noise(law, scale, coupling), key)

    return build


def _per_coordinate(
    rule: Any, statistic: jm.noise.CoordinateStatistic, coupling: jm.noise.Coupling
) -> Callable[..., Any]:
    """Builds a rule whose b in each coordinate is a factor times a statistic."""
    every = EVERY if statistic == "rms" else 1

    def build(config: Config, rate: Any, factor: Any, key: Any) -> Any:
        scale = jm.noise.per_coordinate(factor, statistic, every=every)
        return rule(rate, jm.noise.uniform(scale, coupling), key)

    return build


def _noisy_lion(config: Config, rate: Any, factor: Any, key: Any) -> Any:
    scale = jm.noise.per_coordinate(factor, "rms", every=EVERY)
    return jm.distributed_lion(
        rate,
        num_workers=config.num_workers,
        noise=jm.noise.uniform(scale, "systematic"),
        key=key,
    )


def _ef21(config: Config, rate: Any, scale: Any, key: Any) -> Any:
    return optax.chain(jm.ef21_sign(config.num_workers), sign_methods.mean(rate))


EVERY = 50  # steps from one running mean of squares that is sent to the next
_SQUARES = 1 + 32 / EVERY  # bits of a vote whose scale follows them
_SIGNS, _GRADIENTS = (1, "sign_rates"), (32, "gradient_rates")
METHODS = {
    "mean": Method(lambda c, r, b, k: sign_methods.mean(r), *_GRADIENTS),
    "vote": Method(lambda c, r, b, k: jm.sign_sgd(r), *_SIGNS),
    "median": Method(lambda c, r, b, k: jm.median_sgd(r), *_GRADIENTS),
    "EF-signSGD": Method(
        lambda c, r, b, k: sign_methods.ef_sign_sgd(r, c.num_workers),
        1,
        "gradient_rates",
    ),
    "mean of noisy signs": Method(
        _noisy(sign_methods.mean_of_noisy_signs, "gaussian", "independent"),
        *(1, "noisy_count_rates", "scales"),
    ),
    "sto-sign, B = max|g|": Method(
        lambda c, r, b, k: sign_methods.sto_sign(r, k), *_SIGNS
    ),
    "Signum": Method(
        lambda c, r, b, k: jm.signum(r, num_workers=c.num_workers), *_SIGNS
    ),
    "Distributed Lion": Method(
        lambda c, r, b, k: jm.distributed_lion(r, num_workers=c.num_workers), *_SIGNS
    ),
    **{
        f"vote, {coupling}": Method(
            _noisy(jm.noisy_sign_sgd, "uniform", coupling),
            *(1, "noisy_sign_rates", "scales"),
        )
        for coupling in jm.noise.COUPLINGS
    },
    **{
        f"median, {coupling}": Method(
            _noisy(jm.noisy_median_sgd, "uniform", coupling),
            *(32, "noisy_gradient_rates", "median_scales"),
        )
        for coupling in jm.noise.COUPLINGS
    },
    **{
        f"vote, {coupling}, per coordinate": Method(
            _per_coordinate(jm.noisy_sign_sgd, "rms", coupling),
            *(_SQUARES, "noisy_sign_rates", "factors"),
        )
        for coupling in jm.noise.COUPLINGS
    },
    **{
        f"median, {coupling}, per coordinate": Method(
            _per_coordinate(jm.noisy_median_sgd, "sd", coupling),
            *(32, "noisy_gradient_rates", "factors"),
        )
        for coupling in jm.noise.COUPLINGS
    },
    "median, unbiased": Method(
        lambda c, r, b, k: jm.noisy_median_sgd(r, jm.noise.unbiased(), k), *_GRADIENTS
    ),
    "noisy Lion, per coordinate": Method(
        _noisy_lion, _SQUARES, "noisy_sign_rates", "factors"
    ),
    "EF21-sign": Method(_ef21, 1, "gradient_rates"),
}


def run(config: Config, checkpoints: Path | None = None) -> Result:
    """Trains every method in every setting; keeps its best."""
    names = config.methods or tuple(METHODS)
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise ValueError(f"--methods takes some of {list(METHODS)}; got {unknown}.")
    problems = [config.problem_of(seed) for seed in range(config.num_seeds)]

    def train(name: str) -> Chosen:
        method = METHODS[name]

        def build(
            key: Any, rate: Any, scale: Any = None
        ) -> optax.GradientTransformation:
            schedule = optax.cosine_decay_schedule(rate, config.num_steps)
            return method.build(config, schedule, scale, key)

        trainer = build_trainer(problems[0], build, **config.schedule())
        tuned = {"rate": getattr(config, method.rates)}
        if method.scales:
            tuned["scale"] = getattr(config, method.scales)
        folders = [
            part_folder(checkpoints, f"{name}, seed {seed}")
            for seed in range(config.num_seeds)
        ]
        runs = [
            trainer(grid(**tuned), on.split_by_label(config.num_workers), folder, on=on)
            for on, folder in zip(problems, folders, strict=True)
        ]
        return Runs.of_all(runs).chosen()

    reached, partial = each_part(names, train)
    curves = {
        name: chosen.curve | {"bits": chosen.curve["step"] * METHODS[name].bits}
        for name, chosen in reached.items()
    }
    settings = {name: chosen.setting for name, chosen in reached.items()}
    behind = _points_behind(reached)
    figures = {
        f"{name}, behind": (float(points.mean()), float(standard_error(points)))
        for name, points in behind.items()
    }
    claims = _claims(config, reached, behind)
    extra = {"chosen": settings, "figures": figures}
    data = problems[0].description
    return Result(curves, claims, extra, "step", partial, data)


def _claims(
    config: Config,
    reached: dict[str, Chosen],
    behind: dict[str, np.ndarray],
) -> tuple[Claim, ...]:
    claims = [
        Claim(
            f"{name}: last test accuracy, {METHODS[name].bits:g} bits a coordinate",
            f"{report(chosen.last)} ({chosen.setting})",
        )
        for name, chosen in reached.items()
    ]
    claims += _behind_the_mean(config, behind)
    for name, other, least_steps in (
        ("vote, independent", "vote", 300),
        ("vote, systematic", "vote, independent", 1000),
        ("median, independent", "median", 300),
    ):
        if {name, other} <= set(reached):
            claims.append(
                claim_ahead(
                    f"{name} is ahead of {other}",
                    reached[name].last,
                    reached[other].last,
                    config.num_steps >= least_steps,
                )
            )
    return tuple(claims)


def _behind_the_mean(config: Config, found: dict[str, np.ndarray]) -> list[Claim]:
    """States how far votes and medians are behind the mean, in points a seed.

    Medians with one b are held to nothing: the goals were the votes', and they miss.
    """
    claims = []
    judged = config.data == "mnist5k" and config.num_steps >= 3000
    for name, behind in found.items():
        goal = GOALS[name]
        close = None
        if judged:
            close = verdict(behind - goal, lambda x, error: x <= 2 * error)
        claims.append(
            Claim(
                f"{name}: within {goal:g} points of the mean on 5,000 digits in 3,000 "
                "steps (two standard errors)",
                f"{report(behind, 2)} points behind on {config.data} in "
                f"{config.num_steps:,}",
                None if name in ONE_SCALE_MEDIANS else close,
                reason="missed" if close is False else "",
            )
        )
    return claims


def _points_behind(reached: dict[str, Chosen]) -> dict[str, np.ndarray]:
    """Returns by how much those with a goal are behind the mean, ``[S]``."""
    if "mean" not in reached:
        return {}
    return {
        name: 100 * (reached["mean"].last - reached[name].last)
        for name in GOALS
        if name in reached
    }


ONE_SCALE_MEDIANS = [f"median, {coupling}" for coupling in jm.noise.COUPLINGS]

# Points behind the mean.
GOALS = {
    f"{rule}, {coupling}{of_each}": points
    for of_each, by_coupling in (
        ("", {"systematic": 1.0, "independent": 3.0}),
        (", per coordinate", {"systematic": 0.5, "independent": 1.5}),
    )
    for rule in ("vote", "median")
    for coupling, points in by_coupling.items()
} | {"median, unbiased": 1.0}


def plot(result: Result) -> Figure:
    """Draws test accuracy with its band against steps and against bits."""
    figure, axes = panels(2)
    for ax, against in zip(axes, ("step", "bits"), strict=True):
        ax.set_prop_cycle(color=matplotlib.colormaps["tab20"](range(len(METHODS))))
        for name, curve in result.curves.items():
            draw_band(ax, curve, "test_accuracy", name, against)
        ax.set_ylim(0, 1)
    axes[1].set(xscale="log", xlabel="bits a coordinate and worker")
    axes[0].set_title("test accuracy, one digit class a worker")
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside right upper")
    return figure
