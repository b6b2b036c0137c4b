"""How much noise: accuracy against b over seeds, all runs in one compiled program.

Claim: a whole training run is one function, so a sweep over noise scales and seeds is a
`jax.vmap` of it: one compile, and every curve has its band. On scikit-learn's 8x8
digits, one class a worker, the vote needs b near the spread of the workers' gradients:
less does not close the gap, more drowns the signal, so that the best b is neither the
smallest nor the largest.

    python -m experiments sweep
"""

import dataclasses
import math
import time
from typing import Any

import optax
from matplotlib.figure import Figure

import jaxmedian as jm
from experiments.common.harness.options import Count, tiny
from experiments.common.harness.plots import panels
from experiments.common.harness.results import Claim, Result
from experiments.common.training.outcomes import Runs, grid, report
from experiments.common.training.problems import TrainingConfig
from experiments.common.training.trainer import build_trainer


@dataclasses.dataclass(frozen=True)
class Config(TrainingConfig):
    """Settings of the sweep; each worker holds digits of one class.

    Attributes:
      scales: b, in units of the gradient; 0 is the vote without noise.
      law: law of the noise.
      coupling: "independent" or "systematic".
      learning_rate: delta of the vote.
    """

    chunk: Count = 50
    scales: tuple[float, ...] = (0.0, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0)
    law: str = "gaussian"
    coupling: jm.noise.Coupling = "independent"
    learning_rate: float = 3e-3

    def __post_init__(self) -> None:
        if not self.scales or not all(0 <= b < math.inf for b in self.scales):
            raise ValueError(
                "`scales` must be finite and >= 0, and one at least; got "
                f"{self.scales}."
            )
        jm.noise.Noise(self.law, 1.0)  # says which laws there are


PRESETS = {
    "quick": Config(num_seeds=2, num_steps=300),
    "tiny": tiny(Config(), scales=(0.0, 0.03)),
}


def run(config: Config) -> Result:
    """Trains every scale and seed at once."""
    problem = config.problem()

    def build(key: Any, scale: Any) -> optax.GradientTransformation:
        noise = jm.noise.Noise(config.law, scale, config.coupling)
        return jm.noisy_sign_sgd(config.learning_rate, noise, key)

    start = time.perf_counter()
    train = build_trainer(problem, build, **config.schedule())
    runs = train(grid(scale=config.scales), problem.split_by_label(config.num_workers))
    seconds = time.perf_counter() - start
    curves = {f"b = {b:g}": runs.curve(i) for i, b in enumerate(config.scales)}
    claims = _claims(config, runs, seconds)
    extra = {"figures": {"runs": len(config.scales) * config.num_seeds}}
    return Result(curves, claims, extra, data=problem.description)


def _claims(config: Config, runs: Runs, seconds: float) -> tuple[Claim, ...]:
    best = runs.best()
    means = runs.metrics["test_accuracy"][:, :, -1].mean(axis=1)
    judged = config.num_steps >= 300 and config.data == Config.data
    scales = config.scales
    inside = min(scales) < scales[best] < max(scales)
    claims = [
        Claim(
            "One vmapped program trains every scale and seed",
            f"{means.size * config.num_seeds} runs compiled and trained in "
            f"{seconds:.0f} s",
        )
    ]
    if 0 in scales:
        plain = scales.index(0)
        claims.append(
            Claim(
                "Without noise the vote stays below .4 test accuracy",
                f"{report(runs.last(plain))} at b = 0",
                bool(means[plain] < 0.4) if judged else None,
                paper="stalls (on MNIST)",
            )
        )
    several = len(set(scales)) > 2
    claims.append(
        Claim(
            "The best b is above .8, and neither the smallest nor the largest",
            f"{report(runs.last(best))} at b = {scales[best]:g}",
            bool(means[best] > 0.8 and inside) if judged and several else None,
        )
    )
    return tuple(claims)


def plot(result: Result) -> Figure:
    """Draws the final test accuracy against b with its standard error over seeds."""
    figure, (axes,) = panels(1)
    scales = [name.removeprefix("b = ") for name in result.curves]
    accuracy = [curve["test_accuracy"][-1] for curve in result.curves.values()]
    error = [curve["test_accuracy_error"][-1] for curve in result.curves.values()]
    axes.errorbar(range(len(scales)), accuracy, error, marker="o", capsize=3)
    axes.set_xticks(range(len(scales)), scales)
    title = f"test accuracy against b, {result.data} by class"
    axes.set(ylim=(0, 1), xlabel="b", title=title)
    return figure
