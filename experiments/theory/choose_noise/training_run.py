"""The best b for real gradients, sampled inside a run, and a training that uses it."""

import sys
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import jaxmedian as jm
from experiments.common.data.data_set import DataSet
from experiments.common.harness.results import Claim
from experiments.common.training.models import Classifier
from experiments.common.training.problems import dense_network
from experiments.common.training.trainer import run_to_end
from experiments.theory.choose_noise.skewed import COUPLINGS, Config
from experiments.theory.descents import expected_descent


class Trial(NamedTuple):
    """What signSGD with the chosen noise, and without, reached on the digits.

    Attributes:
      best: the choice.
      accuracy: test accuracy without noise, and with the best.
      data: what the digits are called.
    """

    best: jm.theory.scales.BestScale
    accuracy: dict[str, float]
    data: str


def try_on_digits(
    config: Config, digits: DataSet
) -> tuple[dict[str, np.ndarray], Trial]:
    """Samples gradients where the mean goes, chooses a noise, and trains with it."""
    model = dense_network(digits, config.hidden, config.seed)
    mean = optax.chain(jm.worker_mean(), optax.sgd(config.mean_rate))
    measured = _train(config, model, digits, mean, config.sample_steps)
    sample = np.asarray(measured.metrics["sample"][-1], np.float64)
    best = jm.theory.best_scale(sample, "gaussian", "descent")
    print(f"digits: best b = {best.scale:.4f} ({best.coupling})")
    trials = {
        "no noise": jm.noise.gaussian(0.0),
        "best noise": jm.noise.gaussian(best.scale, best.coupling),
    }
    test = {"images": digits.test_images, "labels": digits.test_labels}
    accuracy = {}
    for name, noise in trials.items():
        key = jax.random.key(config.seed)
        optimizer = jm.noisy_sign_sgd(config.learning_rate, noise, key)
        end = _train(config, model, digits, optimizer, config.train_steps)
        accuracy[name] = float(model.accuracy(end.params, test))
    scales = np.geomspace(1e-4, 1.0, 41)
    curve = {"step": np.arange(len(scales)), "scale": scales} | {
        coupling: np.array(
            [
                expected_descent(sample, jm.noise.gaussian(float(b), coupling))
                for b in scales
            ]
        )
        for coupling in COUPLINGS
    }
    return curve, Trial(best, accuracy, digits.description)


def _train(
    config: Config,
    model: Classifier,
    digits: DataSet,
    optimizer: optax.GradientTransformation,
    num_steps: int,
) -> jm.RunResult:
    """Trains with one class a worker and samples gradients at each chunk edge."""
    split = jm.splits.by_label(
        digits.train_labels, config.digit_workers, seed=config.seed
    )
    indices = split.indices[:, : split.sizes.min()]
    worker_data = {
        "images": jax.device_put(digits.train_images[indices]),
        "labels": jax.device_put(digits.train_labels[indices]),
    }

    def sample(params: Any, grads: Any, updates: Any) -> dict[str, jax.Array]:
        del params, updates
        size, key = config.sample_size, config.seed
        return {"sample": jm.diagnostics.sample_coordinates(grads, size, key)}

    return run_to_end(
        model.loss,
        optimizer,
        model.params,
        jm.full_batch(worker_data),
        num_steps,
        key=config.seed,
        chunk=config.sample_steps,
        metrics=[sample],
        progress=sys.stderr.isatty(),
    )


def summary(trial: Trial) -> dict[str, Any]:
    """Returns the choice and the accuracies, as JSON keeps them."""
    return {
        "scale": trial.best.scale,
        "coupling": trial.best.coupling,
        "test_accuracy": trial.accuracy,
    }


def claims(config: Config, trial: Trial) -> tuple[Claim, ...]:
    """States the choice, and judges the accuracies."""
    best, (without, reached) = trial.best, trial.accuracy.values()
    judged = config.train_steps >= 300
    return (
        Claim(
            f"Digits: b chosen from {config.sample_size} coordinates of real gradients",
            f"independent b = {best.independent.scale:.3g}, "
            f"{best.independent.value:.3f} of the steepest descent; systematic b = "
            f"{best.systematic.scale:.3g}, {best.systematic.value:.3f}",
            paper="b = 1e-3 and 1e-5, tried out",
        ),
        Claim(
            "Digits: signSGD stalls below .35 without noise, is above .80 with that b",
            f"{without:.3f} without, {reached:.3f} with {best.coupling} b = "
            f"{best.scale:.3g}, {config.train_steps} steps",
            bool(reached > 0.8 and without < 0.35) if judged else None,
            paper=".1 to .4 without, .85-.9 with noise",
        ),
    )
