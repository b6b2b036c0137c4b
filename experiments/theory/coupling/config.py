"""Settings of the comparison of couplings, and the two settings of its claims."""

import dataclasses

import numpy as np

import jaxmedian as jm

LAWS = ("gaussian", "uniform")
COUPLINGS = jm.noise.COUPLINGS

# Where noise is best for the vote, and where too little noise sharpens a wrong one.
TEN_OF_101 = (1.0,) * 10 + (-0.05,) * 91
TWO_OF_11 = (-0.1,) * 9 + (1.0,) * 2


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the curves. b is in standard deviations of the values.

    Attributes:
      values: u of the curves, [M], M odd; few different ones, so that all permutations
        can be gone through.
      least_scale: smallest b.
      greatest_scale: largest b.
      num_scales: points of each curve.
      simulated_scales: b of the dots.
      num_steps: steps behind each dot, each with a permutation of its own.
      coordinates: votes of one step.
      num_settings: random settings on which the couplings compete.
      setting_workers: M of the random settings, taking turns.
      median_draws: draws behind the standard deviations of the medians.
      seed: of dots, settings and draws.
    """

    values: tuple[float, ...] = TWO_OF_11
    least_scale: float = 0.1
    greatest_scale: float = 100.0
    num_scales: int = 121
    simulated_scales: tuple[float, ...] = (0.7, 1.0, 1.5, 2.0, 3.0, 10.0, 20.0)
    num_steps: int = 4000
    coordinates: int = 256
    num_settings: int = 306
    setting_workers: tuple[int, ...] = (5, 11, 31)
    median_draws: int = 200_000
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.values) % 2 == 0:
            raise ValueError("`values` needs an odd number of workers, or votes tie.")
        if np.mean(self.values) == 0 or np.std(self.values) == 0:
            raise ValueError(
                "`values` needs a mean other than 0, whose sign the vote may have, and "
                "two different values; change one of them."
            )


PRESETS = {
    "quick": Config(num_scales=61, num_steps=1000, num_settings=60),
    "tiny": Config(
        num_scales=31,
        simulated_scales=(1.0, 1.5),
        num_steps=200,
        coordinates=64,
        num_settings=12,
        setting_workers=(5, 11),
        median_draws=10_000,
    ),
}
