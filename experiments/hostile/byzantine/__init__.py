"""Attack x rule x heterogeneity x f: what each rule withstands, noise and buckets too.

The honest share the digits in Dirichlet proportions; the hostile draw from all digits.
Every rule trains under every attack with every b (and radius). "Worst" is its least
test accuracy over attacks, a mean of 5 seeds, with the b whose worst *validation*
accuracy over the attacks is best: that of a defender who knows them ("prepared").
Beside it stands the b that is best where nobody attacks ("unprepared"). Learning rates
are the same for all rules of a kind unless several are given.

    python -m experiments byzantine                    8x8 digits, f = 2 and 4 of 11
    python -m experiments byzantine --preset quick     ten rules, one split, f = 2
    python -m experiments byzantine --preset mnist5k   28x28 digits, one split, f = 2
    python -m experiments byzantine --preset one_bit   what withstands on 1 or 2 bits

Noise that closes the gap where nobody attacks opens the door to those who do; two
spoilt buckets of six leave a trimmed mean nothing but the median. Hostile workers
choose gradients: where workers send what follows from a memory, theirs follows too.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments.common.harness.misuse import Misuse
from experiments.common.harness.options import tiny
from experiments.common.harness.plots import draw_heatmap, heatmaps
from experiments.common.harness.results import Curves, Result, each_part
from experiments.common.training.outcomes import standard_error
from experiments.common.training.rules import Rule, chosen_rules
from experiments.hostile.byzantine.attacks import (
    ATTACKS,
    NO_ATTACK,
    Attack,
    chosen_attacks,
)
from experiments.hostile.byzantine.trials import Config, Trial, try_rule
from experiments.hostile.byzantine.worst_cases import judge

__all__ = ["Config", "PRESETS", "plot", "run"]

_BY_COORDINATES = (
    *("mean", "vote", "noisy vote", "noisy vote, systematic"),
    *("median", "noisy median", "noisy median, systematic"),
    *("median after bucketing", "trimmed mean", "multi-Krum"),
)
_QUICK = Config(rules=_BY_COORDINATES, hostile=(2,), alphas=(0.1,))
PRESETS = {
    "quick": _QUICK,
    "mnist5k": dataclasses.replace(
        _QUICK,
        rules=(
            *_BY_COORDINATES,
            *("vote after bucketing", "noisy trimmed mean, systematic"),
            *("trimmed mean after bucketing", "mean around median"),
            *("geometric median", "geometric median after bucketing", "Krum"),
            *("multi-Krum after bucketing", "Bulyan", "centered clipping"),
        ),
        data="mnist5k",
        num_steps=300,
        chunk=300,
        batch_size=32,
        vote_rates=(0.01,),
        mean_rates=(0.3,),
    ),
    "one_bit": Config(
        rules=(
            *("vote", "noisy vote, systematic", "mean", "centered clipping"),
            *("momentum, mixing, geometric median", "minimum diameter"),
            *("EF21-sign, centered clipping", "drift-corrected vote"),
        ),
        attacks=(
            *("sign flip", "inner product, .5", "inner product, 1e6"),
            *("a little is enough, 1.5", "min-max", "mimic", "label flip"),
        ),
        hostile=(2,),
        alphas=(0.1,),
        num_steps=500,
        batch_size=32,
        chunk=500,
        vote_rates=(0.003, 0.01),
        mean_rates=(0.3, 1.0),
        radii=(1.0, 2.0),
    ),
    "tiny": tiny(
        Config(),
        rules=("noisy vote, systematic",),
        attacks=("label flip", "pivotal votes"),
        hostile=(1,),
        alphas=(1.0,),
        num_workers=5,
        scales=(0.1,),
    ),
}


def run(config: Config, checkpoints: Path | None = None) -> Result:
    """Trains every rule under every attack, on every split, for every f."""
    rules, attacks = chosen_rules(config.rules), chosen_attacks(config.attacks)
    _check_attacks(rules, attacks)
    problem = config.problem()

    def train(name: str) -> list[Trial]:
        return [
            trial
            for f in config.hostile
            for trial in try_rule(
                config, problem, name, rules[name], attacks, f, checkpoints
            )
        ]

    parts, partial = each_part(rules, train)
    trials = [trial for part in parts.values() for trial in part]
    found = {f"{trial.rule} | {trial.split} | f = {trial.f}": trial for trial in trials}
    extra = {
        "figures": {place: _worst(trial) for place, trial in found.items()},
        "trials": {place: _summary(trial) for place, trial in found.items()},
    }
    claims = judge(config, trials)
    return Result(_curves(trials), claims, extra, "f", partial, problem.description)


def _check_attacks(rules: Mapping[str, Rule], attacks: Mapping[str, Attack]) -> None:
    """Raises unless every rule meets an attack."""
    names = [name for name in attacks if name != NO_ATTACK]
    for name, rule in rules.items():
        if not any(attacks[attack].meets(rule) for attack in names):
            raise Misuse(
                f"--attacks must name one that can be tried with {name}; {names} "
                "cannot. Add another attack, or leave that rule out of --rules."
            )


def _worst(trial: Trial) -> list[float]:
    """Returns test accuracy under the worst attack, prepared, and its error."""
    _, accuracy = trial.worst(trial.prepared())
    return [float(accuracy.mean()), float(standard_error(accuracy))]


def _curves(trials: list[Trial]) -> Curves:
    """Makes a table against f of every rule, attack and split."""
    tables: dict[str, dict[str, list[float]]] = {}
    for trial in trials:
        for attack, runs in trial.runs.items():
            row = {"f": float(trial.f)}
            for name, setting in (
                ("prepared", trial.prepared()),
                ("unprepared", trial.unprepared()),
            ):
                last = runs.last(setting)
                row[name] = float(last.mean())
                row[f"{name}_error"] = float(standard_error(last))
            table = tables.setdefault(f"{trial.rule} | {attack} | {trial.split}", {})
            for key, value in row.items():
                table.setdefault(key, []).append(value)
    return {
        name: {key: np.array(values) for key, values in table.items()}
        for name, table in tables.items()
    }


def _summary(trial: Trial) -> dict[str, str]:
    settings = next(iter(trial.runs.values()))
    return {
        "setting": settings.describe(trial.prepared()),
        "worst attack": trial.worst(trial.prepared())[0],
        "setting without attack": settings.describe(trial.unprepared()),
        "worst attack on that": trial.worst(trial.unprepared())[0],
    }


def plot(result: Result) -> Figure:
    """Draws rule x attack for every split and f: accuracy, prepared for the worst."""
    names = [name.split(" | ") for name in result.curves]
    rules, seen, splits = (
        list(dict.fromkeys(part)) for part in zip(*names, strict=True)
    )
    attacks = [name for name in ATTACKS if name in seen]
    hostile = next(iter(result.curves.values()))["f"]
    figure, axes = heatmaps(len(splits), len(hostile), len(rules), len(attacks) + 1)
    panels = [(split, place) for split in splits for place in range(len(hostile))]
    for panel, (split, place) in zip(axes, panels, strict=True):
        accuracy = np.array(
            [
                [_accuracy(result, rule, attack, split, place) for attack in attacks]
                for rule in rules
            ]
        )
        worst = np.nanmin(accuracy[:, 1:], axis=1, keepdims=True)
        draw_heatmap(panel, np.hstack([accuracy, worst]), rules, [*attacks, "WORST"])
        panel.set_title(f"test accuracy, {split}, f = {hostile[place]:g}")
    return figure


def _accuracy(result: Result, rule: str, attack: str, split: str, place: int) -> float:
    curve = result.curves.get(f"{rule} | {attack} | {split}")
    return float("nan") if curve is None else float(curve["prepared"][place])
