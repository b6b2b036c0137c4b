"""What runs are trained on: data, networks, seeds, and what each worker is served."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxmedian as jm
from experiments.common.data.data_set import DataSet, stratified_holdout
from experiments.common.data.digits import load_digits8x8, load_mnist5k
from experiments.common.data.image_sets import load_fashion_mnist, load_mnist
from experiments.common.harness.options import Count
from experiments.common.training.models import Classifier, TwoLayers, classifier

# name -> loader (of a seed that picks test digits), pixels, brightest pixel
_DATA: dict[str, tuple[Callable[[int], DataSet], int, int]] = {
    "digits8x8": (load_digits8x8, 64, 16),
    "mnist5k": (load_mnist5k, 784, 255),
    "mnist": (lambda seed: load_mnist(), 784, 255),  # test digits as published
    "fashion_mnist": (lambda seed: load_fashion_mnist(), 784, 255),
}


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Settings that trainings on digits share.

    Attributes:
      data: "digits8x8", "mnist5k", "mnist" or "fashion_mnist".
      num_workers: M.
      num_seeds: runs of each setting; a seed sets network, noise and batches.
      num_steps: steps of every run.
      batch_size: samples a worker and step; None for all that it holds.
      hidden: units of the hidden layer.
      chunk: steps between two measurements.
    """

    data: str = "digits8x8"
    num_workers: Count = 10
    num_seeds: Count = 5
    num_steps: Count = 500
    batch_size: Count | None = 32
    hidden: Count = 32
    chunk: Count = 100

    def schedule(self) -> dict[str, Any]:
        """Returns what `build_trainer` is told of the steps."""
        names = ("batch_size", "num_steps", "chunk")
        return {name: getattr(self, name) for name in names}

    def problem(self) -> "Problem":
        """Loads the data and builds the networks, on one split of the digits."""
        return load_problem(self.data, self.hidden, self.num_seeds)

    def problem_of(self, seed: int) -> "Problem":
        """Loads the data and builds one network, on the seed's own split."""
        return load_problem(self.data, self.hidden, 1, seed)


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

    def split_by_label(self, num_workers: int) -> jm.splits.Split:
        """Shares the training part out by class: workers hold exclusive classes."""
        return jm.splits.by_label(np.asarray(self.train["labels"]), num_workers)


def load_problem(
    data: str, hidden: int, num_seeds: int, first_seed: int = 0
) -> Problem:
    """Loads digits and builds a fully connected network for each seed.

    Args:
      data: "digits8x8", "mnist5k", "mnist" or "fashion_mnist". An eighth of the
        training part is set apart for validation: of 5,000 digits, 500.
      hidden: units of the hidden layer.
      num_seeds: S.
      first_seed: of the S networks, batches and noises; it picks the digits of each
        part too.

    Raises:
      ValueError: for an unknown name.
      ConnectionError: for data that are neither there nor to be downloaded.
    """
    if data not in _DATA:
        raise ValueError(f"`data` must be one of {', '.join(_DATA)}; got {data!r}.")
    load, pixels, brightest = _DATA[data]
    digits = load(first_seed)
    kept, held_out = stratified_holdout(
        digits.train_labels, len(digits.train_labels) // 8, first_seed
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
    seeds = range(first_seed, first_seed + num_seeds)
    return build_problem(train, validation, build, seeds)


def build_problem(
    data: DataSet,
    validation: dict[str, jax.Array],
    build: Callable[[int], Classifier],
    seeds: Sequence[int],
) -> Problem:
    """Joins data and one network a seed, ``build(seed)``."""
    networks = [build(seed) for seed in seeds]
    return Problem(
        networks[0],
        jax.tree.map(lambda *rows: jnp.stack(rows), *[n.params for n in networks]),
        jax.vmap(jax.random.key)(jnp.asarray(seeds)),
        _part(data.train_images, data.train_labels),
        validation,
        _part(data.test_images, data.test_labels),
    )


def _part(images: np.ndarray, labels: np.ndarray) -> dict[str, jax.Array]:
    return {"images": jnp.asarray(images), "labels": jnp.asarray(labels)}


def accuracies(problem: Problem, params: Any) -> dict[str, jax.Array]:
    """Measures the accuracy on validation and on test digits."""
    return {
        "validation_accuracy": problem.model.accuracy(params, problem.validation),
        "test_accuracy": problem.model.accuracy(params, problem.test),
    }


def serve(
    samples: dict[str, jax.Array],
    split: jm.splits.Split,
    batch_size: int | None,
    replace: bool = True,
) -> jax.tree_util.Partial:
    """Serves workers all their samples, or random ones, without copying the data.

    Args:
      samples: leaves ``[N, ...]``.
      split: of the samples among workers.
      batch_size: samples a worker and step; None for all, which have "weights" of 0
        where workers hold fewer than others.
      replace: draw with replacement, which workers smaller than a batch need.

    Returns:
      ``next_batch(key, step)``. Batches of all splits of N samples have one shape.
    """
    if batch_size is None:
        held = {name: leaf[split.indices] for name, leaf in samples.items()}
        return jm.full_batch(held | {"weights": jnp.asarray(split.mask)})
    width = len(samples["labels"]) - split.indices.shape[1]
    indices = jnp.asarray(np.pad(split.indices, ((0, 0), (0, width))))
    sizes = jnp.asarray(split.sizes, jnp.int32)
    draw = jm.mini_batches(indices, batch_size, replace=replace, sizes=sizes)
    return jax.tree_util.Partial(_serve, samples, draw)


def _serve(samples: Any, draw: Any, key: jax.Array, step: jax.Array) -> Any:
    chosen = draw(key, step)
    return jax.tree.map(lambda leaf: leaf[chosen], samples)
