"""Three quadratics on which vote and median stop at the wrong point (paper, Fig. 1).

Claim: for f_i(x) = (x - a_i)^2 / 2, a = (1, 2, 10), signSGD and medianSGD go to the
median x = 2, where the mean gradient is still 7/3. With noise medianSGD hovers at
E[median_i(a_i + b xi_i)] and signSGD where P(vote = +) = P(vote = -), both known
exactly and both tending to the mean 13/3 as b grows.

    python -m experiments toy
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import jaxmedian as jm
from experiments.common.harness.options import Count, Seed
from experiments.common.harness.plots import draw_curves, panels
from experiments.common.harness.results import Claim, Curves, Result
from experiments.common.training.outcomes import report, seeds_in_words, verdict


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the toy problem; the defaults are the paper's, plus noise.

    Attributes:
      centres: a_i, the minimum of worker i's loss.
      start: x_0.
      learning_rate: delta.
      num_steps: steps of the curves.
      law: law of the noise.
      scale: b, in units of x.
      num_seeds: noisy runs, vmapped.
      settle_steps: steps of the noisy vote before its resting place is judged. It needs
        more than the others: its pull is weak where + and - are nearly even.
      seed: of the noise.
    """

    centres: tuple[float, ...] = (1.0, 2.0, 10.0)
    start: float = 0.0005
    learning_rate: float = 0.001
    num_steps: Count = 10_000
    law: str = "gaussian"
    scale: float = 5.0
    num_seeds: Count = 64
    settle_steps: Count = 60_000
    seed: Seed = 0

    def __post_init__(self) -> None:
        jm.noise.Noise(self.law, self.scale)  # says what it takes


PRESETS = {"quick": Config()}
_CHUNK = 100  # steps between two measurements


def run(config: Config) -> Result:
    """Runs the four algorithms and the mean; judges where they end."""
    noise = jm.noise.Noise(config.law, config.scale)
    rate = config.learning_rate
    plain = {
        "mean": optax.chain(jm.worker_mean(), optax.sgd(rate)),
        "signSGD": jm.sign_sgd(rate),
        "medianSGD": jm.median_sgd(rate),
    }
    noisy = {
        "noisy signSGD": (jm.noisy_sign_sgd, config.settle_steps),
        "noisy medianSGD": (jm.noisy_median_sgd, config.num_steps),
    }
    curves = {name: _train(config, tx, config.num_steps) for name, tx in plain.items()}
    keys = jax.random.split(jax.random.key(config.seed), config.num_seeds)
    ends = {}
    for name, (build, num_steps) in noisy.items():

        def of_seed(key: jax.Array, build: Any = build, steps: int = num_steps) -> Any:
            return _train(config, build(rate, noise, key), steps)

        seeds = jax.jit(jax.vmap(of_seed))(keys)
        ends[name] = np.asarray(seeds["x"][:, -1], np.float64)
        curves[name] = {key: values[0] for key, values in seeds.items()}
    curves = jax.tree.map(np.asarray, curves)
    shown = {name: _up_to(curve, config.num_steps) for name, curve in curves.items()}
    claims = _claims(config, noise, curves, ends)
    return Result(shown, claims, {"centres": config.centres})


def _train(
    config: Config, optimizer: optax.GradientTransformation, num_steps: int
) -> dict[str, jax.Array]:
    """Trains x from the start and returns it and both gradients along the way."""
    centres = jnp.asarray(config.centres, jnp.float32)

    def loss(x: jax.Array, centre: jax.Array) -> jax.Array:
        return 0.5 * (x - centre) ** 2

    def measure(x: jax.Array, grads: jax.Array, updates: Any) -> dict[str, jax.Array]:
        del updates
        median = jm.median(grads)
        return {"x": x, "mean_gradient": jnp.mean(grads), "median_gradient": median}

    result = jm.run_pure(
        loss,
        optimizer,
        jnp.float32(config.start),
        jm.full_batch(centres),
        num_steps,
        key=0,
        chunk=min(_CHUNK, config.num_steps),
        metrics=[measure],
    )
    return result.metrics


def _up_to(curve: dict[str, np.ndarray], num_steps: int) -> dict[str, np.ndarray]:
    kept = curve["step"] <= num_steps
    return {name: values[kept] for name, values in curve.items()}


def _claims(
    config: Config, noise: jm.noise.Noise, curves: Curves, ends: dict[str, np.ndarray]
) -> tuple[Claim, ...]:
    centres = np.asarray(config.centres)
    median, gap = np.median(centres), abs(np.median(centres) - np.mean(centres))
    claims = []
    for name in ("signSGD", "medianSGD"):
        x = float(curves[name]["x"][-1])
        gradient = abs(float(curves[name]["mean_gradient"][-1]))
        claims.append(
            Claim(
                f"{name} stops at the median, where the mean gradient is not 0",
                f"x = {x:.4f}, |gradient| = {gradient:.4f}",
                abs(x - median) <= config.learning_rate
                and abs(gradient - gap) <= config.learning_rate,
                paper=f"x = {median:g}, |gradient| = {gap:.4f}",
            )
        )
    expected = {
        "noisy signSGD": jm.theory.rest_point(centres, noise, rule="vote"),
        "noisy medianSGD": jm.theory.rest_point(centres, noise, rule="median"),
    }
    for name, rests in ends.items():
        exact = expected[name]
        claims.append(
            Claim(
                f"{name} (b = {config.scale:g}) hovers at its exact rest point "
                f"{exact:.4f}",
                f"x = {report(rests, 4)} over {seeds_in_words(len(rests))}",
                verdict(rests - exact, lambda x, error: abs(x) <= 5 * error),
                paper=f"tends to the mean {np.mean(centres):.4f} as b grows",
            )
        )
    return tuple(claims)


def plot(result: Result) -> Figure:
    """Draws x and the mean gradient against the step."""
    figure, (left, right) = panels(2)
    draw(left, result)
    draw_curves(right, _absolute(result.curves), "mean_gradient")
    right.set(yscale="log", title="|mean gradient|")
    return figure


def draw(axes: Any, result: Result) -> None:
    """Draws x against the step, on axes of somebody else's figure too."""
    draw_curves(axes, result.curves, "x")
    centres = result.extra["centres"]
    optimum, median = np.mean(centres), np.median(centres)
    axes.axhline(optimum, color="grey", linewidth=0.8, linestyle="--")
    axes.set_title(f"x: the optimum is {optimum:.3g}, the median {median:.3g}")
    axes.legend()


def _absolute(curves: Curves) -> Curves:
    return {
        name: {key: np.abs(values) for key, values in curve.items()}
        for name, curve in curves.items()
    }
