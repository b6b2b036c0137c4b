"""How far down a vote goes: the expected descent, as a share of the steepest."""

import numpy as np

import jaxmedian as jm


def expected_descent(
    u: np.ndarray, noise: jm.noise.Noise, weights: np.ndarray | float = 1.0
) -> float:
    """Computes sum_j mean_j E[vote_j] / sum_j |mean_j| of gradients ``[M, C]``.

    Coordinates count as often as ``weights`` [C] say.
    """
    mean = weights * u.mean(axis=0)
    vote = jm.theory.vote_probability(u, noise)
    return float(mean @ (vote.plus - vote.minus) / np.abs(mean).sum())
