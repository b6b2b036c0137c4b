"""Settings of `neighbours`, and its presets."""

import dataclasses

from experiments.common.harness.options import Amounts, Count, tiny
from experiments.common.training.problems import TrainingConfig


@dataclasses.dataclass(frozen=True)
class Config(TrainingConfig):
    """Settings of the comparison; workers hold exclusive classes.

    Attributes:
      methods: names of the methods to run; all by default.
      num_steps: steps of every run; the learning rate falls to 0 by a cosine.
      sign_rates: learning rates of votes without noise.
      gradient_rates: learning rates of what approximates a gradient.
      noisy_sign_rates: learning rates of noisy votes.
      noisy_gradient_rates: learning rates of noisy medians.
      noisy_count_rates: learning rates of the mean of noisy signs.
      scales: b of noisy votes and signs.
      median_scales: b of noisy medians.
      factors: of a scale for every coordinate, of votes and medians.
    """

    num_steps: Count = 1000
    chunk: Count = 50
    methods: tuple[str, ...] = ()
    sign_rates: Amounts = (0.003, 0.005, 0.01, 0.02, 0.03, 0.1)
    gradient_rates: Amounts = (0.1, 0.3, 0.5, 1.0, 2.0, 3.0)
    noisy_sign_rates: Amounts = (0.01, 0.03, 0.1)
    noisy_gradient_rates: Amounts = (0.3, 1.0, 3.0)
    noisy_count_rates: Amounts = (0.1, 0.3, 1.0)
    scales: Amounts = (0.03, 0.1)
    median_scales: Amounts = (0.1, 0.3)
    factors: Amounts = (1.0, 2.0)


PRESETS = {
    "quick": Config(
        num_steps=300,
        sign_rates=(0.01, 0.03),
        gradient_rates=(0.3, 1.0),
        noisy_sign_rates=(0.03,),
        noisy_gradient_rates=(1.0,),
        noisy_count_rates=(0.3,),
    ),
    "mnist5k": Config(
        data="mnist5k",
        num_steps=3000,
        batch_size=64,
        hidden=128,
        sign_rates=(0.001, 0.003, 0.005, 0.01),
        gradient_rates=(0.3, 0.5, 1.0, 2.0),
        noisy_sign_rates=(0.003, 0.01),
        noisy_gradient_rates=(0.3, 1.0),
        noisy_count_rates=(0.3, 1.0),
        scales=(0.01, 0.03),
        chunk=100,
    ),
    "tiny": tiny(Config(), methods=("EF-signSGD",)),
}
