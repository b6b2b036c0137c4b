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

Expect (default, f = 2 of 11), worst test accuracy on skewed labels, alpha = .1:

    rule                 as it is   noise   systematic   after bucketing
    mean                 .100
    vote                 .347       .388    .448         .337
    median               .228       .276    .269         .365
    trimmed mean         .488       .481    .492         .363
    mean around median   .120       .482    .502         .390
    geometric median     .641                            .694
    Krum                 .173                            .194
    multi-Krum           .783                            .794
    centered clipping    .711                            .664

with standard errors of .007 to .053; without attack all but Krum, vote, median and mean
around median (.82 to .86) reach .90 to .95. At alpha = 1 the mean ends at .10, Krum at
.53 +- .15, the others at .80 to .95. Noise of b = .01 raises the worst case of vote and
median a little, b = .1 that of the mean around the median a lot. Where nobody attacks,
b = .1 is best for median and trimmed mean too, and leaves them at .10 to .11 in the
worst case: what closes the gap opens the door.

These numbers are older than min-max and the attacks that search for their strength. The
worst attack is -1e6 times the honest mean on most rules by coordinates, lies on votes,
sign flips, mimicry or a little on what looks at distances. Two spoilt buckets of six
leave a trimmed mean nothing but the median. Seven minutes of CPU for each f, more with
the searches; f = 4 was not measured.

mnist5k, all 14 attacks (worst test accuracy, standard errors up to .06; half an hour
of CPU):

    rule                 as it is   noise   systematic   after bucketing
    mean                 .100
    vote                 .316       .337    .312         .384
    median               .327       .304    .288         .411
    trimmed mean         .459               .380         .418
    mean around median   .147
    geometric median     .663                            .755
    Krum                 .009
    multi-Krum           .704                            .543
    Bulyan               .257
    centered clipping    .790

The search pays where a rule looks at distances: it takes multi-Krum after bucketing
from .74 to .54. Without attack Krum, Bulyan, vote, median and mean around median reach
.81 to .84, all others .87 to .91.
"""

import numpy as np
from matplotlib.figure import Figure

from experiments.common.harness.plots import draw_heatmap, heatmaps
from experiments.common.harness.results import Curves, Result
from experiments.common.training.rules import chosen_rules
from experiments.common.training.trainer import load_problem, standard_error
from experiments.hostile.byzantine.attacks import ATTACKS, chosen_attacks
from experiments.hostile.byzantine.claims import judge
from experiments.hostile.byzantine.config import PRESETS, Config
from experiments.hostile.byzantine.trials import Trial, try_rule

__all__ = ["Config", "PRESETS", "plot", "run"]


def run(config: Config) -> Result:
    """Trains every rule under every attack, on every split, for every f."""
    rules, attacks = chosen_rules(config.rules), chosen_attacks(config.attacks)
    problem = load_problem(config.data, config.hidden, config.num_seeds)
    trials: list[Trial] = []
    for number, (name, rule) in enumerate(rules.items(), start=1):
        print(f"{name} ({number} of {len(rules)})")
        for f in config.hostile:
            trials += try_rule(config, problem, name, rule, attacks, f)
    extra = {
        f"{trial.rule} | {trial.split} | f = {trial.f}": _summary(trial)
        for trial in trials
    }
    return Result(_curves(trials), judge(config, trials), {"trials": extra}, "f")


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
