"""Theorems 1 and 2 as inequalities: what runs do against what the paper promises.

Claim: on quadratics f_i(x) = sum_j c_j (x_j - a_ij)^2 / 2, where smoothness L, initial
suboptimality D, the median's bias and its deviation sigma_m are all known exactly, the
mean over T steps of ||grad f||_1 (signSGD) and of ||grad f||^2 (medianSGD), averaged
over seeds, is never above the right-hand side of Theorem 1 and of Theorem 2: for any
noise, heterogeneity and T. Nor are the theorems empty: without their gap term both
would fail on the most heterogeneous data.

    python -m experiments bounds
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

import jaxmedian as jm
from experiments.common.harness.options import Amounts, Count, Seed
from experiments.common.harness.plots import panels
from experiments.common.harness.results import Claim, Curves, Result

Array = npt.NDArray[np.float64]

SIGN, MEDIAN = "Theorem 1", "Theorem 2"
_JUDGED_STEPS = 1000  # from which on the gap dominates a run without noise


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the quadratics and of the runs.

    Attributes:
      num_workers: M.
      num_coordinates: d.
      least_curvature: of the c_j, which grow from it to L = 1 geometrically.
      heterogeneities: standard deviations of the a_ij, exponential over the workers.
      scales: b of the Gaussian noise; the systematic noise is uniform, with the least b
        of an exactly unbiased median.
      steps: T of the runs.
      num_seeds: runs for each T, noise and heterogeneity.
      seed: of the problem and of the noise.
    """

    num_workers: Count = 5
    num_coordinates: Count = 8
    least_curvature: float = 0.1
    heterogeneities: Amounts = (0.3, 3.0)
    scales: Amounts = (0.0, 1.0, 5.0)
    steps: tuple[Count, ...] = (10, 30, 100, 300, 1000, 3000)
    num_seeds: Count = 100
    seed: Seed = 0


PRESETS = {
    "quick": Config(steps=(10, 100, 1000), num_seeds=100),
    "tiny": Config(steps=(4, 16), num_seeds=8, scales=(0.0, 1.0)),
}


class Problem(NamedTuple):
    """The quadratics.

    Attributes:
      curvatures: c [d].
      centres: a [M, d].
      start: x_0 [d].
    """

    curvatures: Array
    centres: Array
    start: Array

    def suboptimality(self) -> float:
        """Returns D = f(x_0) - min f."""
        distance = self.start - self.centres.mean(axis=0)
        return float(0.5 * (self.curvatures * distance**2).sum())


def problem(config: Config, heterogeneity: float) -> Problem:
    """Draws the quadratics; those of two heterogeneities differ by a factor alone."""
    d = config.num_coordinates
    rng = np.random.default_rng(config.seed)
    centres = rng.exponential(heterogeneity, size=(config.num_workers, d))
    curvatures = np.geomspace(config.least_curvature, 1.0, d)
    return Problem(curvatures, centres, centres.mean(axis=0) + rng.normal(size=d))


def noises(config: Config, quadratics: Problem) -> dict[str, jm.noise.Noise]:
    """Lists the noises by name."""
    found = {f"b = {b:g}": jm.noise.gaussian(b) for b in config.scales}
    gradients = quadratics.curvatures * quadratics.centres
    unbiased = float(np.max(jm.theory.unbiased_scale(gradients, "uniform")))
    found["systematic"] = jm.noise.uniform(unbiased, "systematic")
    return found


def run(config: Config) -> Result:
    """Compares both sides of both theorems for every noise, heterogeneity and T."""
    curves: dict[str, dict[str, np.ndarray]] = {}
    for heterogeneity in config.heterogeneities:
        quadratics = problem(config, heterogeneity)
        for name, noise in noises(config, quadratics).items():
            for theorem in (SIGN, MEDIAN):
                label = f"{theorem}, spread {heterogeneity:g}, {name}"
                print(label)
                curves[label] = _both_sides(config, quadratics, noise, theorem)
    claims = [claim for name in (SIGN, MEDIAN) for claim in _claims(curves, name)]
    return Result(curves, tuple(claims))


def _both_sides(
    config: Config, quadratics: Problem, noise: jm.noise.Noise, theorem: str
) -> dict[str, np.ndarray]:
    initial = quadratics.suboptimality()
    if theorem == SIGN:
        rates = [np.sqrt(initial / (config.num_coordinates * t)) for t in config.steps]
    else:
        rates = [1 / np.sqrt(t) for t in config.steps]
    left = _left_sides(config, quadratics, noise, theorem, np.array(rates))
    right, gap = np.transpose(
        [
            right_side(quadratics, noise, theorem, steps, rate)
            for steps, rate in zip(config.steps, rates, strict=True)
        ]
    )
    return {
        "step": np.array(config.steps),
        "left": left.mean(axis=1),
        "standard_error": left.std(axis=1, ddof=1) / np.sqrt(config.num_seeds),
        "right": right,
        "gap_term": gap,
    }


# --- the two sides --------------------------------------------------------------------


def right_side(
    quadratics: Problem,
    noise: jm.noise.Noise,
    theorem: str,
    num_steps: int,
    rate: float,
) -> tuple[float, float]:
    """Computes the right-hand side of a theorem, and the part that is its gap term.

    The workers' gradients at x differ from each other by c_j (a_kj - a_ij), whatever x
    is, so that bias and deviation of the median are the same in every step.
    """
    gradients = -quadratics.curvatures * quadratics.centres  # up to c x
    bias = np.asarray(jm.theory.median_bias(gradients, noise))
    variance = np.asarray(jm.theory.median_moments(gradients, noise)[1])
    d, initial = len(bias), quadratics.suboptimality()
    deviation = float(np.sqrt(max(variance.max(), 0.0)))
    smoothness = float(quadratics.curvatures.max())
    if theorem == SIGN:
        gap = float(np.abs(bias).sum())
        terms = (num_steps, d, smoothness, initial, deviation, gap)
        return jm.theory.theorem1_bound(*terms), 2 * gap
    gap = float((bias**2).sum())
    terms = (num_steps, d, smoothness, initial, deviation, gap)
    return jm.theory.theorem2_bound(float(rate), *terms), gap


def _left_sides(
    config: Config,
    quadratics: Problem,
    noise: jm.noise.Noise,
    theorem: str,
    rates: Array,
) -> Array:
    """Returns what each run has on the left, [T, seeds], from one compiled program.

    All runs are as long as the longest; of each the first T steps count.
    """
    keys = jax.random.split(jax.random.key(config.seed), config.num_seeds)
    arrays = [jnp.asarray(part, jnp.float32) for part in (*quadratics, rates)]
    kind = (theorem, noise.law, noise.coupling)
    sizes = np.asarray(
        _sizes(keys, noise.scale, *arrays, max(config.steps), kind), np.float64
    )
    first = quadratics.start - quadratics.centres.mean(axis=0)
    start = float(_size(quadratics.curvatures * first, theorem))
    sums = start + np.cumsum(sizes, axis=2)  # of steps 0 to t; x_0 is not measured
    return np.stack(
        [
            (sums[i, :, steps - 2] if steps > 1 else start) / steps
            for i, steps in enumerate(config.steps)
        ]
    )


@functools.partial(jax.jit, static_argnames=("num_steps", "kind"))
def _sizes(
    keys: jax.Array,
    scale: Any,
    curvatures: jax.Array,
    centres: jax.Array,
    start: jax.Array,
    rates: jax.Array,
    num_steps: int,
    kind: tuple[str, str, jm.noise.Coupling],
) -> jax.Array:
    """Runs the library: the size of the mean gradient at steps 1 to T, [T, seeds, T].

    Compiled once for each kind (theorem, law, coupling).
    """
    theorem, law, coupling = kind
    build = jm.noisy_sign_sgd if theorem == SIGN else jm.noisy_median_sgd

    def loss(x: jax.Array, centre: jax.Array) -> jax.Array:
        return 0.5 * jnp.sum(curvatures * (x - centre) ** 2)

    def measure(x: Any, grads: jax.Array, updates: Any) -> dict[str, jax.Array]:
        del x, updates
        return {"size": _size(jnp.mean(grads, axis=0), theorem)}

    def one_run(rate: jax.Array, key: jax.Array) -> jax.Array:
        optimizer = build(rate, jm.noise.Noise(law, scale, coupling), key)
        batches = jm.full_batch(centres)
        result = jm.run_pure(
            loss, optimizer, start, batches, num_steps, 0, chunk=1, metrics=[measure]
        )
        return result.metrics["size"]

    over_seeds = jax.vmap(one_run, in_axes=(None, 0))
    return jax.vmap(over_seeds, in_axes=(0, None))(rates, keys)


def _size(gradient: Any, theorem: str) -> Any:
    return abs(gradient).sum() if theorem == SIGN else (gradient**2).sum()


# --- what was found -------------------------------------------------------------------


def _claims(curves: Curves, theorem: str) -> list[Claim]:
    mine = {name: curve for name, curve in curves.items() if name.startswith(theorem)}
    ratios = {name: curve["left"] / curve["right"] for name, curve in mine.items()}
    worst = max(ratios, key=lambda name: ratios[name].max())
    points = sum(len(ratio) for ratio in ratios.values())
    claims = [
        Claim(
            f"{theorem} holds for every noise, spread and T",
            f"left / right at most {ratios[worst].max():.3f} at {points} points "
            f"({worst.removeprefix(theorem + ', ')})",
            all(bool((ratio <= 1).all()) for ratio in ratios.values()),
            paper="left <= right",
        )
    ]
    silent = [curve for name, curve in mine.items() if name.endswith("b = 0")]
    if silent:
        last = {key: float(values[-1]) for key, values in silent[-1].items()}
        without = last["right"] - last["gap_term"]
        claims.append(
            Claim(
                f"{theorem} would fail without its gap term: largest spread, no noise",
                f"left {last['left']:.3g}, right {last['right']:.3g}, without the gap "
                f"{without:.3g}",
                last["left"] > without if last["step"] >= _JUDGED_STEPS else None,
                paper="(Theorem 3)",
            )
        )
    return claims


def plot(result: Result) -> Figure:
    """Draws both sides against T, at the largest spread; one panel a theorem."""
    figure, axes = panels(2)
    spread = list(result.curves)[-1].split(", ")[1]
    for axis, theorem in zip(axes, (SIGN, MEDIAN), strict=True):
        start = f"{theorem}, {spread}, "
        for name, curve in result.curves.items():
            if name.startswith(start):
                label = name.removeprefix(start)
                (line,) = axis.plot(curve["step"], curve["left"], ".-", label=label)
                axis.plot(curve["step"], curve["right"], "--", color=line.get_color())
        axis.set(xscale="log", yscale="log", xlabel="T")
        axis.legend(fontsize=7)
    axes[0].set_title("signSGD: mean |grad|_1 (dashed: bound)")
    axes[1].set_title("medianSGD: mean |grad|^2 (dashed: bound)")
    return figure
