"""How heterogeneous is too heterogeneous: accuracy of rules against two dials.

Claim: with iid workers every rule trains; as the workers' label mixtures part
(Dirichlet alpha down, similarity s down), the plain vote and median fall and the mean
does not; noise keeps the vote and the median up. Robust rules fall too, less after
bucketing, and centered clipping not at all. The figure gives each split's gradient
dissimilarity G (for B = 1) at the start of training, summary.json its label divergence.

    python -m experiments heterogeneity                   8x8 digits, 8 splits, 25 rules
    python -m experiments heterogeneity --preset quick    4 splits, fewer steps
    python -m experiments heterogeneity --preset mnist5k  28x28 digits
"""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import jaxmedian as jm
from experiments.common.harness.options import Whole, tiny
from experiments.common.harness.plots import draw_heatmap, heatmaps
from experiments.common.harness.results import Claim, Result, each_part
from experiments.common.training.outcomes import Chosen, report, within
from experiments.common.training.problems import Problem
from experiments.common.training.rules import (
    FAMILIES,
    TunedConfig,
    bucketed_rule,
    chosen_rules,
    noisy_rule,
)
from experiments.common.training.trainer import part_folder


@dataclasses.dataclass(frozen=True)
class Config(TunedConfig):
    """Settings of the comparison; every rule is tuned at every split.

    Attributes:
      alphas: of the Dirichlet splits.
      similarities: s of the similarity splits.
      f: hostile workers that robust rules are told to withstand; there are none.
    """

    alphas: tuple[float, ...] = (0.01, 0.1, 1.0, 100.0)
    similarities: tuple[float, ...] = (0.0, 0.1, 0.5, 1.0)
    f: Whole = 2

    def __post_init__(self) -> None:
        if not (self.alphas or self.similarities):
            raise ValueError("`alphas` or `similarities` must name a split.")
        if not all(alpha > 0 for alpha in self.alphas):
            raise ValueError(f"`alphas` must be above 0; got {self.alphas}.")


PRESETS = {
    "quick": Config(
        alphas=(0.01, 100.0),
        similarities=(0.0, 1.0),
        num_steps=300,
        vote_rates=(0.003, 0.01),
        mean_rates=(0.3, 1.0),
    ),
    "mnist5k": Config(
        data="mnist5k", num_steps=2000, batch_size=64, hidden=128, chunk=200
    ),
    "tiny": tiny(
        Config(), rules=("noisy vote, systematic",), alphas=(0.1,), similarities=(1.0,)
    ),
}


def run(config: Config, checkpoints: Path | None = None) -> Result:
    """Trains every rule on every split; keeps each one's best setting."""
    rules = chosen_rules(config.rules)
    problem = config.problem()
    splits = _splits(config, problem.labels_for(config.num_workers))
    measured = {name: _measure(problem, split) for name, split in splits.items()}

    def train(rule: str) -> dict[str, Chosen]:
        tune = config.tune(problem, rules[rule], config.f, config.batch_size)
        return {
            dial: tune(split, part_folder(checkpoints, f"{rule}, {dial}"))
            for dial, split in splits.items()
        }

    reached, partial = each_part(rules, train)
    found = {
        f"{rule} | {dial}": chosen
        for rule, row in reached.items()
        for dial, chosen in row.items()
    }
    return Result(
        {name: chosen.curve for name, chosen in found.items()},
        _claims(config, reached, measured),
        {
            "splits": measured,
            "figures": {f"G, {name}": found["G"] for name, found in measured.items()},
            "chosen": {name: chosen.setting for name, chosen in found.items()},
        },
        partial=partial,
        data=problem.description,
    )


def _splits(config: Config, labels: np.ndarray) -> dict[str, jm.splits.Split]:
    workers = config.num_workers
    return {
        f"alpha = {alpha:g}": jm.splits.dirichlet(labels, workers, alpha=alpha)
        for alpha in config.alphas
    } | {
        f"s = {s:g}": jm.splits.similarity(labels, workers, s=s)
        for s in config.similarities
    }


def _measure(problem: Problem, split: jm.splits.Split) -> dict[str, float]:
    """Measures a split, and what it does to the first seed's fresh network."""
    batch = {name: leaf[split.indices] for name, leaf in problem.train.items()}
    found = jm.diagnostics.gradient_dissimilarity(
        problem.model.loss,
        [problem.model.params],
        batch | {"weights": split.mask},
        worker_mask=jnp.asarray(split.sizes > 0),
    )
    divergence = split.label_divergence(np.asarray(problem.train["labels"]))
    return {"label divergence": divergence, "G": found.G}


def _claims(
    config: Config,
    reached: dict[str, dict[str, Chosen]],
    measured: dict[str, dict[str, float]],
) -> tuple[Claim, ...]:
    last = {
        rule: {name: chosen.last for name, chosen in row.items()}
        for rule, row in reached.items()
    }
    tables = [
        Claim(
            f"{rule}: last test accuracy",
            "; ".join(f"{name}: {report(accuracy)}" for name, accuracy in row.items()),
        )
        for rule, row in last.items()
    ]
    far = max(measured, key=lambda name: measured[name]["label divergence"])
    near = min(measured, key=lambda name: measured[name]["label divergence"])
    if near == far:
        return tuple(tables)  # one split: nothing falls from it to itself
    falls = {rule: row[near] - row[far] for rule, row in last.items()}
    judged = config.num_steps >= 300
    noise = [
        Claim(
            f"From {near} to {far} noise halves at least what the {rule} loses",
            f"{falls[rule].mean():.3f} without, {falls[noisy].mean():.3f} with "
            "systematic noise",
            bool(falls[noisy].mean() <= falls[rule].mean() / 2) if judged else None,
            paper="noise closes the gap",
        )
        for rule in ("vote", "median")
        if {rule, noisy := noisy_rule(rule, "systematic")} <= set(falls)
    ]
    buckets = [
        Claim(
            f"From {near} to {far} the {rule} loses no more after bucketing (two "
            "standard errors)",
            f"{report(falls[rule])} without, {report(falls[bucketed])} with it",
            _no_more(falls[bucketed] - falls[rule]) if judged else None,
        )
        for rule in FAMILIES
        if {rule, bucketed := bucketed_rule(rule)} <= set(falls)
    ]
    return (*tables, *noise, *buckets)


def _no_more(extra: np.ndarray) -> bool | None:
    """Judges whether what is lost beyond is at most 0; None if chance may say either.

    >>> _no_more(np.array([-0.2, -0.1])), _no_more(np.array([0.2, 0.1]))
    (True, False)
    >>> _no_more(np.array([0.2, -0.2]))
    """
    if within(extra, 0.0):
        return True
    return False if within(-extra, 0.0) else None


def plot(result: Result) -> Figure:
    """Draws the last test accuracy of every rule at every split."""
    splits = result.extra["splits"]
    rules = list(dict.fromkeys(name.split(" | ")[0] for name in result.curves))
    accuracy = [
        [result.curves[f"{rule} | {name}"]["test_accuracy"][-1] for name in splits]
        for rule in rules
    ]
    figure, axes = heatmaps(1, 1, len(rules), len(splits))
    labels = [f"{name}\nG = {found['G']:.2g}" for name, found in splits.items()]
    draw_heatmap(axes[0], np.array(accuracy), rules, labels)
    axes[0].set_title("test accuracy, each rule at its best setting")
    return figure
