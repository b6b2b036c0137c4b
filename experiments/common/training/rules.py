"""The aggregation rules that sweeps compare: one row of a table each.

A row gives a rule as it is, behind noise of either coupling, and after bucketing; the
last rows are rules behind a memory of each worker, or mixing of neighbours.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import optax

import jaxmedian as jm
from experiments.common.harness.misuse import Misuse
from experiments.common.harness.options import Amounts
from experiments.common.training.outcomes import Chosen, Settings, grid
from experiments.common.training.problems import Problem, TrainingConfig
from experiments.common.training.trainer import Build, build_trainer

BUCKET = 2  # workers a bucket
_REFRESH = 50  # steps from one exchange of what drift is measured from to the next


class Terms(NamedTuple):
    """What a rule may be told.

    Attributes:
      num_workers: rows that the aggregator sees, buckets or workers.
      f: how many of them it is to withstand, a minority.
      noise: ``(noise, key)``, or ``()`` without noise.
      radius: within which centered clipping trusts a worker.
    """

    num_workers: int
    f: int
    noise: tuple[()] | tuple[jm.noise.Noise, Any] = ()
    radius: Any = None

    @property
    def neighbors(self) -> int:
        """Krum's M - f - 2; 1 where so few buckets leave none."""
        return max(self.num_workers - self.f - 2, 1)


def minority(num_rows: int) -> int:
    """Returns the largest f with 2 f < M."""
    return (num_rows - 1) // 2


class Rule(NamedTuple):
    """An aggregator, what stands before it, and what is tuned about it.

    Attributes:
      aggregator: a factory that takes `Terms`.
      coupling: of its noise; None for a rule without noise.
      bucketed: whether workers are averaged by twos first.
      unit_steps: whether its updates are signs: they take other learning rates.
      by_distance: whether it looks at whole gradients.
      clips: whether it takes a radius.
      remembers: whether something of each worker is kept from step to step.
      most: number of rows -> the largest f that it can be told.
    """

    aggregator: Callable[[Terms], optax.GradientTransformation]
    coupling: jm.noise.Coupling | None = None
    bucketed: bool = False
    unit_steps: bool = False
    by_distance: bool = False
    clips: bool = False
    remembers: bool = False
    most: Callable[[int], int] = minority

    def terms(self, num_workers: int, f: int) -> Terms:
        """Returns what the rule is told of M workers, up to f of them hostile.

        As many buckets are spoilt as there are hostile workers; where they are more
        than the rule can be told, it is told the most it can.
        """
        rows = -(-num_workers // BUCKET) if self.bucketed else num_workers
        return Terms(rows, min(f, self.most(rows)))


def noisy_rule(name: str, coupling: jm.noise.Coupling) -> str:
    """Names a rule behind noise."""
    suffix = "" if coupling == "independent" else f", {coupling}"
    return f"noisy {name}{suffix}"


def bucketed_rule(name: str) -> str:
    """Names a rule after bucketing."""
    return f"{name} after bucketing"


def _family(
    name: str, aggregator: Callable[[Terms], optax.GradientTransformation], **about: Any
) -> dict[str, Rule]:
    rule = Rule(aggregator, **about)
    return {
        name: rule,
        **{noisy_rule(name, c): rule._replace(coupling=c) for c in jm.noise.COUPLINGS},
        bucketed_rule(name): rule._replace(bucketed=True),
    }


def _behind_noise(
    aggregator: Callable[[Terms], optax.GradientTransformation],
) -> Callable[[Terms], optax.GradientTransformation]:
    """Makes a rule that takes no noise of its own follow `jm.add_worker_noise`."""

    def build(terms: Terms) -> optax.GradientTransformation:
        first = [jm.add_worker_noise(*terms.noise)] if terms.noise else []
        return optax.chain(*first, aggregator(terms))

    return build


def _minimum_diameter(terms: Terms) -> optax.GradientTransformation:
    return jm.minimum_diameter_mean(terms.f)


def _mixing(terms: Terms) -> optax.GradientTransformation:
    """Builds the strongest rule of 32 bits: momentum, mixing, geometric median."""
    return optax.chain(
        jm.per_worker(optax.ema(0.9), terms.num_workers),
        jm.nearest_neighbor_mixing(terms.f),
        jm.geometric_median(),
    )


def _ef21_clipping(terms: Terms) -> optax.GradientTransformation:
    return optax.chain(
        jm.ef21_sign(terms.num_workers), jm.centered_clipping(terms.radius, steps=3)
    )


def _drift_corrected_vote(terms: Terms) -> optax.GradientTransformation:
    center = optax.chain(jm.nearest_neighbor_mixing(terms.f), jm.trimmed_mean(terms.f))
    return optax.chain(
        jm.correct_drift(center, _REFRESH, terms.num_workers), jm.majority_vote()
    )


RULES = {
    "mean": Rule(lambda terms: jm.worker_mean()),
    **_family("vote", lambda t: jm.majority_vote(*t.noise), unit_steps=True),
    **_family("median", lambda t: jm.coordinate_median(*t.noise)),
    **_family("trimmed mean", _behind_noise(lambda t: jm.trimmed_mean(t.f))),
    **_family(
        "mean around median", _behind_noise(lambda t: jm.mean_around_median(t.f))
    ),
    **_family(
        "geometric median",
        _behind_noise(lambda t: jm.geometric_median()),
        by_distance=True,
    ),
    **_family(
        "Krum", _behind_noise(lambda t: jm.krum(t.f, t.neighbors)), by_distance=True
    ),
    **_family(
        "multi-Krum",
        _behind_noise(lambda t: jm.multi_krum(t.f, t.neighbors)),
        by_distance=True,
    ),
    **_family(
        "Bulyan",
        _behind_noise(lambda t: jm.bulyan(t.f)),
        by_distance=True,
        most=lambda rows: max((rows - 3) // 4, 0),
    ),
    **_family(
        "centered clipping",
        _behind_noise(lambda t: jm.centered_clipping(t.radius)),
        by_distance=True,
        clips=True,
    ),
    "minimum diameter": Rule(_minimum_diameter, by_distance=True),
    "momentum, mixing, geometric median": Rule(
        _mixing, by_distance=True, remembers=True
    ),
    "EF21-sign, centered clipping": Rule(
        _ef21_clipping, by_distance=True, clips=True, remembers=True
    ),
    "drift-corrected vote": Rule(
        _drift_corrected_vote, unit_steps=True, remembers=True
    ),
}
FAMILIES = tuple(
    name for name, rule in RULES.items() if not (rule.coupling or rule.bucketed)
)
PAPER_RULES = (
    "mean",
    *(
        name
        for family in ("vote", "median")
        for name in (family, *(noisy_rule(family, c) for c in jm.noise.COUPLINGS))
    ),
)


def chosen_rules(names: Sequence[str]) -> dict[str, Rule]:
    """Returns the rules of these names; for none, all that one would want.

    That is all but noise before a rule that looks at distances, where the noise of all
    coordinates adds up and hides who is far before it helps any coordinate.

    Raises:
      Misuse: for an unknown name.
    """
    unknown = [name for name in names if name not in RULES]
    if unknown:
        raise Misuse(f"--rules takes some of {list(RULES)}; got {unknown}.")
    if names:
        return {name: RULES[name] for name in names}
    return {k: r for k, r in RULES.items() if not (r.coupling and r.by_distance)}


def place_rule(
    rule: Rule,
    num_workers: int,
    f: int,
    key: Any,
    scale: Any = None,
    radius: Any = None,
) -> optax.GradientTransformation:
    """Builds a rule with what stands before it: ``[M, ...] -> [...]``.

    Noise is uniform, the cheapest law.
    """
    terms = rule.terms(num_workers, f)._replace(
        noise=rule_noise(rule, key, scale), radius=radius
    )
    first = [jm.bucketing(BUCKET, key)] if rule.bucketed else []
    return optax.chain(*first, rule.aggregator(terms))


def rule_noise(
    rule: Rule, key: Any, scale: Any
) -> tuple[()] | tuple[jm.noise.Noise, Any]:
    """Returns noise and key of a rule, ``()`` of one without noise."""
    return (jm.noise.uniform(scale, rule.coupling), key) if rule.coupling else ()


def build_rule(rule: Rule, num_steps: int, num_workers: int, f: int) -> Build:
    """Returns ``(key, rate, scale, radius)`` -> the rule at a rate that falls to 0.

    Args:
      rule: what to build.
      num_steps: over which the rate falls by a cosine.
      num_workers: M.
      f: how many hostile workers a rule that can be told is to withstand.
    """

    def build(key: Any, rate: Any, **tuned: Any) -> optax.GradientTransformation:
        schedule = optax.cosine_decay_schedule(rate, num_steps)
        return optax.chain(
            place_rule(rule, num_workers, f, key, **tuned),
            optax.scale_by_learning_rate(schedule),
        )

    return build


def rule_grid(
    rule: Rule,
    vote_rates: tuple[float, ...],
    mean_rates: tuple[float, ...],
    scales: tuple[float, ...],
    radii: tuple[float, ...] = (),
) -> Settings:
    """Returns the settings from which a rule takes its best."""
    tuned = {"rate": vote_rates if rule.unit_steps else mean_rates}
    if rule.coupling:
        tuned["scale"] = scales
    if rule.clips:
        tuned["radius"] = radii
    return grid(**tuned)


@dataclasses.dataclass(frozen=True)
class TunedConfig(TrainingConfig):
    """Settings of rules that are tuned: each takes its best on validation digits.

    Attributes:
      rules: names of the rules; by default all, but for noise before rules that look
        at distances.
      num_steps: steps of every run; the learning rate falls to 0 by a cosine.
      vote_rates: learning rates that votes choose from.
      mean_rates: learning rates that all others choose from.
      scales: b that noisy rules choose from.
      radii: that centered clipping chooses from, in norms of a gradient.
    """

    rules: tuple[str, ...] = ()
    vote_rates: Amounts = (0.003, 0.01, 0.03)
    mean_rates: Amounts = (0.1, 0.3, 1.0)
    scales: Amounts = (0.03, 0.1)
    radii: Amounts = (0.3, 3.0)

    def settings_of(self, rule: Rule) -> Settings:
        """Returns the settings from which a rule takes its best."""
        return rule_grid(
            rule, self.vote_rates, self.mean_rates, self.scales, self.radii
        )

    def tune(
        self, problem: Problem, rule: Rule, f: int, batch_size: int | None
    ) -> Callable[[Any, Path | None], Chosen]:
        """Builds ``(split, checkpoint) -> Chosen`` of a rule, compiled once."""
        train = build_trainer(
            problem,
            build_rule(rule, self.num_steps, self.num_workers, f),
            batch_size=batch_size,
            num_steps=self.num_steps,
            chunk=self.chunk,
        )
        settings = self.settings_of(rule)
        return lambda split, checkpoint: train(settings, split, checkpoint).chosen()
