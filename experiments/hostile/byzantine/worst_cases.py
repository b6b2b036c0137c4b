"""What the attacks show: the worst case of every rule, with and without its helpers."""

from collections.abc import Sequence

import jaxmedian as jm
from experiments.common.harness.results import Claim
from experiments.common.training.outcomes import report, verdict
from experiments.common.training.rules import FAMILIES, bucketed_rule, noisy_rule
from experiments.hostile.byzantine.attacks import NO_ATTACK
from experiments.hostile.byzantine.trials import Config, Trial, split_name


def judge(config: Config, trials: Sequence[Trial]) -> tuple[Claim, ...]:
    """Returns the claims of the first split and the first f."""
    split, f = split_name(config.alphas[0]), config.hostile[0]
    met = {t.rule: t for t in trials if (t.split, t.f) == (split, f)}
    where = f"{f} of {config.num_workers} hostile, {split}"
    judged = config.num_steps >= 100
    claims = [
        *(worst_claim(family, met, where) for family in FAMILIES),
        broken_claim(met, where, judged),
        price_claim(met, where, judged),
        pivotal_claim(met, where, judged),
        one_bit_claim(config, met, where),
    ]
    return tuple(claim for claim in claims if claim is not None)


def worst_claim(family: str, met: dict[str, Trial], where: str) -> Claim | None:
    """States the worst accuracy of a rule as it is, with noise and after bucketing."""
    variants = {
        "as it is": family,
        "noise": noisy_rule(family, "independent"),
        "systematic noise": noisy_rule(family, "systematic"),
        "bucketing": bucketed_rule(family),
    }
    cells = [
        _worst(label, met[name]) for label, name in variants.items() if name in met
    ]
    if not cells:
        return None
    statement = f"{family}: worst test accuracy over attacks, {where}"
    return Claim(statement, "; ".join(cells))


def _worst(label: str, trial: Trial) -> str:
    attack, accuracy = trial.worst(trial.prepared())
    _, unprepared = trial.worst(trial.unprepared())
    return (
        f"{label} {report(accuracy)} ({attack}), "
        f"{unprepared.mean():.3f} where tuned without attack"
    )


def broken_claim(met: dict[str, Trial], where: str, judged: bool) -> Claim | None:
    """Claims that numbers which are none stop the mean, and nobody else."""
    broken = ("inf", "NaN")
    reached = {
        name: min(
            float(trial.runs[attack].last(trial.prepared()).mean()) for attack in broken
        )
        for name, trial in met.items()
        if set(broken) <= set(trial.runs)
    }
    if "mean" not in reached or len(reached) < 2:
        return None
    mean = reached.pop("mean")
    weakest = min(reached, key=lambda name: reached[name])
    return Claim(
        f"Infinities and NaN stop the mean and no robust rule, {where}",
        f"mean {mean:.3f}; the others at least {reached[weakest]:.3f} ({weakest})",
        mean < 0.2 < reached[weakest] if judged else None,
    )


def price_claim(met: dict[str, Trial], where: str, judged: bool) -> Claim | None:
    """Claims that the b which suits a median in peace costs it its robustness.

    It speaks of the couplings for which peace and attack choose different b.
    """
    noisy = [
        name
        for name in (noisy_rule("median", c) for c in jm.noise.COUPLINGS)
        if name in met and met[name].prepared() != met[name].unprepared()
    ]
    if "median" not in met or not noisy:
        return None
    _, without = met["median"].worst(met["median"].prepared())
    losses = {}
    for name in noisy:
        trial = met[name]
        _, accuracy = trial.worst(trial.unprepared())
        losses[name] = without - accuracy
    here = "; ".join(f"{name} {report(loss)} below" for name, loss in losses.items())
    lower = [verdict(loss, lambda x, error: x > 2 * error) for loss in losses.values()]
    return Claim(
        "With a b that only peace would choose, the worst accuracy of the noisy median "
        f"is below the noise-free median's (two standard errors), {where}",
        here,
        all(lower) if judged and None not in lower else None,
        paper="robustness falls (Remarks)",
    )


def pivotal_claim(met: dict[str, Trial], where: str, judged: bool) -> Claim | None:
    """Claims that lies where they decide do the harm of lies everywhere.

    The two attacks end every vote alike, but where the honest mean is so small that
    noise turns even a million times it.
    """
    everywhere, deciding = "inner product, 1e6", "pivotal votes"
    differences = {
        name: trial.runs[deciding].last(trial.prepared())
        - trial.runs[everywhere].last(trial.prepared())
        for name, trial in met.items()
        if {everywhere, deciding} <= set(trial.runs)
    }
    if not differences:
        return None
    here = "; ".join(
        f"{name} {report(100 * difference, 2)} points"
        for name, difference in differences.items()
    )
    close = [
        verdict(difference, lambda x, error: abs(x) <= 0.01 + 3 * error)
        for difference in differences.values()
    ]
    return Claim(
        "Hostile voters who lie only where it decides do the harm of those who always "
        f"lie (a point, and three standard errors), {where}",
        here,
        all(close) if judged and None not in close else None,
    )


def one_bit_claim(config: Config, met: dict[str, Trial], where: str) -> Claim | None:
    """Claims that one bit a coordinate and worker withstands every attack tried."""
    name = "EF21-sign, centered clipping"
    if name not in met:
        return None
    attack, accuracy = met[name].worst(met[name].prepared())
    attacks = [attack for attack in met[name].runs if attack != NO_ATTACK]
    judged = config.num_steps >= 500 and len(attacks) >= 7
    return Claim(
        f"{name}: at least .80 at the worst of {len(attacks)} attacks, {where}",
        f"{report(accuracy)} ({attack})",
        bool(accuracy.mean() >= 0.8) if judged else None,
    )
