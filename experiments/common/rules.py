"""The aggregation rules that sweeps compare, one row each."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import optax

import jaxmedian as jm
from experiments.common.training import Build, Settings, grid


class Rule(NamedTuple):
    """An aggregator, and what is tuned about it.

    Attributes:
      aggregator: a factory ``(noise, key)``, or ``()`` without noise.
      coupling: of its noise; None for a rule without noise.
      unit_steps: whether its updates are signs: they take other learning rates.
    """

    aggregator: Callable[..., optax.GradientTransformation]
    coupling: str | None = None
    unit_steps: bool = False


RULES = {
    "mean": Rule(jm.worker_mean),
    "vote": Rule(jm.majority_vote, unit_steps=True),
    "noisy vote": Rule(jm.majority_vote, "independent", unit_steps=True),
    "noisy vote, systematic": Rule(jm.majority_vote, "systematic", unit_steps=True),
    "median": Rule(jm.coordinate_median),
    "noisy median": Rule(jm.coordinate_median, "independent"),
    "noisy median, systematic": Rule(jm.coordinate_median, "systematic"),
}


def chosen_rules(names: Sequence[str]) -> dict[str, Rule]:
    """Returns the rules of these names, all of them for none.

    Raises:
      ValueError: for an unknown name.
    """
    unknown = [name for name in names if name not in RULES]
    if unknown:
        raise ValueError(f"--rules takes some of {list(RULES)}; got {unknown}.")
    return {name: RULES[name] for name in names or RULES}


def build_rule(rule: Rule, num_steps: int) -> Build:
    """Returns ``(key, rate, scale)`` -> the rule, then a rate that falls by a cosine.

    Noise is uniform, the cheapest law.
    """

    def build(key: Any, rate: Any, scale: Any = None) -> optax.GradientTransformation:
        noisy = (jm.noise.uniform(scale, rule.coupling), key) if rule.coupling else ()
        schedule = optax.cosine_decay_schedule(rate, num_steps)
        return optax.chain(
            rule.aggregator(*noisy), optax.scale_by_learning_rate(schedule)
        )

    return build


def rule_grid(
    rule: Rule,
    vote_rates: tuple[float, ...],
    mean_rates: tuple[float, ...],
    scales: tuple[float, ...],
) -> Settings:
    """Returns the settings from which a rule takes its best."""
    rates = vote_rates if rule.unit_steps else mean_rates
    return grid(rate=rates, scale=scales) if rule.coupling else grid(rate=rates)
