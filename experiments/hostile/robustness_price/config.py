"""Settings of the price of robustness."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; b of medians and votes is in standard deviations of the values.

    Attributes:
      median_workers: M of the exact medians, odd and at most 8.
      median_coordinates: exponential columns that they are averaged over.
      vote_workers: M of the exact votes, odd.
      vote_coordinates: columns that they are averaged over.
      shift: what is taken off the exponentials of the votes; their mean is 1 - shift,
        and near .69 the vote without noise is a toss-up.
      law: law of the noise.
      scales: b of medians and votes, from 0 on.
      draws: medians of jm.perturbed_median that check the exact ones.
      rules: of the digits: "vote", "median".
      digit_workers: M of the digits.
      digit_hostile: how many of them are hostile.
      digit_scales: b of the digits, from 0 on.
      alpha: of the Dirichlet split of the digits.
      num_seeds: runs of each setting.
      num_steps: steps of every run; the learning rate falls to 0 by a cosine.
      batch_size: samples a worker and step.
      hidden: units of the hidden layer.
      vote_rate: learning rate of the vote.
      median_rate: learning rate of the median.
      seed: of the values and draws.
    """

    median_workers: int = 7
    median_coordinates: int = 10
    vote_workers: int = 11
    vote_coordinates: int = 400
    shift: float = 0.7
    law: str = "uniform"
    scales: tuple[float, ...] = (0.0, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
    draws: int = 20_000
    rules: tuple[str, ...] = ("vote", "median")
    digit_workers: int = 11
    digit_hostile: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    digit_scales: tuple[float, ...] = (0.0, 0.01, 0.03, 0.1, 0.3)
    alpha: float = 0.3
    num_seeds: int = 5
    num_steps: int = 500
    batch_size: int = 32
    hidden: int = 32
    vote_rate: float = 0.01
    median_rate: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("median_workers", "vote_workers", "digit_workers"):
            number = getattr(self, name)
            if number < 3 or number % 2 == 0:
                raise ValueError(f"`{name}` must be odd and >= 3; got {number}.")
        unknown = [rule for rule in self.rules if rule not in ("vote", "median")]
        if unknown:
            raise ValueError(f"`rules` takes vote and median; got {unknown}.")
        if any(not 0 <= f <= self.digit_workers // 2 for f in self.digit_hostile):
            raise ValueError(
                "`digit_hostile` must be numbers from 0 to (M - 1) / 2 = "
                f"{self.digit_workers // 2}; got {self.digit_hostile}."
            )


PRESETS = {
    "quick": Config(
        median_workers=5,
        median_coordinates=40,
        rules=("vote",),
        digit_hostile=(0, 1, 3, 5),
        num_seeds=3,
        num_steps=300,
    ),
    "tiny": Config(
        median_workers=3,
        median_coordinates=3,
        vote_workers=3,
        vote_coordinates=20,
        scales=(0.0, 1.0, 8.0),
        draws=2000,
        rules=("vote",),
        digit_workers=3,
        digit_hostile=(0, 1),
        digit_scales=(0.0, 0.1),
        num_seeds=2,
        num_steps=2,
        hidden=4,
    ),
}
