"""Which coupling wins on random workers whose noise-free vote is wrong.

Each setting is a set of worker values whose majority has not the sign of the mean. The
couplings are compared at equal b and at each one's own best b, by the exact probability
that the vote has the sign of the mean.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

import jaxmedian as jm

MARGIN = 0.01  # a difference of probabilities below this is a draw


class Score(NamedTuple):
    """Shares of the settings that systematic noise wins and loses by the margin."""

    wins: float
    losses: float


def draw(
    number: int, num_workers: Sequence[int], seed: int
) -> list[NDArray[np.float64]]:
    """Draws settings, taking turns with the numbers of workers.

    The values are exponential and shifted by a uniform amount around their mean and
    median; draws whose noise-free vote is right are thrown away.

    Args:
      number: of settings.
      num_workers: M, odd.
      seed: of the draws.

    Returns:
      That many arrays [M].
    """
    rng = np.random.default_rng(seed)
    settings: list[NDArray[np.float64]] = []
    while len(settings) < number:
        size = num_workers[len(settings) % len(num_workers)]
        values = rng.exponential(size=size) - rng.uniform(0.5, 1.2)
        if np.median(values) * values.mean() < 0:
            settings.append(values)
    return settings


def at_best_scale(settings: Sequence[NDArray[np.float64]], law: str) -> Score:
    """Scores the couplings at the best b of each, for each setting."""
    best = [jm.theory.best_scale(values, law, "vote") for values in settings]
    return _score([found.systematic.value - found.independent.value for found in best])


def at_equal_scale(
    settings: Sequence[NDArray[np.float64]], law: str, relative: float
) -> Score:
    """Scores the couplings at b = ``relative`` standard deviations of each setting."""
    differences = []
    for values in settings:
        right = []
        for coupling in ("systematic", "independent"):
            noise = jm.noise.Noise(law, relative * float(values.std()), coupling)
            vote = jm.theory.vote_probability(values, noise)
            right.append(vote.plus if values.mean() > 0 else vote.minus)
        differences.append(right[0] - right[1])
    return _score(differences)


def _score(differences: Sequence[float]) -> Score:
    array = np.array(differences)
    return Score(float((array > MARGIN).mean()), float((array < -MARGIN).mean()))
