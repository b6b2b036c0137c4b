"""How fast noisy signSGD and medianSGD converge: mean squared gradient against T.

Claim: on three quadratics (the toy problem), with the paper's schedules the mean
squared gradient of T steps falls like T^(-1/3) (medianSGD, Theorem 6) and T^(-1/4)
(signSGD, Theorem 5); with ours, which use that the bias is O(1/b^2), like T^(-2/5) and
T^(-1/3); and with systematic noise of a constant b, beyond which both rules are exactly
unbiased, like SGD's T^(-1/2). Each b is `factor` times the schedule: with 5 it exceeds
the spread of the workers and the gain shows at once, with 1 the paper's larger b wins
for small T: the gain is asymptotic.

    python -m experiments rates

All is exact but the dots, which are runs of the library over seeds.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import jaxmedian as jm
from experiments.common.harness.options import Amounts, Count, Seed
from experiments.common.harness.plots import panels
from experiments.common.harness.results import Claim, Curves, Result
from experiments.common.training.outcomes import standard_error
from experiments.paper.quadratics import median_mean_square, vote_mean_square

Schedule = Callable[[int], tuple[float, float]]  # T -> (b, delta)

MEASURE = "mean_squared_gradient"
_LONG_ENOUGH = 1e5  # steps without which a slope is not judged


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the quadratics and of the schedules.

    Attributes:
      centres: a_i, the minimum of worker i's loss; an odd number.
      start: x_0.
      law: law of the independent noise; the systematic noise is uniform.
      factors: what the schedules' b is multiplied by.
      least_steps: smallest T.
      median_steps: largest T of medianSGD, whose curves have closed forms.
      vote_steps: largest T of signSGD, whose chain is followed step by step.
      margin: how far x may go beyond x_0 for the constant b of the vote to cover it.
      simulated_steps: T of the simulated dots.
      num_seeds: runs for each dot.
      seed: of the noise.
    """

    centres: tuple[float, ...] = (1.0, 2.0, 10.0)
    start: float = 0.0005
    law: str = "gaussian"
    factors: Amounts = (5.0, 1.0)
    least_steps: float = 1e3
    median_steps: float = 1e8
    vote_steps: float = 1e6
    margin: float = 2.0
    simulated_steps: Count = 1000
    num_seeds: Count = 256
    seed: Seed = 0

    def __post_init__(self) -> None:
        jm.noise.Noise(self.law, 1.0)  # says which laws there are
        if len(self.centres) % 2 == 0:
            raise ValueError(
                f"--centres takes an odd number of them; got {self.centres}."
            )
        if self.simulated_steps % 2:
            raise ValueError(
                "--simulated-steps must be even, as the walk of the vote is followed "
                f"by pairs of steps; got {self.simulated_steps}."
            )
        if 0 in self.factors:
            raise ValueError(f"--factors must be above 0; got {self.factors}.")


PRESETS = {
    "quick": Config(vote_steps=1e5),
    "tiny": Config(
        least_steps=50,
        median_steps=500,
        vote_steps=500,
        factors=(5.0,),
        simulated_steps=50,
        num_seeds=64,
    ),
}


class Setting(NamedTuple):
    """One curve.

    Attributes:
      rule: "median" or "vote".
      schedule: T -> (b, delta).
      law: of the noise.
      coupling: of the noise.
      slope: of log(mean squared gradient) against log T, as the theory has it.
      tolerance: of the slope; None where it is not judged.
      paper: whether the rate is the paper's.
    """

    rule: str
    schedule: Schedule
    law: str
    coupling: jm.noise.Coupling
    slope: float
    tolerance: float | None
    paper: bool = False


def settings(config: Config) -> dict[str, Setting]:
    """Lists the curves: both rules with both schedules and constant systematic b."""
    found = {}
    for factor in config.factors:
        judged = factor == max(config.factors)
        for rule, power, expected, base in (
            ("median", "1/6", -1 / 3, jm.theory.schedule_theorem6),
            ("median", "1/10", -2 / 5, _sharper("noisy_median_sgd")),
            ("vote", "1/4", -1 / 4, jm.theory.schedule_theorem5),
            ("vote", "1/6", -1 / 3, _sharper("noisy_sign_sgd")),
        ):
            found[f"{rule}, b = {factor:g} T^({power})"] = Setting(
                rule,
                _times(factor, base),
                config.law,
                "independent",
                expected,
                (0.02 if rule == "median" else 0.05) if judged else None,
                (rule, power) in (("median", "1/6"), ("vote", "1/4")),
            )
    for rule, schedule in _constant(config).items():
        name = f"{rule}, systematic, constant b"
        found[name] = Setting(rule, schedule, "uniform", "systematic", -0.5, 0.03)
    return found


def _sharper(algorithm: str) -> Callable[[int, int], tuple[float, float]]:
    return lambda num_steps, d: jm.theory.schedule_sharper(num_steps, d, algorithm)


def _times(
    factor: float, schedule: Callable[[int, int], tuple[float, float]]
) -> Schedule:
    def scaled(num_steps: int) -> tuple[float, float]:
        scale, learning_rate = schedule(num_steps, 1)
        return factor * scale, learning_rate

    return scaled


def _constant(config: Config) -> dict[str, Schedule]:
    """Returns the schedules of exactly unbiased rules: constant b, delta ~ T^(-1/2).

    The steps minimise SGD's bound D / (T delta) + delta V / 2 for the variance V of the
    median, and V = 1 for the vote, whose expectation is the gradient over Q.
    """
    a = np.asarray(config.centres)
    initial = 0.5 * (config.start - a.mean()) ** 2
    largest = np.abs(config.start - a).max() + config.margin
    median_scale = jm.theory.unbiased_scale(a, "uniform", "median")
    noise = jm.noise.uniform(median_scale, "systematic")
    variance = jm.theory.unbiased_median(a, noise)[1]
    vote_scale = len(a) * largest / np.sqrt(3)

    def constant(scale: float, variance: float) -> Schedule:
        def schedule(num_steps: int) -> tuple[float, float]:
            return scale, float(np.sqrt(2 * initial / (variance * num_steps)))

        return schedule

    return {
        "median": constant(median_scale, variance),
        "vote": constant(float(vote_scale), 1.0),
    }


def run(config: Config) -> Result:
    """Computes every curve, and simulates one point of each."""
    available = settings(config)
    curves: dict[str, dict[str, np.ndarray]] = {}
    for name, setting in available.items():
        print(f"{name} ({len(curves) + 1} of {len(available)})")
        curves[name] = _curve(config, setting)
    dots = {name: _simulate(config, setting) for name, setting in available.items()}
    claims = [
        *_slopes(available, curves),
        *_asymptotic(config, curves),
        _agreement(available, config, dots),
    ]
    joined = curves | {f"simulated {name}": dot for name, dot in dots.items()}
    return Result(joined, tuple(claims))


def _curve(config: Config, setting: Setting) -> dict[str, np.ndarray]:
    longest = config.vote_steps if setting.rule == "vote" else config.median_steps
    low, high = np.log10(config.least_steps), np.log10(longest)
    exponents = np.linspace(low, high, max(2, round(2 * (high - low)) + 1))
    steps = 2 * np.rint(10**exponents / 2).astype(int)
    values = [exact(config, setting, int(num_steps)) for num_steps in steps]
    return {"step": steps, MEASURE: np.array(values)}


def exact(config: Config, setting: Setting, num_steps: int) -> float:
    """Computes the mean squared gradient of T steps under a setting's schedule."""
    scale, rate = setting.schedule(num_steps)
    noise = jm.noise.Noise(setting.law, scale, setting.coupling)
    compute = median_mean_square if setting.rule == "median" else vote_mean_square
    return compute(config.centres, noise, rate, config.start, num_steps)


def _simulate(config: Config, setting: Setting) -> dict[str, np.ndarray]:
    """Runs the library over seeds: the mean over seeds and its standard error."""
    num_steps = config.simulated_steps
    scale, rate = setting.schedule(num_steps)
    keys = jax.random.split(jax.random.key(config.seed), config.num_seeds)
    kind = (setting.rule, setting.law, setting.coupling)
    sums = _sums(keys, scale, rate, config.centres, config.start, num_steps, kind)
    first = (config.start - np.mean(config.centres)) ** 2  # not measured: step 0
    means = (first + np.asarray(sums, np.float64)) / num_steps
    return {
        "step": np.array([num_steps]),
        MEASURE: np.array([means.mean()]),
        "standard_error": np.array([standard_error(means)]),
    }


@functools.partial(jax.jit, static_argnames=("num_steps", "kind"))
def _sums(
    keys: jax.Array,
    scale: Any,
    rate: Any,
    centres: Any,
    start: Any,
    num_steps: int,
    kind: tuple[str, str, jm.noise.Coupling],
) -> jax.Array:
    """Sums the squared gradients of steps 1 to T - 1 for each key; compiled by kind."""
    rule, law, coupling = kind
    build = jm.noisy_median_sgd if rule == "median" else jm.noisy_sign_sgd

    def loss(x: jax.Array, centre: jax.Array) -> jax.Array:
        return 0.5 * (x - centre) ** 2

    def of_seed(key: jax.Array) -> jax.Array:
        optimizer = build(rate, jm.noise.Noise(law, scale, coupling), key)
        batches = jm.full_batch(jnp.asarray(centres))
        x = jnp.asarray(start)
        result = jm.run_pure(loss, optimizer, x, batches, num_steps, 0, chunk=1)
        return jnp.sum(result.metrics["gradient_norm"][:-1] ** 2)

    return jax.vmap(of_seed)(keys)


# --- what was found -------------------------------------------------------------------


def slope(curve: dict[str, np.ndarray]) -> float:
    """Fits the slope of log(mean squared gradient) against log T."""
    return float(np.polyfit(np.log(curve["step"]), np.log(curve[MEASURE]), 1)[0])


def _slopes(available: dict[str, Setting], curves: Curves) -> list[Claim]:
    claims = []
    for name, setting in available.items():
        if setting.tolerance is None:
            continue
        curve = dict(curves[name])
        found = slope(curve)
        judged = curve["step"][-1] >= _LONG_ENOUGH
        within = abs(found - setting.slope) <= setting.tolerance
        claims.append(
            Claim(
                f"{name}: slope {setting.slope:.3f} within {setting.tolerance}",
                f"{found:.3f}, T = {curve['step'][0]:.0e} to {curve['step'][-1]:.0e}",
                within if judged else None,
                paper=(
                    f"T^({setting.slope:.3g}), an upper bound"
                    if setting.paper
                    else "ours"
                ),
            )
        )
    return claims


def _asymptotic(config: Config, curves: Curves) -> list[Claim]:
    """States where the sharper schedules overtake the paper's, for each factor."""
    claims = []
    for rule, paper, sharper in (("median", "1/6", "1/10"), ("vote", "1/4", "1/6")):
        for factor in config.factors:
            theirs = curves[f"{rule}, b = {factor:g} T^({paper})"]
            ours = curves[f"{rule}, b = {factor:g} T^({sharper})"]
            wins = ours[MEASURE] < theirs[MEASURE]
            ahead = ours["step"][wins]
            first = f"from T = {ahead[0]:.0e} on" if len(ahead) else "nowhere"
            small = factor == min(config.factors) < max(config.factors)
            judged = ours["step"][-1] >= _LONG_ENOUGH
            claims.append(
                Claim(
                    f"{rule}, factor {factor:g}: "
                    + ("the paper's schedule" if small else "the sharper one")
                    + f" is ahead {'at first' if small else 'for every T'}",
                    f"the sharper one is ahead {first}",
                    bool((not wins[0]) if small else wins.all()) if judged else None,
                )
            )
    return claims


def _agreement(available: dict[str, Setting], config: Config, dots: Curves) -> Claim:
    statement = f"Runs of {config.simulated_steps} steps agree within 5 standard errors"
    if config.num_seeds < 2:
        return Claim(statement, "one seed, which has no standard error")
    sigmas = {
        name: float(
            abs(dots[name][MEASURE][0] - exact(config, setting, config.simulated_steps))
            / dots[name]["standard_error"][0]
        )
        for name, setting in available.items()
    }
    worst = max(sigmas, key=lambda name: sigmas[name])
    return Claim(
        statement,
        f"at most {sigmas[worst]:.1f} ({worst}), {config.num_seeds} seeds",
        sigmas[worst] <= 5,
    )


def plot(result: Result) -> Figure:
    """Draws the mean squared gradient against T, one panel a rule."""
    figure, axes = panels(2)
    for axis, rule in zip(axes, ("median", "vote"), strict=True):
        for name, curve in result.curves.items():
            if name.startswith(rule):
                style = "--" if "b = 1 T" in name else "-"
                label = f"{name.removeprefix(rule + ', ')}: {slope(dict(curve)):.2f}"
                axis.plot(curve["step"], curve[MEASURE], style, label=label)
            elif name.startswith(f"simulated {rule}"):
                axis.plot(curve["step"], curve[MEASURE], "k.", markersize=4)
        axis.set(
            xscale="log",
            yscale="log",
            xlabel="T",
            title=f"{rule}: mean squared gradient, and slopes",
        )
        axis.legend(fontsize=7)
    return figure
