"""Settings of the skewed gradients and of the digits."""

import dataclasses

import jaxmedian as jm

COUPLINGS = jm.noise.COUPLINGS
LAWS = tuple(jm.noise.LAWS)


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the skewed gradients and of the digits.

    Attributes:
      num_workers: M of the medians, one choice each.
      vote_workers: M of the votes, odd.
      heterogeneities: of the votes: standard deviation over workers / mean.
      num_coordinates: coordinates that share a b.
      small_scale: a b too small to cure wrong votes, in standard deviations.
      digit_workers: M of the digits; each holds one class.
      sample_steps: steps of SGD by the mean, at whose end gradients are sampled.
      mean_rate: its step.
      sample_size: coordinates sampled.
      train_steps: steps of the runs that try the choice.
      learning_rate: delta of the vote on digits.
      hidden: units of the hidden layer.
      seed: of everything.
    """

    num_workers: tuple[int, ...] = (3, 5, 11, 31)
    vote_workers: int = 11
    heterogeneities: tuple[float, ...] = (0.5, 1, 2, 4, 8, 16)
    num_coordinates: int = 16
    small_scale: float = 0.3
    digit_workers: int = 10
    sample_steps: int = 25
    mean_rate: float = 0.1
    sample_size: int = 200
    train_steps: int = 500
    learning_rate: float = 1e-3
    hidden: int = 128
    seed: int = 0


PRESETS = {
    "quick": Config(num_workers=(3, 11), num_coordinates=8, train_steps=300),
    "tiny": Config(
        num_workers=(3, 5),
        vote_workers=5,
        heterogeneities=(0.5, 8),
        num_coordinates=2,
        sample_steps=2,
        sample_size=20,
        train_steps=2,
        hidden=4,
    ),
}
