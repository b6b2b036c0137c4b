"""Gauss-Legendre quadrature on panels, adaptive and vectorised over many integrals.

A panel is an interval with an owner (the coordinate whose integral it belongs to). A
panel is accepted when its value and that of its two halves agree; the halves are kept,
whose error is smaller again by 2^(2 * order). Callers split at the points where their
integrand is not smooth. Nothing here knows what is integrated.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxmedian.theory.arguments import Array

ORDER = 12
_MAX_HALVINGS = 40

Integrand = Callable[[Array, np.ndarray], Array]


class Panels(NamedTuple):
    """Intervals and the coordinates they belong to, each field [P]."""

    left: Array
    right: Array
    owner: np.ndarray


@functools.cache
def _unit_rule(order: int) -> tuple[Array, Array]:
    """Returns nodes and weights on [-1, 1]."""
    points, weights = np.polynomial.legendre.leggauss(order)
    return points, weights


def gauss_legendre(
    left: Array, right: Array, order: int = ORDER
) -> tuple[Array, Array]:
    """Returns nodes and weights [..., order] for intervals of any shape [...]."""
    points, weights = _unit_rule(order)
    half = (0.5 * (right - left))[..., None]
    centre = (0.5 * (right + left))[..., None]
    return centre + half * points, half * weights


def panels_between(edges: Array, owner: int | np.ndarray = 0) -> Panels:
    """Makes panels of sorted edges [K] or [C, K]; empty ones are dropped."""
    edges = np.atleast_2d(edges)
    owners = np.broadcast_to(np.asarray(owner), edges.shape[:1])
    left, right = edges[:, :-1], edges[:, 1:]
    keep = right > left
    owner = np.broadcast_to(owners[:, None], left.shape)
    return Panels(left[keep], right[keep], owner[keep])


def integrate(
    integrand: Integrand, panels: Panels, tolerance: Array, order: int = ORDER
) -> Array:
    """Integrates several functions for several owners.

    Args:
      integrand: (nodes [P, order], owner [P]) -> values [K, P, order].
      panels: where to start; each owner's panels cover its interval.
      tolerance: [K, C] disagreement between a panel and its halves that is accepted.
      order: nodes a panel.

    Returns:
      [K, C] integrals.
    """
    totals = np.zeros(tolerance.shape)
    if not panels.left.size:
        return totals
    coarse = _panel_integrals(integrand, panels, order)
    for _ in range(_MAX_HALVINGS):
        middle = 0.5 * (panels.left + panels.right)
        halves = Panels(
            np.stack([panels.left, middle], 1).ravel(),
            np.stack([middle, panels.right], 1).ravel(),
            np.repeat(panels.owner, 2),
        )
        fine = _panel_integrals(integrand, halves, order)
        pairs = fine.reshape(fine.shape[0], -1, 2).sum(axis=2)
        allowed = tolerance[:, panels.owner]
        done = (np.abs(pairs - coarse) <= allowed).all(axis=0)
        for total, values in zip(totals, pairs, strict=True):
            np.add.at(total, panels.owner[done], values[done])
        if done.all():
            return totals
        again = np.repeat(~done, 2)
        panels = Panels(*(field[again] for field in halves))
        coarse = fine[:, again]
    for total, values in zip(totals, coarse, strict=True):
        np.add.at(total, panels.owner, values)
    return totals


def _panel_integrals(integrand: Integrand, panels: Panels, order: int) -> Array:
    nodes, weights = gauss_legendre(panels.left, panels.right, order)
    return (integrand(nodes, panels.owner) * weights).sum(axis=-1)


@functools.cache
def triangle_weights(order: int) -> Array:
    """Returns W with int_{-1}^{1} dx int_x^1 dy f(x, y) = sum_ab W_ab f(x_a, x_b).

    Exact for polynomials of degree < order in y and total degree < 2 order - 1: the
    inner integral of the Lagrange polynomials is done exactly.
    """
    points, weights = _unit_rule(order)
    inner, inner_weights = gauss_legendre(points, np.ones(order), order)
    basis = np.ones((order, order, order))  # [x, y, polynomial]
    for b in range(order):
        for c in range(order):
            if c != b:
                basis[:, :, b] *= (inner - points[c]) / (points[b] - points[c])
    return weights[:, None] * np.einsum("xy,xyb->xb", inner_weights, basis)
