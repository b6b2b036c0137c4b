"""Settings of the MNIST curves."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the MNIST runs.

    Attributes:
      scales: b of the vote; 0 is no noise.
      systematic_scales: b of the vote with systematic noise; () for no such curve, here
        and below.
      median_scales: b of the median.
      batch_scales: b of the vote on sub-sampled batches.
      num_workers: M; each holds digits of one class.
      num_seeds: runs of every curve; a seed sets network, noise and batches.
      num_steps: steps of every run.
      vote_rate: step of the votes.
      mean_rate: step of the mean and of the medians.
      batch_size: sub-samples a worker and step, for the curves that say "batch".
      hidden: units of the hidden layer.
      chunk: steps between two measurements.
    """

    scales: tuple[float, ...] = (0.0, 1e-5, 1e-3, 0.01, 0.03, 0.1)
    systematic_scales: tuple[float, ...] = (0.01, 0.03, 0.1)
    median_scales: tuple[float, ...] = (0.0, 0.1)
    batch_scales: tuple[float, ...] = (0.0, 0.01)
    num_workers: int = 10
    num_seeds: int = 5
    num_steps: int = 500
    vote_rate: float = 1e-3
    mean_rate: float = 0.1
    batch_size: int = 128
    hidden: int = 128
    chunk: int = 25


_FOUR_CURVES = Config(
    scales=(0.0, 0.01),
    systematic_scales=(0.01,),
    median_scales=(),
    batch_scales=(),
    num_seeds=1,
)
PRESETS = {
    "quick": _FOUR_CURVES,
    "tiny": dataclasses.replace(_FOUR_CURVES, num_steps=4, hidden=8, chunk=2),
}
