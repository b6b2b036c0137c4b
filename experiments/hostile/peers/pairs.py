"""Which of our rules and attacks are a peer's too, and how to call theirs alike."""

import functools
from collections.abc import Callable, Sequence
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
from jaxmedian.noise import keys

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


# least: of what looks at distances; is_attack: what replaces rows.
_Distant = functools.partial(Pair, least=2.0)
_Attack = functools.partial(Pair, is_attack=True)


def _byzfl_rules(byzfl: Any) -> list[Pair]:
    def krum(rule: Any) -> Callable[[int], Any]:
        return lambda f: _KnownLater(lambda m: rule(f, m - f - 1))

    return [
        Pair("trimmed mean, ByzFL", jm.trimmed_mean, byzfl.TrMean),
        Pair("mean around median, ByzFL", jm.mean_around_median, byzfl.Meamed),
        _Distant("Krum, ByzFL", krum(jm.krum), byzfl.Krum),
        _Distant("multi-Krum, ByzFL", krum(jm.multi_krum), byzfl.MultiKrum),
        _Distant(
            "geometric median, ByzFL",
            lambda f: jm.geometric_median(0.1, 0.0, 3, start="zeros"),
            lambda f: byzfl.GeometricMedian(nu=0.1, T=3),
        ),
        _Distant(
            "centered clipping, ByzFL",
            lambda f: jm.centered_clipping(2.0, 2),
            lambda f: byzfl.CenteredClipping(L=2, tau=2.0),
        ),
        _Distant(
            "minimum diameter, ByzFL",
            *(jm.minimum_diameter_mean, byzfl.MDA),
            most_workers=11,
        ),
        _Distant(
            "nearest-neighbor mixing, ByzFL", jm.nearest_neighbor_mixing, byzfl.NNM
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


class _KnownLater(NamedTuple):
    """A transformation that depends on the number of workers: ``build(M)``.

    No state of theirs does, so it is made for a number that any f of the cases allows.
    """

    build: Callable[[int], optax.GradientTransformationExtraArgs]

    def init(self, params: Any) -> Any:
        return self.build(25).init(params)

    def update(self, updates: Any, state: Any, params: Any = None) -> Any:
        return self.build(updates.shape[0]).update(updates, state, params)


def _buckets_in_our_order(byzfl: Any, x: np.ndarray) -> np.ndarray:
    """Runs ByzFL's bucketing with the order of our first step in place of its own."""
    key = jax.random.fold_in(jax.random.key(KEY), 0)
    key = jax.random.fold_in(key, keys.BUCKET_ORDER)
    order = np.asarray(jax.random.permutation(key, len(x)))
    drawn = np.random.permutation
    np.random.permutation = lambda rows: rows[order]
    try:
        return byzfl.Bucketing(2)(x)
    finally:
        np.random.permutation = drawn


def _byzfl_attacks(byzfl: Any) -> list[Pair]:
    attacks = jm.attacks
    inner, little = attacks.inner_product_manipulation, attacks.a_little_is_enough

    def last(attack: Any, **options: Any) -> Callable[[int], Any]:
        """Attacks with the last f of the workers, however many there are."""
        return lambda f: _KnownLater(lambda m: attack(range(m - f, m), **options))

    def strongest(attack: Any) -> Callable[[int], Any]:
        """Tries the scales on a trimmed mean: what it trims does the same harm."""
        return lambda f: _KnownLater(
            lambda m: attacks.strongest(
                attack, jm.trimmed_mean(f), range(m - f, m), scales=SCALES
            )
        )

    def optimal(attack: Any, simple: Any) -> Callable[[int], Update]:
        return lambda f: _best_of(SCALES, attack(byzfl.TrMean(f), [], f), simple)

    return [
        _Attack(
            "sign flip, ByzFL", last(attacks.sign_flip), lambda f: byzfl.SignFlipping()
        ),
        _Attack(
            "inner-product manipulation, ByzFL",
            last(inner, scale=2.0),
            lambda f: byzfl.InnerProductManipulation(2.0),
        ),
        _Attack(
            "a little is enough, ByzFL",
            last(little, scale=1.5),
            lambda f: byzfl.ALittleIsEnough(1.5),
        ),
        _Attack(
            "mimic, ByzFL", last(attacks.mimic, target=1), lambda f: byzfl.Mimic(1)
        ),
        _Attack("inf, ByzFL", last(attacks.inf), lambda f: byzfl.Inf()),
        _Attack(
            "strongest inner-product manipulation, ByzFL",
            strongest(inner),
            optimal(
                byzfl.Optimal_InnerProductManipulation, byzfl.InnerProductManipulation
            ),
        ),
        _Attack(
            "strongest a little is enough, ByzFL",
            strongest(little),
            optimal(byzfl.Optimal_ALittleIsEnough, byzfl.ALittleIsEnough),
        ),
    ]


SCALES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


def _best_of(
    scales: Sequence[float], optimal: Any, attack: Callable[[float], Update]
) -> Update:
    """Asks ByzFL how harmful our scales are, in place of those that it would try."""

    def update(x: np.ndarray) -> Any:
        mean = x.mean(axis=0)
        best = max(scales, key=lambda scale: optimal._evaluate(x, mean, scale))
        return attack(best)(x)

    return update


def _krum_rules(krum: Any) -> list[Pair]:
    torch = installed_torch()

    def theirs(rule: Any, **options: Any) -> Callable[[int], Update]:
        def update(x: np.ndarray, f: int) -> np.ndarray:
            rows = torch.from_numpy(x)
            return rule.aggregate(rows, n=len(x), f=f, **options).numpy()

        return lambda f: lambda x: update(x, f)

    return [
        _Distant("Krum, krum", jm.krum, theirs(krum.Krum)),
        Pair("trimmed mean, krum", jm.trimmed_mean, theirs(krum.TrimmedMean)),
        _Distant(
            "geometric median, krum",
            lambda f: jm.geometric_median(0.1, 0.0, 20, start="mean"),
            theirs(krum.GeometricMedian, nu=0.1, tol=0.0, max_iter=20),
        ),
    ]
