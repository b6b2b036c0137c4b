"""What tuned runs reached: the best setting, means over seeds, and who is ahead.

The best setting is chosen on validation digits, never on test ones.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats

from experiments.common.harness.results import Claim

Settings = Mapping[str, np.ndarray]  # name -> [G], one entry a run


class Chosen(NamedTuple):
    """What a rule reached in one setting.

    Attributes:
      setting: in words.
      curve: means over seeds at each chunk edge, and standard errors.
      last: [S], the last test accuracy of each seed.
    """

    setting: str
    curve: dict[str, np.ndarray]
    last: np.ndarray


class Runs(NamedTuple):
    """What one rule reached in every setting and seed.

    Attributes:
      settings: name -> [G].
      metrics: name -> [G, S, T], one entry a setting, seed and chunk edge.
      clock: [T, 2], seconds and core seconds of each chunk, of all runs together.
    """

    settings: Settings
    metrics: Mapping[str, np.ndarray]
    clock: np.ndarray | None = None

    @classmethod
    def of_all(cls, parts: Sequence["Runs"]) -> "Runs":
        """Joins runs of the same settings with other seeds."""
        metrics = [part.metrics for part in parts]
        return cls(
            parts[0].settings,
            {k: np.concatenate([m[k] for m in metrics], axis=1) for k in metrics[0]},
        )

    def num_steps(self) -> int:
        """Returns how many steps were taken."""
        return int(self.metrics["step"][0, 0, -1])

    def pace(self) -> dict[str, float]:
        """Returns how fast all runs together took a step, by the median chunk; and all.

        Core seconds are this process's CPU time, which a busy machine lengthens less.
        The measurement at the end of a chunk counts.
        """
        if self.clock is None:
            return {}
        lengths = np.diff(self.metrics["step"][0, 0], prepend=0)
        seconds, core_seconds = np.median(self.clock / lengths[:, None], axis=0)
        return {
            "steps a second": float(1 / seconds),
            "core seconds a step": float(core_seconds),
            "core seconds": float(self.clock[:, 1].sum()),
        }

    def join(self, other: "Runs") -> "Runs":
        """Returns these runs and, after them, as many seeds and steps of others."""

        def one_after_another(one: Settings, two: Settings) -> Settings:
            return {name: np.concatenate([one[name], two[name]]) for name in one}

        return Runs(
            one_after_another(self.settings, other.settings),
            one_after_another(self.metrics, other.metrics),
        )

    def validated(self) -> np.ndarray:
        """Returns the last validation accuracy of each setting over seeds, [G]."""
        return self.metrics["validation_accuracy"][:, :, -1].mean(axis=1)

    def best(self) -> int:
        """Returns the setting with the best last validation accuracy."""
        return int(self.validated().argmax())

    def chosen(self) -> Chosen:
        """Returns what the best setting reached."""
        best = self.best()
        return Chosen(self.describe(best), self.curve(best), self.last(best))

    def describe(self, setting: int) -> str:
        """Writes a setting as "rate 0.01, scale 0.1"."""
        return ", ".join(f"{k} {v[setting]:.3g}" for k, v in self.settings.items())

    def curve(self, setting: int) -> dict[str, np.ndarray]:
        """Returns means over seeds, and standard errors of what figures show."""
        curve = {
            name: rows[setting].mean(axis=0) for name, rows in self.metrics.items()
        }
        shown = {"loss", "held_out_loss", "gradient_norm"}
        shown |= {"validation_accuracy", "test_accuracy"}
        for name in shown & set(curve):
            curve[f"{name}_error"] = standard_error(self.metrics[name][setting])
        return curve

    def last(self, setting: int) -> np.ndarray:
        """Returns the last test accuracy of each seed, [S]."""
        return self.metrics["test_accuracy"][setting, :, -1]


def standard_error(samples: np.ndarray) -> np.ndarray:
    """Returns the standard error of the mean over the first axis; NaN for one row."""
    if len(samples) < 2:
        return np.full(samples.shape[1:], np.nan)
    return samples.std(axis=0, ddof=1) / np.sqrt(len(samples))


def report(samples: np.ndarray, digits: int = 3) -> str:
    """Writes "mean +- standard error" of one number a seed, the number if it is one."""
    if len(samples) == 1:
        return f"{samples[0]:.{digits}f}"
    return f"{samples.mean():.{digits}f} +- {standard_error(samples):.{digits}f}"


def verdict(
    samples: np.ndarray, holds: Callable[[float, float], bool | np.bool_]
) -> bool | None:
    """Judges one number a seed by its mean and standard error.

    Returns:
      What ``holds(mean, error)`` says; None of one seed, which leaves no error.

    >>> verdict(np.array([0.5, 0.7]), lambda mean, error: mean > 2 * error)
    True
    >>> verdict(np.array([0.5]), lambda mean, error: mean > 2 * error)
    """
    if len(samples) < 2:
        return None
    return bool(holds(float(samples.mean()), float(standard_error(samples))))


def within(samples: np.ndarray, goal: float) -> bool | None:
    """Judges whether the mean over seeds is at most a goal, by two standard errors.

    Returns:
      Whether mean + 2 errors is; None of one seed, or of NaN.

    >>> within(np.array([0.5, 0.7]), 0.85), within(np.array([0.5, 0.7]), 0.75)
    (True, False)
    """
    if not np.isfinite(samples).all():
        return None
    return verdict(samples, lambda mean, error: mean + 2 * error <= goal)


def chance(samples: np.ndarray) -> np.ndarray:
    """Returns how far from 0 chance may take the mean over the first axis.

    That is half the width of its 95 % confidence interval, by Student's t, which is
    wide for few seeds; NaN for one.

    >>> chance(np.array([0.5, 0.7])).round(2).item()
    1.27
    """
    seeds = max(len(samples) - 1, 1)
    return scipy.stats.t.ppf(0.975, seeds) * standard_error(samples)


def seeds_in_words(number: int) -> str:
    """Writes "1 seed" or "5 seeds"."""
    return "1 seed" if number == 1 else f"{number} seeds"


def grid(**values: tuple[float, ...]) -> Settings:
    """Returns every combination of the values, as one array a name.

    >>> grid(rate=(0.1, 1.0), scale=(2.0,))["rate"].tolist()
    [0.1, 1.0]
    """
    combinations = np.meshgrid(*values.values(), indexing="ij")
    return dict(zip(values, (x.ravel() for x in combinations), strict=True))


def claim_ahead(
    statement: str,
    better: np.ndarray,
    worse: np.ndarray,
    judged: bool,
    paper: str = "-",
    here: str = "",
) -> Claim:
    """Claims that one is ahead of another by more than two standard errors.

    Args:
      statement: what is claimed, without those errors.
      better: one accuracy a seed, [S].
      worse: the other's, with the same seeds.
      judged: whether the runs are long enough to tell.
      paper: what the paper states.
      here: what was measured; by default the difference in points.
    """
    ahead = 100 * (better - worse)
    return Claim(
        f"{statement} (two standard errors)",
        here or f"by {report(ahead, 2)} points",
        verdict(ahead, lambda mean, error: mean > 2 * error) if judged else None,
        paper=paper,
    )
