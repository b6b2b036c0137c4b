"""Two neighbouring order statistics A <= B, such as the two middle ones: covariance.

Needed for the variance of the midpoint (A + B) / 2. Hoeffding's formula, Cov(A, B) =
double integral of P(A <= x, B <= y) - F_A(x) F_B(y), turns into

    int int_{y < x} F_B(y) S_A(x) + int int_{x < y} (F_A(x) S_B(y) - P(A <= x, B > y)),
    P(A <= x, B > y) = [z^k] prod_i (z H(x - w_i) + H(w_i - y)),

for A of rank k (M / 2 for the middle of an even M). Only the last term is truly two-
dimensional, and it is negligible a few gaps away from the diagonal. Unlike E(B - A)^2
this stays accurate when A and B lie many noise scales apart. Lengths are in units of
the noise scale. One coordinate at a time.
"""

import itertools
from typing import NamedTuple

import numpy as np

from jaxmedian.noise.laws import Law
from jaxmedian.theory.arguments import Array
from jaxmedian.theory.numerics.order_statistics import (
    NEGLIGIBLE,
    interval,
    kinks_between,
    reach,
    tails,
)
from jaxmedian.theory.numerics.poisson_binomial import count_coefficient
from jaxmedian.theory.numerics.quadrature import gauss_legendre, triangle_weights

_ORDER = 10
_WIDEST = 1.5  # logistic CDFs have poles at a distance of sqrt(3)
_GAPS_A_PANEL = 6.0  # the joint law decays like exp(-distance / gap)
_MANY_KINKS, _LOW_ORDER = 24, 5  # many kinks make panels narrow: fewer nodes suffice
_CHUNK = 2**18


class Grid(NamedTuple):
    """The rank of A, panels over the ranges of A and B, and which each range meets."""

    rank: int
    edges: Array
    order: int
    of_a: np.ndarray
    of_b: np.ndarray


class Pairs(NamedTuple):
    """Quadrature over x < y: nodes [N], and pairs of them with weights, [P] each."""

    nodes: Array
    x: np.ndarray
    y: np.ndarray
    weight: Array


def covariance(law: Law, w: Array, gap: float, rank: int) -> float:
    """Computes Cov(A, B) by the formula above.

    Args:
      law: of the noise.
      w: [M] centres, with that of A's rank at 0.
      gap: E(B - A), which says how finely to divide.
      rank: of A, from 1; B has the next.

    Returns:
      The covariance in units of the squared noise scale.
    """
    if are_apart(law, w, rank):
        return 0.0
    grid = panel_grid(law, w, gap, rank)
    nodes, _ = gauss_legendre(grid.edges[:-1], grid.edges[1:], grid.order)
    below_a, above_a = tails(law, w[:, None, None], nodes, rank)
    below_b, above_b = tails(law, w[:, None, None], nodes, rank + 1)
    pairs = ordered_pairs(law, w, grid)
    below, above = law.cdf(pairs.nodes - w[:, None]), law.cdf(w[:, None] - pairs.nodes)
    # Cell by cell: the nodes of x times the nodes of y, broadcast and never copied.
    cell = (-1, grid.order, grid.order)
    first = pairs.x.reshape(cell)[:, :, 0]
    second = pairs.y.reshape(cell)[:, 0, :]
    weight = pairs.weight.reshape(cell)
    joint = 0.0
    for part in chunks(len(weight), len(w) * grid.order**2):
        p, s = below[:, first[part], None], above[:, second[part][:, None]]
        joint += float((weight[part] * count_coefficient(p, s, rank)).sum())
    return (
        _over_triangle(grid, below_b, above_a)
        + _over_triangle(
            grid, below_a * grid.of_a[:, None], above_b * grid.of_b[:, None]
        )
        - joint
    )


def are_apart(law: Law, w: Array, rank: int) -> bool:
    """Says whether no noise takes those up to A past those from B on.

    A and B are then functions of different workers, and independent.
    """
    return bool(np.sort(w)[rank] > 2 * reach(law, len(w)))


def panel_grid(law: Law, w: Array, gap: float, rank: int) -> Grid:
    """Divides the ranges of A and B into panels on which all CDFs are smooth."""
    upper = np.sort(w)[rank]
    a = [float(end[0]) for end in interval(law, w[:, None], rank)]
    b = [float(end[0] + upper) for end in interval(law, w[:, None] - upper, rank + 1)]
    kinks = kinks_between(law, w, a[0], b[2])
    many = len(kinks) > _MANY_KINKS
    pieces = [kinks]
    ends = np.unique([a[0], a[2], b[0], b[2]])
    for low, high in itertools.pairwise(ends):
        if low >= a[2] and high <= b[0]:
            continue  # between the two ranges
        width = min(_WIDEST, _GAPS_A_PANEL * gap, (high - low) / 6) / (3 if many else 1)
        pieces.append(np.linspace(low, high, int(np.ceil((high - low) / width)) + 1))
    edges = np.unique(np.concatenate(pieces))
    middle = 0.5 * (edges[1:] + edges[:-1])
    return Grid(
        rank,
        edges,
        _LOW_ORDER if many else _ORDER,
        (middle > a[0]) & (middle < a[2]),
        (middle > b[0]) & (middle < b[2]),
    )


def ordered_pairs(law: Law, w: Array, grid: Grid) -> Pairs:
    """Lists nodes x < y, x in the range of A and y in that of B.

    Cells where P(A <= x, B > y) is negligible even with x at the right end and y at the
    left end are left out.
    """
    left, right, order = grid.edges[:-1], grid.edges[1:], grid.order
    nodes, weights = gauss_legendre(left, right, order)
    first, second = np.nonzero(np.triu(grid.of_a[:, None] & grid.of_b))
    below = law.cdf(right[first] - w[:, None])
    above = law.cdf(w[:, None] - left[second])
    keep = count_coefficient(below, above, grid.rank) > NEGLIGIBLE
    first, second = first[keep], second[keep]
    weight = weights[first][:, :, None] * weights[second][:, None, :]
    same = first == second
    half = 0.5 * (right - left)[first[same]]
    weight[same] = triangle_weights(order) * half[:, None, None] ** 2
    offsets = np.arange(order)
    x = (first[:, None] * order + offsets)[:, :, None]
    y = (second[:, None] * order + offsets)[:, None, :]
    return Pairs(
        nodes.ravel(),
        np.broadcast_to(x, weight.shape).ravel(),
        np.broadcast_to(y, weight.shape).ravel(),
        weight.ravel(),
    )


def chunks(num_pairs: int, num_workers: int) -> list[slice]:
    """Splits the pairs so that [M, chunk] arrays stay in cache."""
    size = max(1, _CHUNK // num_workers)
    return [slice(start, start + size) for start in range(0, num_pairs, size)]


def _over_triangle(grid: Grid, f: Array, g: Array) -> float:
    """Integrates f(x) g(y) over x < y, f and g given at the nodes [panels, order]."""
    _, weights = gauss_legendre(grid.edges[:-1], grid.edges[1:], grid.order)
    f_mass, g_mass = (weights * f).sum(axis=1), (weights * g).sum(axis=1)
    apart = ((np.cumsum(f_mass) - f_mass) * g_mass).sum()
    half = 0.5 * np.diff(grid.edges)
    together = np.einsum("kx,xy,ky,k->", f, triangle_weights(grid.order), g, half**2)
    return float(apart + together)
