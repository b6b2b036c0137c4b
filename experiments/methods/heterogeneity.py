"""How heterogeneous is too heterogeneous: accuracy of rules against two dials.

Claim: with iid workers every rule trains; as the workers' label mixtures part
(Dirichlet alpha down, similarity s down), the plain vote and median fall and the mean
does not; noise keeps the vote and the median up. Robust rules fall too, less after
bucketing, and centered clipping not at all. The figure gives each split's gradient
dissimilarity G (for B = 1) at the start of training, summary.json its label divergence.

    python -m experiments heterogeneity                   8x8 digits, 8 splits, 25 rules
    python -m experiments heterogeneity --preset quick    4 splits, fewer steps
    python -m experiments heterogeneity --preset mnist5k  28x28 digits

Expect (default, 5 seeds, each rule at its best on validation digits): .95 to .97
for every rule of the paper at alpha >= 1 and s >= 0.5. Below, in test accuracy:

    split         G     mean   vote, noisy, systematic   median, noisy, systematic
    alpha = 0.1   1.85  .961   .776  .946   .957         .693    .938   .956
    alpha = 0.01  2.26  .968   .597  .903   .923         .505    .925   .947
    s = 0.1       2.23  .966   .872  .957   .963         .799    .937   .960
    s = 0         2.49  .966   .354  .935   .954         .442    .906   .907

with standard errors up to .009 for the noisy votes, .014 for the noisy medians and .034
for the plain rules. Robust rules, told f = 2, in the quick preset, each as it is and
after bucketing (standard errors up to .035):

    split         trimmed mean  around median  geom. median  Krum        multi-Krum
    alpha = 0.01  .669  .691    .363  .515     .783  .939    .354  .662  .800  .778
    s = 0         .705  .788    .373  .699     .927  .957    .224  .683  .810  .828

and centered clipping .963 or more, at the larger radius, where it is all but the mean.
At alpha = 100 and s = 1 all of them reach .946 or more. The default takes ten
minutes of CPU, a quarter of it for the rules of the paper.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import jaxmedian as jm
from experiments.common.harness.claims import Claim
from experiments.common.harness.plots import draw_heatmap, heatmaps
from experiments.common.harness.results import Result
from experiments.common.training.rules import (
    FAMILIES,
    bucketed_rule,
    build_rule,
    chosen_rules,
    noisy_rule,
    rule_grid,
)
from experiments.common.training.trainer import (
    Chosen,
    Problem,
    build_trainer,
    load_problem,
    report,
    standard_error,
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the comparison; every rule is tuned at every split.

    Attributes:
      rules: names of the rules to compare; by default all, but for noise before rules
        that look at distances.
      data: "digits8x8", "mnist5k", "mnist" or "fashion_mnist".
      alphas: of the Dirichlet splits.
      similarities: s of the similarity splits.
      num_workers: M.
      f: hostile workers that robust rules are told to withstand; there are none.
      num_seeds: runs of each setting.
      num_steps: steps of every run; the learning rate falls to 0 by a cosine.
      batch_size: samples a worker and step.
      hidden: units of the hidden layer.
      vote_rates: learning rates that votes choose from.
      mean_rates: learning rates that mean and medians choose from.
      scales: b that noisy rules choose from.
      radii: that centered clipping chooses from, in norms of a gradient.
      chunk: steps between two measurements.
    """

    rules: tuple[str, ...] = ()
    data: str = "digits8x8"
    alphas: tuple[float, ...] = (0.01, 0.1, 1.0, 100.0)
    similarities: tuple[float, ...] = (0.0, 0.1, 0.5, 1.0)
    num_workers: int = 10
    f: int = 2
    num_seeds: int = 5
    num_steps: int = 500
    batch_size: int = 32
    hidden: int = 32
    vote_rates: tuple[float, ...] = (0.003, 0.01, 0.03)
    mean_rates: tuple[float, ...] = (0.1, 0.3, 1.0)
    scales: tuple[float, ...] = (0.03, 0.1)
    radii: tuple[float, ...] = (0.3, 3.0)
    chunk: int = 100


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
    "tiny": Config(
        rules=("noisy vote, systematic",),
        alphas=(0.1,),
        similarities=(1.0,),
        num_seeds=2,
        num_steps=2,
        hidden=4,
        vote_rates=(0.01,),
        mean_rates=(0.3,),
        scales=(0.1,),
        chunk=1,
    ),
}


def run(config: Config) -> Result:
    """Trains every rule on every split; keeps each one's best setting."""
    rules = chosen_rules(config.rules)
    problem = load_problem(config.data, config.hidden, config.num_seeds)
    labels = np.asarray(problem.train["labels"])
    splits = _splits(config, labels)
    measured = {name: _measure(problem, split) for name, split in splits.items()}
    reached: dict[str, dict[str, Chosen]] = {}
    for name, rule in rules.items():
        print(f"{name} ({len(reached) + 1} of {len(rules)})")
        train = build_trainer(
            problem,
            build_rule(rule, config.num_steps, config.num_workers, config.f),
            batch_size=config.batch_size,
            num_steps=config.num_steps,
            chunk=config.chunk,
        )
        settings = rule_grid(
            rule, config.vote_rates, config.mean_rates, config.scales, config.radii
        )
        reached[name] = {
            dial: train(settings, split).chosen() for dial, split in splits.items()
        }
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
            "chosen": {name: chosen.setting for name, chosen in found.items()},
        },
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
            "-",
            "; ".join(f"{name}: {report(accuracy)}" for name, accuracy in row.items()),
            None,
        )
        for rule, row in last.items()
    ]
    far = max(measured, key=lambda name: measured[name]["label divergence"])
    near = min(measured, key=lambda name: measured[name]["label divergence"])
    falls = {rule: row[near] - row[far] for rule, row in last.items()}
    judged = config.num_steps >= 300
    noise = [
        Claim(
            f"From {near} to {far} noise halves at least what the {rule} loses",
            "noise closes the gap",
            f"{falls[rule].mean():.3f} without, {falls[noisy].mean():.3f} with "
            "systematic noise",
            bool(falls[noisy].mean() <= falls[rule].mean() / 2) if judged else None,
        )
        for rule in ("vote", "median")
        if {rule, noisy := noisy_rule(rule, "systematic")} <= set(falls)
    ]
    buckets = [
        Claim(
            f"From {near} to {far} the {rule} loses no more after bucketing (two "
            "standard errors)",
            "-",
            f"{report(falls[rule])} without, {report(falls[bucketed])} with it",
            _no_larger(falls[bucketed], falls[rule]) if judged else None,
        )
        for rule in FAMILIES
        if {rule, bucketed := bucketed_rule(rule)} <= set(falls)
    ]
    return (*tables, *noise, *buckets)


def _no_larger(one: np.ndarray, other: np.ndarray) -> bool:
    """Compares paired samples ``[S]``."""
    excess = one - other
    return bool(excess.mean() <= 2 * standard_error(excess))


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
