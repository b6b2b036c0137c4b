"""Settings of `mnist`, and its presets."""

import dataclasses
import math

from experiments.common.harness.options import Count, tiny
from experiments.common.training.problems import (
    Problem,
    TrainingConfig,
    load_problem,
)


@dataclasses.dataclass(frozen=True)
class Config(TrainingConfig):
    """Settings of the MNIST runs; each worker holds digits of one class.

    Attributes:
      curves: names of the curves to train; all by default.
      scales: b of the vote; 0 is no noise.
      systematic_scales: b of the vote with systematic noise; () for no such curve, here
        and below.
      coordinate_factors: of the vote whose systematic noise has a scale for every
        coordinate, in root mean squares of the gradients there.
      median_scales: b of the median.
      unbiased: whether to train the median that is exactly unbiased.
      batch_scales: b of the vote on sub-sampled batches.
      batch_size: sub-samples a worker and step, for the curves that say "batch".
      full_batch_divisor: curves of full batches take ``num_steps`` divided by this.
      full_batch_seeds: seeds of these curves; None for ``num_seeds``.
      validation: one in how many training images is set apart to choose b by; 0: none.
      vote_rate: step of the votes.
      mean_rate: step of the mean and of the medians.
      chunk: steps of full batches between two measurements; four are made at least.
    """

    curves: tuple[str, ...] = ()
    data: str = "mnist5k"
    batch_size: Count = 128
    hidden: Count = 128
    chunk: Count = 25
    scales: tuple[float, ...] = (0.0, 1e-5, 1e-3, 0.01, 0.03, 0.1)
    systematic_scales: tuple[float, ...] = (0.01, 0.03, 0.1)
    coordinate_factors: tuple[float, ...] = ()
    median_scales: tuple[float, ...] = (0.0, 0.1)
    unbiased: bool = False
    batch_scales: tuple[float, ...] = (0.0, 0.01)
    full_batch_divisor: Count = 1
    full_batch_seeds: Count | None = None
    validation: int = 8
    vote_rate: float = 1e-3
    mean_rate: float = 0.1

    def __post_init__(self) -> None:
        for name in ("scales", "systematic_scales", "median_scales", "batch_scales"):
            if any(not 0 <= scale < math.inf for scale in getattr(self, name)):
                raise ValueError(
                    f"`{name}` must be finite and >= 0; got {getattr(self, name)}."
                )

    def problem(self) -> Problem:
        """Loads the data and builds the networks."""
        return load_problem(
            *(self.data, self.hidden, self.num_seeds, self.data_dir),
            validation=self.validation,
        )


_FOUR_CURVES = Config(
    scales=(0.0, 0.01),
    systematic_scales=(0.01,),
    median_scales=(),
    batch_scales=(),
    num_seeds=1,
)
_PAPER = Config(
    data="mnist",
    num_steps=50_000,
    full_batch_divisor=5,
    full_batch_seeds=1,
    validation=0,
    chunk=50,
    scales=(0.0, 1e-5, 1e-3, 0.01),
    systematic_scales=(0.01,),
    coordinate_factors=(1.0,),
    median_scales=(),
    unbiased=True,
    batch_scales=(0.0,),
)
PRESETS = {
    "quick": _FOUR_CURVES,
    "paper": _PAPER,
    "tiny": tiny(_FOUR_CURVES, scales=_FOUR_CURVES.scales, num_steps=4, chunk=2),
}
