"""Which of our rules and attacks are a peer's too, and how to call theirs alike."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import jaxmedian as jm
from experiments.common.harness.installed import (
    installed_byzfl,
    installed_krum,
    installed_torch,
)

KEY = 0  # of our buckets

Update = Callable[[np.ndarray], Any]


class Pair(NamedTuple):
    """One rule, ours and a peer's.

    Attributes:
      name: the rule and whose.
      ours: f -> transformation.
      theirs: f -> function of float64 rows ``[M, d]`` (of the honest, for an attack).
      least: times faster than theirs that is expected at M = 25, d = 1,000,000: 5 of
        what goes coordinate by coordinate, 2 of what looks at distances, 1 of buckets;
        None of clipping, whose time is that of writing M rows.
      is_attack: whether ours replaces the last f rows, theirs returns one of them.
      most_workers: M of the largest cases: ByzFL lists all M over f subsets.
    """

    name: str
    ours: Callable[[int], optax.GradientTransformation]
    theirs: Callable[[int], Update]
    least: float | None = 5.0
    is_attack: bool = False
    most_workers: int = 25


def pairs() -> list[Pair]:
    """Lists what we share with the peers that are installed."""
    shared = []
    if (theirs := installed_byzfl()) is not None:
        shared += _byzfl_rules(theirs) + _byzfl_attacks(theirs)
    if (package := installed_krum()) is not None:
        shared += _krum_rules(package)
    return shared


def _byzfl_rules(byzfl: Any) -> list[Pair]:
    return [
        Pair("trimmed mean, ByzFL", jm.trimmed_mean, byzfl.TrMean),
        Pair("mean around median, ByzFL", jm.mean_around_median, byzfl.Meamed),
        Pair(
            "Krum, ByzFL",
            _with_byzfl_neighbors(jm.krum),
            byzfl.Krum,
            least=2.0,
        ),
        Pair(
            "multi-Krum, ByzFL",
            _with_byzfl_neighbors(jm.multi_krum),
            byzfl.MultiKrum,
            least=2.0,
        ),
        Pair(
            "geometric median, ByzFL",
            lambda f: jm.geometric_median(0.1, 0.0, 3, start="zeros"),
            lambda f: byzfl.GeometricMedian(nu=0.1, T=3),
            least=2.0,
        ),
        Pair(
            "centered clipping, ByzFL",
            lambda f: jm.centered_clipping(2.0, 2),
            lambda f: byzfl.CenteredClipping(L=2, tau=2.0),
            least=2.0,
        ),
        Pair(
            "minimum diameter, ByzFL",
            jm.minimum_diameter_mean,
            byzfl.MDA,
            least=2.0,
            most_workers=11,
        ),
        Pair(
            "nearest-neighbor mixing, ByzFL",
            jm.nearest_neighbor_mixing,
            byzfl.NNM,
            least=2.0,
        ),
        Pair(
            "clipping, ByzFL",
            lambda f: jm.clip_workers(2.0),
            lambda f: lambda x: byzfl.Clipping(2.0)(x.copy()),  # it writes into x
            least=None,
        ),
        Pair(
            "adaptive clipping, ByzFL",
            jm.adaptive_clip_workers,
            lambda f: lambda x: byzfl.ARC(f)(x.copy()),  # so does this
            least=None,
        ),
        Pair(
            "bucketing, ByzFL",
            lambda f: jm.bucketing(2, KEY),
            lambda f: lambda x: _buckets_in_our_order(byzfl, x),
            least=1.0,
        ),
    ]


class _NeighborsOfByzfl(NamedTuple):
    """M - f - 1 neighbours: known once M is."""

    rule: Callable[..., optax.GradientTransformationExtraArgs]
    f: int

    def init(self, params: Any) -> Any:
        return self.rule(self.f).init(params)

    def update(self, updates: Any, state: Any, params: Any = None) -> Any:
        neighbors = updates.shape[0] - self.f - 1
        return self.rule(self.f, neighbors).update(updates, state, params)


def _with_byzfl_neighbors(rule: Callable[..., Any]) -> Callable[[int], Any]:
    return lambda f: _NeighborsOfByzfl(rule, f)


def _buckets_in_our_order(byzfl: Any, x: np.ndarray) -> np.ndarray:
    """Runs ByzFL's bucketing with the order of our first step in place of its own."""
    key = jax.random.fold_in(jax.random.key(KEY), 0)
    order = np.asarray(
        jax.random.permutation(jax.random.fold_in(key, np.uint32(2**31 + 1)), len(x))
    )
    drawn = np.random.permutation
    np.random.permutation = lambda rows: rows[order]
    try:
        return byzfl.Bucketing(2)(x)
    finally:
        np.random.permutation = drawn


def _byzfl_attacks(byzfl: Any) -> list[Pair]:
    attacks = jm.attacks

    def last(attack: Callable[..., Any], **options: Any) -> Callable[[int], Any]:
        """Attacks with the last f of the workers, however many there are."""
        return lambda f: _LastWorkers(attack, f, options)

    return [
        Pair(
            "sign flip, ByzFL",
            last(attacks.sign_flip),
            lambda f: byzfl.SignFlipping(),
            is_attack=True,
        ),
        Pair(
            "inner-product manipulation, ByzFL",
            last(attacks.inner_product_manipulation, scale=2.0),
            lambda f: byzfl.InnerProductManipulation(2.0),
            is_attack=True,
        ),
        Pair(
            "a little is enough, ByzFL",
            last(attacks.a_little_is_enough, scale=1.5),
            lambda f: byzfl.ALittleIsEnough(1.5),
            is_attack=True,
        ),
        Pair(
            "mimic, ByzFL",
            last(attacks.mimic, target=1),
            lambda f: byzfl.Mimic(1),
            is_attack=True,
        ),
        Pair("inf, ByzFL", last(attacks.inf), lambda f: byzfl.Inf(), is_attack=True),
        Pair(
            "strongest inner-product manipulation, ByzFL",
            lambda f: _LastWorkers(
                _strongest(attacks.inner_product_manipulation, f), f
            ),
            lambda f: _best_of(
                SCALES,
                _optimal(byzfl, byzfl.Optimal_InnerProductManipulation, f),
                byzfl.InnerProductManipulation,
            ),
            is_attack=True,
        ),
        Pair(
            "strongest a little is enough, ByzFL",
            lambda f: _LastWorkers(_strongest(attacks.a_little_is_enough, f), f),
            lambda f: _best_of(
                SCALES,
                _optimal(byzfl, byzfl.Optimal_ALittleIsEnough, f),
                byzfl.ALittleIsEnough,
            ),
            is_attack=True,
        ),
    ]


SCALES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


def _strongest(attack: Callable[..., Any], f: int) -> Callable[..., Any]:
    """Tries the scales on a trimmed mean: what it trims does the same harm, exactly."""
    rule = jm.trimmed_mean(f)

    def attack_of(workers: Any) -> optax.GradientTransformationExtraArgs:
        return jm.attacks.strongest(attack, rule, workers, scales=SCALES)

    return attack_of


def _optimal(byzfl: Any, attack: Any, f: int) -> Any:
    return attack(byzfl.TrMean(f), [], f)


def _best_of(
    scales: Sequence[float], optimal: Any, attack: Callable[[float], Update]
) -> Update:
    """Asks ByzFL how harmful our scales are, in place of those that it would try."""

    def update(x: np.ndarray) -> Any:
        mean = x.mean(axis=0)
        best = max(scales, key=lambda scale: optimal._evaluate(x, mean, scale))
        return attack(best)(x)

    return update


class _LastWorkers(NamedTuple):
    """An attack by the last f workers: known once M is."""

    attack: Callable[..., optax.GradientTransformationExtraArgs]
    f: int
    options: Mapping[str, Any] = MappingProxyType({})

    def init(self, params: Any) -> Any:
        return self.attack([0], **self.options).init(params)

    def update(self, updates: Any, state: Any, params: Any = None) -> Any:
        num_workers = updates.shape[0]
        workers = range(num_workers - self.f, num_workers)
        return self.attack(workers, **self.options).update(updates, state, params)


def _krum_rules(krum: Any) -> list[Pair]:
    torch = installed_torch()

    def theirs(rule: Any, **options: Any) -> Callable[[int], Update]:
        def update(x: np.ndarray, f: int) -> np.ndarray:
            rows = torch.from_numpy(x)
            return rule.aggregate(rows, n=len(x), f=f, **options).numpy()

        return lambda f: lambda x: update(x, f)

    return [
        Pair("Krum, krum", jm.krum, theirs(krum.Krum), least=2.0),
        Pair("trimmed mean, krum", jm.trimmed_mean, theirs(krum.TrimmedMean)),
        Pair(
            "geometric median, krum",
            lambda f: jm.geometric_median(0.1, 0.0, 20),
            theirs(krum.GeometricMedian, nu=0.1, tol=0.0, max_iter=20),
            least=2.0,
        ),
    ]
