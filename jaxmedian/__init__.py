"""Median- and vote-based distributed training on heterogeneous data, in JAX.

An optimizer whose gradients carry a leading worker axis, whose aggregation rule (vote,
median, mean) removes it, and noise that makes the rule track the mean: the system of
Chen et al., "Distributed Training with Heterogeneous Data: Bridging Median- and
Mean-Based Algorithms", NeurIPS 2020. Everything is an optax transformation, everything
runs in one jitted step.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from jaxmedian import attacks, checkpoint, diagnostics, noise, sharding, splits
from jaxmedian.optimizers import (
    apply_updates,
    distributed_lion,
    median_sgd,
    noisy_median_sgd,
    noisy_sign_sgd,
    sign_sgd,
    signum,
)
from jaxmedian.training.batches import epochs, full_batch, mini_batches, participants
from jaxmedian.training.loop import RunResult
from jaxmedian.training.run import run, run_pure
from jaxmedian.training.step import make_step
from jaxmedian.transforms.arrays import median, perturbed_median, vote
from jaxmedian.transforms.centers import centered_clipping, geometric_median
from jaxmedian.transforms.clipping import adaptive_clip_workers, clip_workers
from jaxmedian.transforms.lifting import per_worker
from jaxmedian.transforms.means import (
    mean_around_median,
    mean_of_signs,
    trimmed_mean,
    worker_mean,
)
from jaxmedian.transforms.median import coordinate_median
from jaxmedian.transforms.memory import (
    correct_drift,
    ef21_sign,
    interpolate_momentum,
)
from jaxmedian.transforms.mixing import bucketing, nearest_neighbor_mixing
from jaxmedian.transforms.neighbors import krum, multi_krum
from jaxmedian.transforms.perturbation import add_worker_noise
from jaxmedian.transforms.subsets import bulyan, minimum_diameter_mean
from jaxmedian.transforms.vote import majority_vote
from jaxmedian.workers.gradients import worker_grads, worker_value_and_grads
from jaxmedian.workers.local_steps import worker_updates

if TYPE_CHECKING:
    from jaxmedian import theory
    from jaxmedian.sharding import elastic

__version__ = "0.2.0.dev0"  # the one place: pyproject.toml reads it

__all__ = [
    # Namespaces
    "noise",
    "theory",
    "diagnostics",
    "splits",
    "attacks",
    "checkpoint",
    "sharding",
    "elastic",
    # Worker transforms: [M, ...] -> [M, ...]
    "add_worker_noise",
    "per_worker",
    "interpolate_momentum",
    "ef21_sign",
    "correct_drift",
    "nearest_neighbor_mixing",
    "bucketing",
    "clip_workers",
    "adaptive_clip_workers",
    # Aggregators: [M, ...] -> [...]
    "majority_vote",
    "coordinate_median",
    "worker_mean",
    "mean_of_signs",
    # Aggregators that withstand hostile workers: coordinate by coordinate, by distance
    "trimmed_mean",
    "mean_around_median",
    "krum",
    "multi_krum",
    "bulyan",
    "minimum_diameter_mean",
    "geometric_median",
    "centered_clipping",
    # Optimizers: the paper's four algorithms, and two with momentum per worker
    "sign_sgd",
    "noisy_sign_sgd",
    "median_sgd",
    "noisy_median_sgd",
    "signum",
    "distributed_lion",
    "apply_updates",
    # Plain arrays
    "median",
    "vote",
    "perturbed_median",
    # Simulator: from the loss and the data of many workers to trained parameters
    "worker_grads",
    "worker_value_and_grads",
    "worker_updates",
    "make_step",
    "run",
    "run_pure",
    "RunResult",
    "full_batch",
    "mini_batches",
    "epochs",
    "participants",
]

# SciPy, which theory needs, takes a second.
_LAZY = {"theory": "jaxmedian.theory", "elastic": "jaxmedian.sharding.elastic"}


def __getattr__(name: str) -> ModuleType:
    """Imports namespaces that few need when they are first used."""
    if name in _LAZY:
        return importlib.import_module(_LAZY[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
