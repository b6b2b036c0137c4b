"""How much noise: accuracy against b over seeds, all runs in one compiled program.

Claim: a whole training run is one function, so a sweep over noise scales and seeds is a
`jax.vmap` of it: one compile, and every curve has its band. On scikit-learn's 8x8
digits, one class a worker, the vote needs b near the spread of the workers' gradients:
less does not close the gap, more drowns the signal.

    python -m experiments sweep

Expect: test accuracy below .4 without noise and above .8 at the best b, which is
  neither
the smallest nor the largest. A minute on two cores for 40 runs.
"""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure

import jaxmedian as jm
from experiments.common.data.digits import load_digits8x8
from experiments.common.harness.claims import Claim
from experiments.common.harness.plots import panels
from experiments.common.harness.results import Result
from experiments.common.training.models import TwoLayers


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the sweep.

    Attributes:
      scales: b, in units of the gradient; 0 is the vote without noise.
      law: law of the noise.
      coupling: "independent" or "systematic".
      num_seeds: runs for each b; a seed sets network, batches and noise.
      num_workers: M; each holds digits of one class.
      num_steps: steps of every run.
      learning_rate: delta of the vote.
      batch_size: samples a worker and step.
      hidden: units of the hidden layer.
    """

    scales: tuple[float, ...] = (0.0, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0)
    law: str = "gaussian"
    coupling: str = "independent"
    num_seeds: int = 5
    num_workers: int = 10
    num_steps: int = 500
    learning_rate: float = 3e-3
    batch_size: int = 32
    hidden: int = 32


PRESETS = {
    "quick": Config(num_seeds=2, num_steps=300),
    "tiny": Config(scales=(0.0, 0.03), num_seeds=2, num_steps=3, hidden=4),
}


def run(config: Config) -> Result:
    """Trains every scale and seed at once."""
    train, test = _data(config)
    graph = nnx.split(_network(config, 0))[0]

    def loss(params: Any, batch: dict[str, jax.Array]) -> jax.Array:
        logits = nnx.merge(graph, params)(batch["images"])
        return optax.softmax_cross_entropy_with_integer_labels(
            logits, batch["labels"]
        ).mean()

    def measure(params: Any, grads: Any, updates: Any) -> dict[str, jax.Array]:
        del grads, updates
        guesses = jnp.argmax(nnx.merge(graph, params)(test["images"]), axis=1)
        return {"test_accuracy": jnp.mean(guesses == test["labels"])}

    def train_once(scale: jax.Array, params: Any, key: jax.Array) -> dict[str, Any]:
        noise = jm.noise.Noise(config.law, scale, config.coupling)
        result = jm.run_pure(
            loss,
            jm.noisy_sign_sgd(config.learning_rate, noise, key),
            params,
            jm.mini_batches(train, config.batch_size, replace=True),
            config.num_steps,
            key,
            chunk=50,
            metrics=[measure],
        )
        return result.metrics

    networks = [nnx.split(_network(config, s))[1] for s in range(config.num_seeds)]
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *networks)
    keys = jax.vmap(jax.random.key)(jnp.arange(config.num_seeds))
    scales = jnp.asarray(config.scales)
    over_seeds = jax.vmap(train_once, in_axes=(None, 0, 0))
    sweep = jax.jit(jax.vmap(over_seeds, in_axes=(0, None, None)))
    start = time.perf_counter()
    compiled = sweep.lower(scales, params, keys).compile()
    middle = time.perf_counter()
    metrics = jax.tree.map(np.asarray, compiled(scales, params, keys))
    seconds = {"compile": middle - start, "runs": time.perf_counter() - middle}
    claims = _claims(config, metrics, seconds)
    return Result(_curves(config, metrics), claims, {"seconds": seconds})


def _data(config: Config) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    digits = load_digits8x8()
    split = jm.splits.by_label(digits.train_labels, config.num_workers)
    indices = split.indices[:, : split.sizes.min()]
    train = {
        "images": jnp.asarray(digits.train_images[indices], jnp.float32) / 16,
        "labels": jnp.asarray(digits.train_labels[indices]),
    }
    test = {
        "images": jnp.asarray(digits.test_images, jnp.float32) / 16,
        "labels": jnp.asarray(digits.test_labels),
    }
    return train, test


def _network(config: Config, seed: int) -> TwoLayers:
    return TwoLayers(64, config.hidden, 10, rngs=nnx.Rngs(seed))


def _curves(
    config: Config, metrics: dict[str, np.ndarray]
) -> dict[str, dict[str, np.ndarray]]:
    """Makes one curve a scale: means over seeds, and the accuracy's standard error."""
    curves = {}
    for i, scale in enumerate(config.scales):
        curve = {name: values[i].mean(axis=0) for name, values in metrics.items()}
        spread = metrics["test_accuracy"][i].std(axis=0, ddof=1)
        curve["test_accuracy_error"] = spread / np.sqrt(config.num_seeds)
        curves[f"b = {scale:g}"] = curve
    return curves


def _claims(
    config: Config, metrics: dict[str, np.ndarray], seconds: dict[str, float]
) -> tuple[Claim, ...]:
    last = metrics["test_accuracy"][:, :, -1]
    best = int(last.mean(axis=1).argmax())
    judged = config.num_steps >= 300
    inside = 0 < best < len(last) - 1
    error = last.std(axis=1, ddof=1) / np.sqrt(config.num_seeds)

    def accuracy(i: int) -> str:
        return f"{last[i].mean():.3f} +- {error[i]:.3f} at b = {config.scales[i]:g}"

    return (
        Claim(
            "One vmapped program trains every scale and seed",
            "-",
            f"{last.size} runs: compiled in {seconds['compile']:.1f} s, "
            f"trained in {seconds['runs']:.1f} s",
            None,
        ),
        Claim(
            "Without noise the vote stays below .4 test accuracy",
            "stalls (on MNIST)",
            accuracy(0),
            bool(last[0].mean() < 0.4) if judged and config.scales[0] == 0 else None,
        ),
        Claim(
            "The best b is above .8, and neither the smallest nor the largest",
            "-",
            accuracy(best),
            bool(last[best].mean() > 0.8 and inside) if judged else None,
        ),
    )


def plot(result: Result) -> Figure:
    """Draws the final test accuracy against b with its standard error over seeds."""
    figure, (axes,) = panels(1)
    scales = [float(name.removeprefix("b = ")) for name in result.curves]
    accuracy = [curve["test_accuracy"][-1] for curve in result.curves.values()]
    error = [curve["test_accuracy_error"][-1] for curve in result.curves.values()]
    axes.errorbar(range(len(scales)), accuracy, error, marker="o", capsize=3)
    axes.set_xticks(range(len(scales)), [f"{scale:g}" for scale in scales])
    axes.set_ylim(0, 1)
    axes.set_xlabel("b")
    axes.set_title("test accuracy against b, 8x8 digits by class")
    return figure
