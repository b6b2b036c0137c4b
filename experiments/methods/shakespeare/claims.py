"""What `shakespeare` states: last losses, and noise beside the mean and no noise."""

from typing import NamedTuple

import numpy as np

from experiments.common.data import texts
from experiments.common.harness.results import Claim
from experiments.common.training.outcomes import chance, report
from experiments.methods.shakespeare.trial import Trial

ONE_WORKER = "one worker, AdamW"
PUBLISHED, PLAYS = 1.88, 1_115_394  # nanoGPT's loss, and the characters of its text


class Reached(NamedTuple):
    """What a contender reached in its best setting.

    Attributes:
      setting: in words.
      curve: means over seeds at each chunk edge, and standard errors.
      last: [S], the last held-out loss of each seed.
      written: what seed 0 wrote in the end.
    """

    setting: str
    curve: dict[str, np.ndarray]
    last: np.ndarray
    written: str


def judge(trial: Trial, reached: dict[str, Reached]) -> tuple[Claim, ...]:
    """States what every contender reached, and how noise compares with none."""
    config = trial.config
    claims = [
        Claim(
            f"{name}: loss on held-out text after {config.num_steps:,} steps",
            f"{report(one.last)} nats ({one.setting})",
        )
        for name, one in reached.items()
    ]
    is_large = config.hidden >= 128 or config.model == "perceptron"
    is_real = config.text is not None or config.texts is not None
    is_trained = is_large and is_real and config.num_steps >= 800
    if ONE_WORKER in reached:
        loss = float(reached[ONE_WORKER].last.mean())
        is_published = (
            config.text is not None and len(texts.read_text(config.text)) == PLAYS
        )
        claims.append(
            Claim(
                f"{ONE_WORKER}: within .03 of nanoGPT's {PUBLISHED}",
                f"{loss:.3f}",
                abs(loss - PUBLISHED) <= 0.03
                if is_trained and config.num_steps == 2000 and is_published
                else None,
            )
        )
    for name in reached:
        if "noisy" in name:
            claims += compare(name, reached, is_trained)
    return tuple(claims)


def compare(name: str, reached: dict[str, Reached], judged: bool) -> list[Claim]:
    """States how far noise is behind Lion on the mean, and ahead of no noise."""
    claims = []
    ours = reached[name].last
    if "mean + Lion" in reached:
        behind = ours - reached["mean + Lion"].last
        claims.append(
            Claim(
                f"{name}: within .05 nats of Lion on the mean",
                f"{report(behind)} behind",
                bool(behind.mean() <= 0.05) if judged else None,
            )
        )
    if "Distributed Lion, majority" in reached:
        ahead = reached["Distributed Lion, majority"].last - ours
        claims.append(
            Claim(
                f"{name} is ahead of Distributed Lion (beyond chance: 95 % by "
                "Student's t)",
                f"by {report(ahead)} nats",
                bool(ahead.mean() > chance(ahead))
                if judged and len(ahead) > 1
                else None,
            )
        )
    return claims
