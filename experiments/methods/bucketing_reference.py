"""The median loses the mean on a long tail: buckets bring it back, and so does noise.

The setting of Karimireddy, He and Jaggi, "Byzantine-Robust Learning on Heterogeneous
Datasets via Bucketing", ICLR 2022, where nobody is hostile: class i keeps a share of
0.5^i of its digits, which are sorted by label and cut into 24 equal blocks, one a
worker. Claim: the median loses what the mean learns, the median after bucketing (by
twos) gets most of it back, and so does noise.

    python -m experiments bucketing_reference                   8x8 digits
    python -m experiments bucketing_reference --preset quick    medians, fewer steps
    python -m experiments bucketing_reference --preset mnist5k  28x28 digits

Expect (default, 5 seeds), test accuracy in percent, theirs in brackets: mean 97.0 +- .1
(98.75), median 74.7 +- .2 (80.36), after bucketing 86.5 +- .7 (95.59), with noise
96.0 +- .3, systematic 96.9 +- .1; vote 74.7 +- .2, after bucketing 80.5 +- 1.5, with
noise 96.2 +- .4, systematic 97.2 +- .1. The same order, and a gap of the same size;
buckets close half of it here (83 % there), systematic noise all. Two minutes of CPU.

Differs from theirs in: 250 digits to train on (mnist5k: 700) in place of 12,000, a
fully connected network in place of a CNN, steps (tuned on validation digits, falling by
a cosine) and their number. Test digits are weighted by 0.5^i in place of left out: the
same expectation, and all of them count. Compare order and gaps, not the digits.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import jaxmedian as jm
from experiments.common.harness.claims import Claim
from experiments.common.harness.plots import draw_band, panels
from experiments.common.harness.results import Result
from experiments.common.training.rules import build_rule, chosen_rules, rule_grid
from experiments.common.training.trainer import (
    Chosen,
    Problem,
    build_trainer,
    load_problem,
    report,
    standard_error,
)

# Test accuracy in percent: mean, median, median after buckets of 2 (PAPER: 3 seeds).
THEIRS = {"mean": 98.75, "median": 80.36, "median after bucketing": 95.59}


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the comparison.

    Attributes:
      rules: names of the rules; those of the reference, noisy medians and votes by
        default.
      data: "digits8x8", "mnist5k", "mnist" or "fashion_mnist".
      tail: class i keeps a share tail^i of its digits.
      num_workers: M.
      num_seeds: runs of each setting.
      num_steps: steps of every run; the learning rate falls to 0 by a cosine.
      batch_size: samples a worker and step.
      hidden: units of the hidden layer.
      vote_rates: learning rates that votes choose from.
      mean_rates: learning rates that mean and medians choose from.
      scales: b that noisy rules choose from.
      chunk: steps between two measurements.
    """

    rules: tuple[str, ...] = (
        *("mean", "median", "median after bucketing"),
        *("noisy median", "noisy median, systematic"),
        *("vote", "vote after bucketing", "noisy vote", "noisy vote, systematic"),
    )
    data: str = "digits8x8"
    tail: float = 0.5
    num_workers: int = 24
    num_seeds: int = 5
    num_steps: int = 500
    batch_size: int = 32
    hidden: int = 32
    vote_rates: tuple[float, ...] = (0.003, 0.01, 0.03)
    mean_rates: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0)
    scales: tuple[float, ...] = (0.03, 0.1)
    chunk: int = 100

    def __post_init__(self) -> None:
        if not 0 < self.tail <= 1:
            raise ValueError(f"`tail` must be above 0 and at most 1; got {self.tail}.")


PRESETS = {
    "quick": Config(
        rules=("mean", "median", "median after bucketing", "noisy median"),
        num_steps=300,
        mean_rates=(0.1, 0.3),
    ),
    "mnist5k": Config(data="mnist5k", num_steps=1000),
    "tiny": Config(
        rules=("median after bucketing",),
        num_seeds=2,
        num_steps=2,
        hidden=4,
        mean_rates=(0.1,),
        chunk=1,
    ),
}


def run(config: Config) -> Result:
    """Trains every rule on the long tail; keeps each one's best setting."""
    rules = chosen_rules(config.rules)
    problem = load_problem(config.data, config.hidden, config.num_seeds)
    problem = _with_long_tails(problem, config.tail)
    split = sorted_tail(
        np.asarray(problem.train["labels"]), config.tail, config.num_workers
    )
    reached: dict[str, Chosen] = {}
    for name, rule in rules.items():
        print(f"{name} ({len(reached) + 1} of {len(rules)})")
        train = build_trainer(
            problem,
            build_rule(rule, config.num_steps, config.num_workers, f=0),
            batch_size=config.batch_size,
            num_steps=config.num_steps,
            chunk=config.chunk,
        )
        settings = rule_grid(rule, config.vote_rates, config.mean_rates, config.scales)
        reached[name] = train(settings, split).chosen()
    return Result(
        {name: chosen.curve for name, chosen in reached.items()},
        _claims(config, reached),
        {
            "chosen": {name: chosen.setting for name, chosen in reached.items()},
            "digits of a worker": split.sizes.tolist(),
        },
    )


def sorted_tail(labels: np.ndarray, tail: float, num_workers: int) -> jm.splits.Split:
    """Keeps a share tail^i of class i, sorts by label, and cuts equal blocks.

    >>> labels = np.repeat(np.arange(3), 8)
    >>> split = sorted_tail(labels, 0.5, 2)
    >>> [np.bincount(labels[row]).tolist() for row in split.order.reshape(2, 7)]
    [[7], [1, 4, 2]]
    """
    kept = np.concatenate(
        [
            members[: round(len(members) * tail**i)]
            for i, members in enumerate(
                np.flatnonzero(labels == label) for label in np.unique(labels)
            )
        ]
    )
    blocks = jm.splits.similarity(labels[kept], num_workers, s=0.0)
    return jm.splits.Split(kept[blocks.order], blocks.offsets)


def _with_long_tails(problem: Problem, tail: float) -> Problem:
    """Weights validation and test digits as a long tail has them."""

    def weighted(part: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return part | {"weights": jnp.float32(tail) ** part["labels"]}

    return problem._replace(
        validation=weighted(problem.validation), test=weighted(problem.test)
    )


def _claims(config: Config, reached: dict[str, Chosen]) -> tuple[Claim, ...]:
    judged = config.num_steps >= 300
    last = {name: 100 * chosen.last for name, chosen in reached.items()}
    claims = [
        Claim(
            f"{name}: test accuracy on the long tail, percent",
            f"{THEIRS[name]} (other data)" if name in THEIRS else "-",
            f"{report(last[name])} ({chosen.setting})",
            None,
        )
        for name, chosen in reached.items()
    ]
    for better, worse in (
        ("mean", "median after bucketing"),
        ("median after bucketing", "median"),
        ("noisy median", "median"),
        ("noisy median, systematic", "median after bucketing"),
        ("noisy vote, systematic", "vote after bucketing"),
    ):
        if {better, worse} <= set(last):
            ahead = last[better] - last[worse]
            error = standard_error(ahead)
            theirs = "-"
            if {better, worse} <= set(THEIRS):
                theirs = f"by {THEIRS[better] - THEIRS[worse]:.2f} points"
            claims.append(
                Claim(
                    f"The {better} is ahead of the {worse} (two standard errors)",
                    theirs,
                    f"by {ahead.mean():.2f} +- {error:.2f} points",
                    bool(ahead.mean() > 2 * error) if judged else None,
                )
            )
    return tuple(claims)


def plot(result: Result) -> Figure:
    """Draws test accuracy with its band against steps, medians beside votes."""
    figure, axes = panels(2)
    for name, curve in result.curves.items():
        for ax, family in zip(axes, ("median", "vote"), strict=True):
            if family in name or name == "mean":
                draw_band(ax, curve, "test_accuracy", name)
    for ax in axes:
        ax.set_ylim(0, 1)
        if ax.lines:
            ax.legend(fontsize=7)
    axes[0].set_title("test accuracy on the long tail")
    return figure
