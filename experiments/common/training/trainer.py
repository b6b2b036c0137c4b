"""Train a rule over settings and seeds in one compiled program, and find the best.

A run is a function of its settings (learning rate, b, ...), its seed and the workers'
samples: `build_trainer` vmaps it over settings and seeds, and what each worker holds is
an argument, so that a whole sweep is compiled once for each rule. A seed sets network,
batches and noise. The best setting is chosen on validation digits, never on test ones.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxmedian as jm
from experiments.common.data.data_set import DataSet, stratified_holdout
from experiments.common.data.digits import load_digits8x8, load_mnist5k
from experiments.common.data.image_sets import load_fashion_mnist, load_mnist
from experiments.common.training.models import Classifier, TwoLayers, classifier

Settings = Mapping[str, np.ndarray]  # name -> [G], one entry a run
Build = Callable[..., optax.GradientTransformation]  # (key=..., **setting)

# name -> loader, pixels, brightest pixel
_DATA: dict[str, tuple[Callable[[], DataSet], int, int]] = {
    "digits8x8": (load_digits8x8, 64, 16),
    "mnist5k": (load_mnist5k, 784, 255),
    "mnist": (load_mnist, 784, 255),
    "fashion_mnist": (load_fashion_mnist, 784, 255),
}


class Problem(NamedTuple):
    """What the runs of an experiment share.

    Attributes:
      model: loss and accuracy; its own parameters are those of seed 0.
      params: [S, ...], the initial parameters of each seed.
      keys: [S] of batches and noise.
      train: "images" and "labels" that are shared out among workers.
      validation: those that choose settings.
      test: those that are reported.
    """

    model: Classifier
    params: Any
    keys: jax.Array
    train: dict[str, jax.Array]
    validation: dict[str, jax.Array]
    test: dict[str, jax.Array]


def load_problem(data: str, hidden: int, num_seeds: int) -> Problem:
    """Loads digits and builds a fully connected network for each seed.

    Args:
      data: "digits8x8", "mnist5k", "mnist" or "fashion_mnist". An eighth of the
        training part is set apart for validation: of 5,000 digits, 500.
      hidden: units of the hidden layer.
      num_seeds: S.

    Raises:
      ValueError: for an unknown name.
      ConnectionError: for data that are neither there nor to be downloaded.
    """
    if data not in _DATA:
        raise ValueError(f"`data` must be one of {', '.join(_DATA)}; got {data!r}.")
    load, pixels, brightest = _DATA[data]
    digits = load()
    kept, held_out = stratified_holdout(
        digits.train_labels, len(digits.train_labels) // 8
    )

    def build(seed: int) -> Classifier:
        module = TwoLayers(pixels, hidden, 10, rngs=nnx.Rngs(seed))
        return classifier(module, lambda x: x.astype(jnp.float32) / brightest)

    train = DataSet(
        digits.train_images[kept],
        digits.train_labels[kept],
        digits.test_images,
        digits.test_labels,
    )
    validation = _part(digits.train_images[held_out], digits.train_labels[held_out])
    return build_problem(train, validation, build, num_seeds)


def build_problem(
    data: DataSet,
    validation: dict[str, jax.Array],
    build: Callable[[int], Classifier],
    num_seeds: int,
) -> Problem:
    """Joins data and one network a seed, ``build(seed)``."""
    networks = [build(seed) for seed in range(num_seeds)]
    return Problem(
        networks[0],
        jax.tree.map(lambda *rows: jnp.stack(rows), *[n.params for n in networks]),
        jax.vmap(jax.random.key)(jnp.arange(num_seeds)),
        _part(data.train_images, data.train_labels),
        validation,
        _part(data.test_images, data.test_labels),
    )


def _part(images: np.ndarray, labels: np.ndarray) -> dict[str, jax.Array]:
    return {"images": jnp.asarray(images), "labels": jnp.asarray(labels)}


class Chosen(NamedTuple):
    """What a rule reached in one setting.

    Attributes:
      setting: in words.
      curve: means over seeds at each chunk edge, and standard errors.
      last: [S], the last test accuracy of each seed.
    """

    setting: str
    curve: dict[str, np.ndarray]
    last: np.ndarray


class Runs(NamedTuple):
    """What one rule reached in every setting and seed.

    Attributes:
      settings: name -> [G].
      metrics: name -> [G, S, T], one entry a setting, seed and chunk edge.
    """

    settings: Settings
    metrics: Mapping[str, np.ndarray]

    def num_steps(self) -> int:
        """Returns how many steps were taken."""
        return int(self.metrics["step"][0, 0, -1])

    def best(self) -> int:
        """Returns the setting with the best last validation accuracy over seeds."""
        return int(self.metrics["validation_accuracy"][:, :, -1].mean(axis=1).argmax())

    def chosen(self) -> Chosen:
        """Returns what the best setting reached."""
        best = self.best()
        return Chosen(self.describe(best), self.curve(best), self.last(best))

    def describe(self, setting: int) -> str:
        """Writes a setting as "rate 0.01, scale 0.1"."""
        return ", ".join(f"{k} {v[setting]:.3g}" for k, v in self.settings.items())

    def curve(self, setting: int) -> dict[str, np.ndarray]:
        """Returns means over seeds, and standard errors of what figures show."""
        curve = {
            name: rows[setting].mean(axis=0) for name, rows in self.metrics.items()
        }
        shown = {"loss", "gradient_norm", "validation_accuracy", "test_accuracy"}
        for name in shown & set(curve):
            curve[f"{name}_error"] = standard_error(self.metrics[name][setting])
        return curve

    def last(self, setting: int) -> np.ndarray:
        """Returns the last test accuracy of each seed, [S]."""
        return self.metrics["test_accuracy"][setting, :, -1]


def standard_error(samples: np.ndarray) -> np.ndarray:
    """Returns the standard error of the mean over the first axis; NaN for one row."""
    if len(samples) < 2:
        return np.full(samples.shape[1:], np.nan)
    return samples.std(axis=0, ddof=1) / np.sqrt(len(samples))


def report(samples: np.ndarray) -> str:
    """Writes "mean +- standard error" of one number a seed, the number if it is one."""
    if len(samples) == 1:
        return f"{samples[0]:.3f}"
    return f"{samples.mean():.3f} +- {standard_error(samples):.3f}"


def grid(**values: tuple[float, ...]) -> Settings:
    """Returns every combination of the values, as one array a name.

    >>> grid(rate=(0.1, 1.0), scale=(2.0,))["rate"].tolist()
    [0.1, 1.0]
    """
    combinations = np.meshgrid(*values.values(), indexing="ij")
    return dict(zip(values, (x.ravel() for x in combinations), strict=True))


def build_trainer(
    problem: Problem,
    build: Build,
    *,
    batch_size: int,
    num_steps: int,
    chunk: int,
    measure: Callable[[Any], dict[str, jax.Array]] | None = None,
    spoil: Callable[..., Callable[..., Any]] | None = None,
) -> Callable[..., Runs]:
    """Builds ``(settings, split, **common) -> Runs`` of a rule, compiled once a shape.

    ``common`` are scalars that all settings share: not vmapped, they can choose between
    branches (`jax.lax.switch`) of which only one is computed.

    Args:
      problem: data, networks and seeds.
      build: ``build(key=key, **setting, **common)`` -> optimizer; everything may be
        traced.
      batch_size: samples a worker and step, drawn with replacement.
      num_steps: steps of every run.
      chunk: steps between two measurements.
      measure: parameters -> scalars; by default the `accuracies`.
      spoil: ``spoil(next_batch, **common)`` -> what serves the workers instead.
    """

    def metric(params: Any, grads: Any, updates: Any) -> dict[str, jax.Array]:
        del grads, updates
        return accuracies(problem, params) if measure is None else measure(params)

    @jax.jit
    def train_all(settings: Any, params: Any, keys: Any, held: Any, common: Any) -> Any:
        indices, sizes = held
        next_batch: Callable[..., Any] = serve(
            problem.train, indices, sizes, batch_size
        )
        if spoil is not None:
            next_batch = spoil(next_batch, **common)

        def train_one(setting: Any, params: Any, key: jax.Array) -> Any:
            return jm.run_pure(
                problem.model.loss,
                build(key=key, **setting, **common),
                params,
                next_batch,
                num_steps,
                key,
                chunk=chunk,
                metrics=[metric],
            ).metrics

        over_seeds = jax.vmap(train_one, in_axes=(None, 0, 0))
        return jax.vmap(over_seeds, in_axes=(0, None, None))(settings, params, keys)

    def train(settings: Settings, split: jm.splits.Split, **common: Any) -> Runs:
        traced = {name: jnp.asarray(v, jnp.float32) for name, v in settings.items()}
        held = padded(split, len(problem.train["labels"]))
        shared = {name: jnp.asarray(value) for name, value in common.items()}
        metrics = train_all(traced, problem.params, problem.keys, held, shared)
        return Runs(settings, jax.tree.map(np.asarray, metrics))

    return train


def accuracies(problem: Problem, params: Any) -> dict[str, jax.Array]:
    """Measures the accuracy on validation and on test digits."""
    return {
        "validation_accuracy": problem.model.accuracy(params, problem.validation),
        "test_accuracy": problem.model.accuracy(params, problem.test),
    }


def padded(split: jm.splits.Split, width: int) -> tuple[jax.Array, jax.Array]:
    """Returns indices ``[M, width]`` and sizes ``[M]``: one shape for all splits."""
    indices = np.pad(split.indices, ((0, 0), (0, width - split.indices.shape[1])))
    return jnp.asarray(indices), jnp.asarray(split.sizes, jnp.int32)


def serve(
    samples: dict[str, jax.Array],
    indices: jax.Array,
    sizes: jax.Array,
    batch_size: int,
) -> jax.tree_util.Partial:
    """Serves workers random samples of those they hold, without copying the data.

    Args:
      samples: leaves ``[N, ...]``.
      indices: ``[M, n]``, whose first ``sizes`` are a worker's.
      sizes: ``[M]``.
      batch_size: samples a worker and step, drawn with replacement.
    """
    draw = jm.mini_batches(indices, batch_size, replace=True, sizes=sizes)
    return jax.tree_util.Partial(_serve, samples, draw)


def _serve(samples: Any, draw: Any, key: jax.Array, step: jax.Array) -> Any:
    chosen = draw(key, step)
    return jax.tree.map(lambda leaf: leaf[chosen], samples)
