"""What runs are trained on: data, networks, seeds, and what each worker is served."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxmedian as jm
from experiments.common.data.catalog import load_data
from experiments.common.data.data_set import DataSet, stratified_holdout
from experiments.common.harness.misuse import Misuse
from experiments.common.harness.options import Count
from experiments.common.training.models import Classifier, TwoLayers, classifier


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Settings that trainings on images share.

    Attributes:
      data: "digits8x8", "mnist5k", "mnist", "fashion_mnist", "cifar10", or the path of
        a folder or archive of images: train/<class>/*.png|jpg, test/<class>/....
      data_dir: folder in which archives of data are looked for first.
      num_workers: M.
      num_seeds: runs of each setting; a seed sets network, noise and batches.
      num_steps: steps of every run.
      batch_size: samples a worker and step; None for all that it holds.
      hidden: units of the hidden layer.
      chunk: steps between two measurements.
    """

    data: str = "digits8x8"
    data_dir: Path | None = None
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
        """Loads the data and builds the networks, on one split of the images."""
        return load_problem(self.data, self.hidden, self.num_seeds, self.data_dir)

    def problem_of(self, seed: int) -> "Problem":
        """Loads the data and builds one network, on the seed's own split."""
        return load_problem(self.data, self.hidden, 1, self.data_dir, first_seed=seed)


class Problem(NamedTuple):
    """What the runs of an experiment share.

    Attributes:
      model: loss and accuracy; its own parameters are those of seed 0.
      params: [S, ...], the initial parameters of each seed.
      keys: [S] of batches and noise.
      train: "images" and "labels" that are shared out among workers.
      validation: those that choose settings.
      test: those that are reported.
      description: of the data, what results on them have to call them.
    """

    model: Classifier
    params: Any
    keys: jax.Array
    train: dict[str, jax.Array]
    validation: dict[str, jax.Array]
    test: dict[str, jax.Array]
    description: str

    def first_seeds(self, number: int) -> "Problem":
        """Returns the same for the first seeds only."""
        params = jax.tree.map(lambda leaf: leaf[:number], self.params)
        return self._replace(params=params, keys=self.keys[:number])

    def num_classes(self) -> int:
        """Returns how many classes the images have."""
        return int(jnp.max(jnp.append(self.train["labels"], self.test["labels"]))) + 1

    def split_by_label(self, num_workers: int) -> jm.splits.Split:
        """Shares the training part out by class: workers hold exclusive classes.

        Raises:
          Misuse: for more workers than samples.
        """
        return jm.splits.by_label(self.labels_for(num_workers), num_workers)

    def labels_for(self, num_workers: int) -> np.ndarray:
        """Returns the labels of the training part, to be shared out among workers.

        Raises:
          Misuse: for more workers than samples.
        """
        labels = np.asarray(self.train["labels"])
        if num_workers > len(labels):
            raise Misuse(
                f"--num-workers takes at most one worker a sample, {len(labels):,} to "
                f"train on ({self.description}); got {num_workers:,}."
            )
        return labels


def load_problem(
    data: str,
    hidden: int,
    num_seeds: int,
    data_dir: Path | None = None,
    *,
    first_seed: int = 0,
    validation: int = 8,
) -> Problem:
    """Loads images and builds a fully connected network for each seed.

    Args:
      data: a name or a path, as `load_data` takes it.
      hidden: units of the hidden layer.
      num_seeds: S.
      data_dir: folder in which archives are looked for first.
      first_seed: of the S networks, batches and noises; it picks the digits of each
        part too.
      validation: one in how many training images is set apart for validation: of 4,000
        digits, 500. 0 for none.

    Raises:
      Misuse: for an unknown name, a ``validation`` of 1 or below 0, or too few
        images for a part of them to be set apart.
      ConnectionError: for data that are neither there nor to be downloaded.
    """
    if validation < 0 or validation == 1:
        raise Misuse(
            "`validation` takes 0 for none, or 2 and more, for one in so many training "
            f"images; got {validation}."
        )
    loaded = load_data(data, data_dir, first_seed)
    images, labels = loaded.train_images, loaded.train_labels
    size = len(labels) // validation if validation else 0
    if validation and not size:
        raise Misuse(
            f"--data takes {validation} training images or more here, of which one in "
            f"{validation} is set apart for validation; got {len(labels)}: "
            f"{loaded.description}."
        )
    kept, held_out = stratified_holdout(labels, size, first_seed)
    train = loaded._replace(train_images=images[kept], train_labels=labels[kept])
    held = _part(images[held_out], labels[held_out])
    build = functools.partial(dense_network, loaded, hidden)
    return build_problem(train, held, build, range(first_seed, first_seed + num_seeds))


def dense_network(data: DataSet, hidden: int, seed: int) -> Classifier:
    """Builds a fully connected network of one hidden layer for a data set's images."""
    pixels, classes = data.train_images[0].size, int(data.train_labels.max()) + 1
    module = TwoLayers(pixels, hidden, classes, rngs=nnx.Rngs(seed))

    def prepare(images: jax.Array) -> jax.Array:
        return images.reshape(-1, pixels).astype(jnp.float32) / data.brightest

    return classifier(module, prepare)


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
        data.description,
    )


def _part(images: np.ndarray, labels: np.ndarray) -> dict[str, jax.Array]:
    return {"images": jnp.asarray(images), "labels": jnp.asarray(labels)}


def accuracies(problem: Problem, params: Any) -> dict[str, jax.Array]:
    """Measures the accuracy on test images, and on those for validation if any."""
    parts = {"test_accuracy": problem.test}
    if len(problem.validation.get("labels", ())):
        parts["validation_accuracy"] = problem.validation
    return {name: problem.model.accuracy(params, part) for name, part in parts.items()}


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
