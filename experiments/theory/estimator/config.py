"""Settings of the comparison of estimates."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; the workers' values are exponential, with mean and sd 1.

    Attributes:
      num_workers: M, odd.
      num_sets: data sets, each of M vectors.
      dimension: of the vectors; only the geometric median looks at them as such.
      trim: share that the trimmed mean leaves out on either side.
      law: law of the noise.
      least_exponent: the smallest b is 2 to this power, in standard deviations.
      greatest_exponent: the largest b likewise; there are two b for each power of 2.
      simulated_scales: b of the dots.
      draws: noisy medians of every data set behind each dot.
      hostile_value: what a hostile worker sends in every coordinate.
      hostile_scale: b of the noisy median that meets hostile workers.
      hostile_factor: b over max|g| where the scale follows the values.
      seed: of data and draws.
    """

    num_workers: int = 11
    num_sets: int = 100
    dimension: int = 8
    trim: float = 0.2
    law: str = "gaussian"
    least_exponent: int = -2
    greatest_exponent: int = 5
    simulated_scales: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
    draws: int = 2000
    hostile_value: float = 1e6
    hostile_scale: float = 2.0
    hostile_factor: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_workers < 3 or self.num_workers % 2 == 0:
            raise ValueError(f"`num_workers` must be odd and >= 3: {self.num_workers}.")


PRESETS = {
    "quick": Config(num_sets=40, draws=1000),
    "tiny": Config(
        num_workers=5,
        num_sets=4,
        dimension=2,
        trim=0.25,
        simulated_scales=(1.0,),
        draws=320,
    ),
}
