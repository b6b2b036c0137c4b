"""The median loses the mean on a long tail: buckets bring it back, and so does noise.

The setting of Karimireddy, He and Jaggi, "Byzantine-Robust Learning on Heterogeneous
Datasets via Bucketing", ICLR 2022, where nobody is hostile: class i keeps a share of
0.5^i of its digits, which are sorted by label and cut into 24 equal blocks, one a
worker. Claim: the median loses what the mean learns, the median after bucketing (by
twos) gets most of it back, and so does noise.

    python -m experiments bucketing_reference                   8x8 digits
    python -m experiments bucketing_reference --preset quick    medians, fewer steps
    python -m experiments bucketing_reference --preset mnist5k  28x28 digits

Differs from theirs in: 250 digits to train on (mnist5k: 700) in place of 12,000, a
fully connected network in place of a CNN, steps (tuned on validation digits, falling by
a cosine) and their number. Test digits are weighted by 0.5^i in place of left out: the
same expectation, and all of them count. Compare order and gaps, not the digits.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import jaxmedian as jm
from experiments.common.harness.options import Amounts, Count, tiny
from experiments.common.harness.plots import draw_band, panels
from experiments.common.harness.results import Claim, Result, each_part
from experiments.common.training.outcomes import Chosen, claim_ahead, report
from experiments.common.training.problems import Problem
from experiments.common.training.rules import TunedConfig, chosen_rules
from experiments.common.training.trainer import part_folder

# Test accuracy in percent: mean, median, median after buckets of 2 (PAPER: 3 seeds).
THEIRS = {"mean": 98.75, "median": 80.36, "median after bucketing": 95.59}


@dataclasses.dataclass(frozen=True)
class Config(TunedConfig):
    """Settings of the comparison.

    Attributes:
      rules: names of the rules; those of the reference, noisy medians and votes by
        default.
      tail: class i keeps a share tail^i of its digits.
    """

    num_workers: Count = 24
    rules: tuple[str, ...] = (
        *("mean", "median", "median after bucketing"),
        *("noisy median", "noisy median, systematic"),
        *("vote", "vote after bucketing", "noisy vote", "noisy vote, systematic"),
    )
    mean_rates: Amounts = (0.03, 0.1, 0.3, 1.0)
    tail: float = 0.5

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
    "tiny": tiny(Config(), rules=("median after bucketing",)),
}


def run(config: Config, checkpoints: Path | None = None) -> Result:
    """Trains every rule on the long tail; keeps each one's best setting."""
    rules = chosen_rules(config.rules)
    problem = _with_long_tails(config.problem(), config.tail)
    labels = problem.labels_for(config.num_workers)
    split = sorted_tail(labels, config.tail, config.num_workers)

    def train(name: str) -> Chosen:
        tune = config.tune(problem, rules[name], 0, config.batch_size)
        return tune(split, part_folder(checkpoints, name))

    reached, partial = each_part(rules, train)
    return Result(
        {name: chosen.curve for name, chosen in reached.items()},
        _claims(config, reached),
        {
            "chosen": {name: chosen.setting for name, chosen in reached.items()},
            "digits of a worker": split.sizes.tolist(),
        },
        partial=partial,
        data=problem.description,
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
            f"{report(last[name])} ({chosen.setting})",
            paper=(f"{THEIRS[name]} (other data)" if name in THEIRS else "-"),
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
            theirs = "-"
            if {better, worse} <= set(THEIRS):
                theirs = f"by {THEIRS[better] - THEIRS[worse]:.2f} points"
            claims.append(
                claim_ahead(
                    f"The {better} is ahead of the {worse}",
                    reached[better].last,
                    reached[worse].last,
                    judged,
                    theirs,
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
