"""Training every rule under every attack, and what each setting came to."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optax

import jaxmedian as jm
from experiments.common.harness.options import Amounts, Count
from experiments.common.training.outcomes import Runs
from experiments.common.training.problems import Problem
from experiments.common.training.rules import (
    Rule,
    TunedConfig,
    place_rule,
    rule_noise,
)
from experiments.common.training.trainer import build_trainer, part_folder
from experiments.hostile.byzantine.attacks import (
    NO_ATTACK,
    Attack,
    Scene,
    attack_gradients,
    spoil_batches,
)


@dataclasses.dataclass(frozen=True)
class Config(TunedConfig):
    """Settings; every rule meets every attack in every of its settings.

    Attributes:
      attacks: names of the attacks; all by default.
      alphas: of the Dirichlet splits of the data among the honest workers; claims speak
        of the first.
      hostile: how many workers are hostile, and how many robust rules are told; claims
        speak of the first.
      vote_rates: learning rates that votes choose from; one by default.
      mean_rates: learning rates that all others choose from; one by default.
    """

    num_workers: Count = 11
    num_steps: Count = 150
    batch_size: Count = 16
    chunk: Count = 150
    vote_rates: Amounts = (0.03,)
    mean_rates: Amounts = (1.0,)
    scales: Amounts = (0.01, 0.1)
    attacks: tuple[str, ...] = ()
    alphas: tuple[float, ...] = (0.1, 1.0)
    hostile: tuple[int, ...] = (2, 4)

    def __post_init__(self) -> None:
        most = (self.num_workers - 1) // 2
        if not self.hostile or any(not 1 <= f <= most for f in self.hostile):
            raise ValueError(
                f"`hostile` must be numbers from 1 to {most}, a minority of "
                f"{self.num_workers} workers; got {self.hostile}."
            )
        if not self.alphas or not all(alpha > 0 for alpha in self.alphas):
            raise ValueError(
                "`alphas` must name at least one split, each above 0; got "
                f"{self.alphas}."
            )


class Trial(NamedTuple):
    """One rule, split and f, under every attack.

    Attributes:
      rule: its name.
      split: its name.
      f: how many are hostile.
      runs: attack -> its runs, every one with the same settings.
    """

    rule: str
    split: str
    f: int
    runs: Mapping[str, Runs]

    def prepared(self) -> int:
        """Returns the setting with the best worst validation accuracy over attacks."""
        accuracy = [
            runs.metrics["validation_accuracy"][:, :, -1].mean(axis=1)
            for runs in self.runs.values()
        ]
        return int(np.min(accuracy, axis=0).argmax())

    def unprepared(self) -> int:
        """Returns the setting with the best validation accuracy without attack."""
        return self.runs[NO_ATTACK].best()

    def worst(self, setting: int) -> tuple[str, np.ndarray]:
        """Returns the worst attack on a setting, and its test accuracies ``[S]``."""
        reached = {
            name: runs.last(setting)
            for name, runs in self.runs.items()
            if name != NO_ATTACK
        }
        name = min(reached, key=lambda name: float(reached[name].mean()))
        return name, reached[name]


def share_out(labels: np.ndarray, config: Config, alpha: float, f: int) -> Any:
    """Shares digits among the honest; the f hostile, who come last, know all digits.

    So no digit is lost with the hostile, and the mean of the honest is the same mean
    under every attack.
    """
    honest = jm.splits.dirichlet(labels, config.num_workers - f, alpha=alpha)
    everything = np.tile(np.arange(len(labels)), f)
    ends = honest.offsets[-1] + len(labels) * np.arange(1, f + 1)
    return jm.splits.Split(
        np.concatenate([honest.order, everything]),
        np.concatenate([honest.offsets, ends]),
    )


def hostile_workers(config: Config, f: int) -> tuple[int, ...]:
    """Returns the numbers of the hostile: the last."""
    return tuple(range(config.num_workers - f, config.num_workers))


def try_rule(
    config: Config,
    problem: Problem,
    name: str,
    rule: Rule,
    attacks: Mapping[str, Attack],
    f: int,
    checkpoints: Path | None,
) -> list[Trial]:
    """Trains a rule on every split under every attack that can be tried with it."""
    met = {name: attack for name, attack in attacks.items() if attack.meets(rule)}
    workers, num_classes = hostile_workers(config, f), problem.num_classes()

    def build(
        key: Any, rate: Any, which: Any, **tuned: Any
    ) -> optax.GradientTransformation:
        placed = place_rule(rule, config.num_workers, f, key, **tuned)
        scene = Scene(
            workers,
            key,
            rule_noise(rule, key, tuned.get("scale")),
            placed,
        )
        return optax.chain(
            attack_gradients([*met.values()], scene, which),
            placed,
            optax.scale_by_learning_rate(
                optax.cosine_decay_schedule(rate, config.num_steps)
            ),
        )

    train = build_trainer(
        problem,
        build,
        batch_size=config.batch_size,
        num_steps=config.num_steps,
        chunk=config.chunk,
        spoil=lambda serve, which: spoil_batches(
            [*met.values()], workers, num_classes, serve, which
        ),
    )
    settings = config.settings_of(rule)
    trials = []
    for alpha in config.alphas:
        labels = problem.labels_for(config.num_workers)
        split = share_out(labels, config, alpha, f)
        where = f"{split_name(alpha)}, f = {f}"
        runs = {
            attack: train(
                settings,
                split,
                part_folder(checkpoints, f"{name}, {where}, {attack}"),
                which=number,
            )
            for number, attack in enumerate(met)
        }
        trials.append(Trial(name, split_name(alpha), f, runs))
    return trials


def split_name(alpha: float) -> str:
    """Names a split."""
    return f"alpha = {alpha:g}"
