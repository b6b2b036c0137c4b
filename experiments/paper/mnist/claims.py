"""What `mnist` states of its curves, beside what the paper shows."""

import dataclasses
from typing import NamedTuple

import numpy as np

from experiments.common.harness.results import Claim
from experiments.common.training.outcomes import (
    Runs,
    report,
    seeds_in_words,
    standard_error,
)
from experiments.paper.mnist.config import Config
from experiments.paper.mnist.curves import curve_name


class Statement(NamedTuple):
    """What is said about the last test accuracy of a curve.

    Attributes:
      curve: its name.
      statement: in words.
      paper: what the paper shows.
      bounds: between which the mean over seeds is to lie by two standard errors; None
        where nothing is promised.
      shown: between which test accuracies the paper shows it from 10,000 steps on.
      reason: why it came out as it did, where that needs saying.
    """

    curve: str
    statement: str
    paper: str
    bounds: tuple[float, float] | None = None
    shown: tuple[float, float] | None = None
    reason: str = ""


_PAPER_STEPS = 10_000  # by which its noisy curves have risen
_NOISY_IN_PAPER = ".85-.9 within 10,000 steps"
_RISEN = (0.85, 1.0)


def _statements(config: Config) -> tuple[Statement, ...]:
    size = config.batch_size
    small = "beside gradients that differ as these do, it changes few votes"
    alike = (
        f"of 350 digits a worker, batches of {size} vary too little to hide what "
        "separates the workers"
    )
    return (
        Statement(
            "vote",
            "signSGD without noise stalls: test accuracy below .35",
            ".1, creeping to .35-.4 in 50,000 steps; gradient flat",
            (0.0, 0.35),
            (0.0, 0.4),
        ),
        Statement(
            "vote, b = 1e-05", "b = 1e-5", _NOISY_IN_PAPER, shown=_RISEN, reason=small
        ),
        Statement("vote, b = 0.001", "b = 1e-3", _NOISY_IN_PAPER, shown=_RISEN),
        Statement(
            "vote, b = 0.01",
            "Gaussian noise of b = 1e-2 trains on: test accuracy above .80",
            f"{_NOISY_IN_PAPER} (b = 1e-3)",
            (0.80, 1.0),
        ),
        Statement(
            "vote, systematic, b = 0.01",
            "Systematic noise of the same scale trains on as well: above .80",
            "(ours)",
            (0.80, 1.0),
        ),
        Statement(
            "vote, per coordinate, b = 1 rms",
            "Systematic noise with a scale for every coordinate",
            "(ours)",
        ),
        Statement("mean", "The mean, for reference", "(not shown)"),
        Statement("median", "The median without noise", "(not shown)"),
        Statement("median, b = 0.1", "The median with b = .1", "(not shown)"),
        Statement(
            "median, unbiased", "The median with noise.unbiased(), no b", "(ours)"
        ),
        Statement(
            f"vote, batch {size}",
            f"Sub-sampling {size} digits serves as noise",
            _NOISY_IN_PAPER,
            shown=_RISEN,
            reason=alike if config.data == "mnist5k" else "",
        ),
    )


def judge(config: Config, runs: dict[str, Runs]) -> tuple[Claim, ...]:
    """States what the curves reached in the end, those that were drawn."""
    chosen_freely = (
        *("scales", "systematic_scales", "median_scales", "batch_scales"),
        *("coordinate_factors", "unbiased", "num_seeds", "curves", "data_dir"),
    )
    default = Config()
    judged = default == dataclasses.replace(
        config, **{name: getattr(default, name) for name in chosen_freely}
    )
    rows = {
        curve_name(name, scale): (found, number)
        for name, found in runs.items()
        for number, scale in enumerate(found.settings["scale"])
    }
    claims = [
        _claim(said, *rows[said.curve], judged)
        for said in _statements(config)
        if said.curve in rows
    ]
    best = [
        f"{curve_name(name, found.settings['scale'][number])} "
        f"{report(found.last(number))}"
        for name, found in runs.items()
        if len(found.settings["scale"]) > 1 and "validation_accuracy" in found.metrics
        for number in [found.best()]
    ]
    if best:
        statement = "Each at the b that is best on validation digits"
        claims.append(Claim(statement, "; ".join(best)))
    return tuple(claims)


def _claim(said: Statement, found: Runs, number: int, judged: bool) -> Claim:
    """States what a curve reached in the end."""
    accuracy = found.last(number)
    gradient = found.metrics["gradient_norm"][number, :, -1]
    here = (
        f"{report(accuracy)}, gradient {report(gradient)}; {found.num_steps():,} "
        f"steps, {seeds_in_words(len(accuracy))}"
    )
    if said.shown is not None and found.num_steps() >= _PAPER_STEPS:
        shown = _lies_within(accuracy, *said.shown)
        here += "; as the paper shows" if shown else "; not reproduced"
    holds = None
    if said.bounds is not None and judged:
        holds = _lies_within(accuracy, *said.bounds)
    return Claim(said.statement, here, holds, paper=said.paper, reason=said.reason)


def _lies_within(samples: np.ndarray, low: float, high: float) -> bool:
    """Judges the mean over seeds, by two standard errors where there are seeds."""
    margin = 2 * standard_error(samples) if len(samples) > 1 else 0.0
    return bool(low < samples.mean() - margin and samples.mean() + margin < high)
