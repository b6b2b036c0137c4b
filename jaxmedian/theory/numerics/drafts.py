"""The search behind `jaxmedian.theory.best_scale`: draws to look around, then exactly.

An objective is a function of b to be minimised. A cheap one is searched as it is: a
logarithmic grid, then a bounded search around its best point. A dear one (many
coordinates or many workers) is drafted by simulation, with one set of draws for all b,
so that the draft is as smooth in b as the objective; 1/8 of the draws serve on the
grid. The value at the scale found so is then computed by the objective itself.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.optimize

from jaxmedian.noise import Coupling
from jaxmedian.noise.laws import LAWS
from jaxmedian.theory.arguments import Array, middle_ranks

Objective = Callable[[float], float]

_GRID_STEP = 0.325  # of log b
_TOLERANCE = 1e-3  # of log b
_DRAFT_TOLERANCE = 1e-2
_MOST_STEPS = 40  # of the bounded search; some 15 suffice
_DRAWS = 2**16  # shared by the coordinates
_MOST_NUMBERS = 2**23  # drawn in all
_FEWEST_DRAWS = 64  # of each coordinate
_COARSE = 8  # 1/8 of the draws serve on the grid


class ScaleChoice(NamedTuple):
    """The best b of one coupling, and what it achieves (see `BestScale.value`)."""

    scale: float
    value: float


def least(
    objective: Objective,
    low: float,
    high: float,
    *,
    bound: Objective | None = None,
    draft: tuple[Objective, Objective] | None = None,
) -> ScaleChoice:
    """Minimises an objective over b = 0 and low <= b <= high; ties go to the smaller b.

    Args:
      objective: to be minimised.
      low: where the grid starts; 0 if b = 0 is the only candidate.
      high: where it ends.
      bound: a cheaper lower bound. The grid is then visited from the most promising
        scale on, until no bound is below the least value found: the others cannot win.
      draft: a coarse and a fine estimate of the objective, to search in its place.
    """
    none = ScaleChoice(0.0, objective(0.0))
    if low == 0:
        return none
    grid = np.geomspace(low, high, 1 + math.ceil(math.log(high / low) / _GRID_STEP))
    on_grid, refined = draft or (objective, objective)
    bounds = np.array([bound(float(b)) if bound else -np.inf for b in grid])
    results = np.full(len(grid), np.inf)
    for k in np.argsort(bounds, kind="stable"):
        if bounds[k] > results.min():
            break
        results[k] = on_grid(float(grid[k]))
    k = int(np.argmin(results))
    found = scipy.optimize.minimize_scalar(
        lambda log_scale: refined(float(np.exp(log_scale))),
        bounds=tuple(np.log([grid[max(k - 1, 0)], grid[min(k + 1, len(grid) - 1)]])),
        method="bounded",
        options={
            "xatol": _DRAFT_TOLERANCE if draft else _TOLERANCE,
            "maxiter": _MOST_STEPS,
        },
    )
    best = float(np.exp(found.x))
    candidates = [none]
    if draft:
        candidates.append(ScaleChoice(best, objective(best)))
    else:
        candidates.append(ScaleChoice(float(grid[k]), float(results[k])))
        candidates.append(ScaleChoice(best, float(found.fun)))
    return min(candidates, key=lambda candidate: candidate.value)


class Draws:
    """Simulated medians and votes of u [M - f, C] and f hostile, for any b.

    One permutation serves all coordinates of a draw, as in training. With every draw
    comes its mirror image, which leaves no sampling error in what is odd in the noise.
    """

    def __init__(self, u: Array, law: str, coupling: Coupling, f: int = 0) -> None:
        self._values = np.ascontiguousarray(u.T)[:, None, :]  # [C, 1, M - f]
        self._f = f
        honest, coordinates = u.shape
        draws = min(_DRAWS, _MOST_NUMBERS // honest)
        pairs = max(_FEWEST_DRAWS, draws // coordinates) // 2
        rng = np.random.default_rng(0)
        shape = (coordinates, pairs, honest)
        if coupling == "independent":
            position = rng.random(shape)
        else:
            order = np.argsort(rng.random((pairs, honest + f)), axis=1)[:, :honest]
            position = rng.random((*shape[:2], 1)) + order / (honest + f)
            position -= position >= 1
        half = LAWS[law].quantile(np.clip(position, 2.0**-54, 1 - 2.0**-53))
        self._noise = np.concatenate([half, -half], axis=1)

    def medians(self, scale: float, ranks: list[int], every: int = 1) -> Array:
        """Returns the values of the ranks among the honest: [C, draws, ranks]."""
        rows = [rank - 1 for rank in ranks]
        noisy = self._noisy(scale, every)
        noisy.partition(rows, axis=2)
        return noisy[:, :, rows]

    def errors(self, scale: float, mean: Array, even: str, every: int = 1) -> float:
        """Estimates the mean squared error of the median under the worst attack."""
        f = self._f
        middle = middle_ranks(self._values.shape[2] + f, even)
        ranks = [*range(middle[0] - f, middle[-1] + 1)]
        found = self.medians(scale, ranks, every)
        worst = np.zeros(len(mean))
        for low in range(f + 1):
            columns = [rank - low - ranks[0] for rank in middle]
            off = found[:, :, columns].mean(axis=2) - mean[:, None]
            worst = np.maximum(worst, (off * off).mean(axis=1))
        return float(worst.mean())

    def votes(
        self, scale: float, against: Array, every: int = 1
    ) -> tuple[Array, Array]:
        """Estimates P(+1) and P(-1), [C], with the hostile voting ``against`` [C]."""
        count = np.count_nonzero(self._noisy(scale, every) > 0, axis=2)
        tally = 2 * count - self._values.shape[2] + self._f * against[:, None]
        return (tally > 0).mean(axis=1), (tally < 0).mean(axis=1)

    def gap_variance(
        self, scale: float, ranks: tuple[int, int], every: int = 1
    ) -> Array:
        """Estimates the variance of the distance of two neighbouring ranks, [C]."""
        found = self.medians(scale, list(ranks), every)
        return (found[:, :, 1] - found[:, :, 0]).var(axis=1)

    def _noisy(self, scale: float, every: int) -> Array:
        return self._values + scale * self._noise[:, ::every]


def drafted(
    objective: Callable[[float, int], float], fine: int = 1
) -> tuple[Objective, Objective]:
    """Returns the objective of b with 1/8 of the draws, and with 1/fine of them."""
    return (
        lambda scale: objective(scale, _COARSE),
        lambda scale: objective(scale, fine),
    )
