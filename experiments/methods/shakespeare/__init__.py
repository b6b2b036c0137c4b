"""A language model by votes of workers who read different text: noisy Lion.

Claim: where workers read different text, Distributed Lion, one bit per coordinate and
worker, falls behind Lion on the mean of 32-bit gradients; noise on the interpolation of
Lion, before its sign, brings the vote back. So it is for a perceptron on eight
languages; for the transformer below one seed shows it, on batches that are large
enough. Drawn against steps and bytes sent up.

    python -m experiments shakespeare --text FILE     one text, cut into eight parts
    python -m experiments shakespeare --text FILE --split speakers
    python -m experiments shakespeare --texts FOLDER  NAME.txt, a file for each worker
    python -m experiments shakespeare --preset perceptron --texts FOLDER  in minutes
    python -m experiments shakespeare                 a play without sense, invented

The model is nanoGPT's for a CPU, 4 layers, 4 heads, 128 channels, context 64, without
dropout, on characters. The curve "one worker" is nanoGPT's run: AdamW on 12 windows of
the whole text; on Shakespeare's plays it ends at 1.88 nats. It differs here in the
windows of the loss, which are fixed and more. Eight workers draw 2 windows each, 16 in
total; of the perceptron, which sees the last eight characters, 32 each.
Every contender is tuned with one seed on a twentieth of the text set apart, the
transformer's in fewer steps, and then runs with all seeds on all but what is held out.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import optax
from matplotlib.figure import Figure

from experiments.common.harness.options import Count, tiny
from experiments.common.harness.plots import draw_band, panels
from experiments.common.harness.results import Claim, Result, each_part
from experiments.common.training.outcomes import Runs, grid, report, verdict
from experiments.common.training.trainer import build_trainer, part_folder
from experiments.methods.shakespeare import texts
from experiments.methods.shakespeare.contenders import (
    CONTENDERS,
    Contender,
    learning_rate,
)
from experiments.methods.shakespeare.trial import Trial, build_trial

ONE_WORKER = "one worker, AdamW"
PUBLISHED, PLAYS = 1.88, 1_115_394  # nanoGPT's loss, and the characters of its text


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the comparison.

    Attributes:
      text: a file of UTF-8 text; None invents a play.
      texts: a folder with a file NAME.txt for each worker, in place of a text.
      split: who reads what of a text: "contiguous" parts, or parts of "speakers".
      fold_rare: characters that occur less often in training become one.
      contenders: names of the curves; all by default.
      num_workers: M.
      num_seeds: runs of each contender; a seed sets network, noise and windows.
      num_steps: steps of every run; the rate warms up and falls to a tenth by a cosine.
      tune_steps: steps of the runs that choose settings.
      warm_up: steps over which the rate rises.
      batch_size: windows per worker and step.
      one_worker_batch: windows of the one worker who reads everything.
      model: "transformer", or "perceptron", which is small: one hidden layer.
      context: characters that the model looks back on.
      layers: of the transformer.
      heads: of its attention.
      hidden: its channels, or the perceptron's hidden units.
      decay: weight decay.
      chunk: steps between two measurements.
      windows: windows to measure on.
      sample: characters written before and after training.
      adam_rates: learning rates that AdamW chooses from.
      lion_rates: learning rates that Lion on the mean chooses from.
      vote_rates: learning rates that votes choose from.
      average_rates: learning rates that the average of signs chooses from.
      scales: b that noise of one scale chooses from.
      leaf_factors: b over the median of the workers' largest entries of a leaf.
      coordinate_factors: b over the running root mean square of each coordinate.
    """

    text: Path | None = None
    texts: Path | None = None
    split: Literal["contiguous", "speakers"] = "contiguous"
    fold_rare: int = 0
    contenders: tuple[str, ...] = ()
    num_workers: Count = 8
    num_seeds: Count = 3
    num_steps: Count = 2000
    tune_steps: Count = 500
    warm_up: int = 100
    batch_size: Count = 2
    one_worker_batch: Count = 12
    model: Literal["transformer", "perceptron"] = "transformer"
    context: Count = 64
    layers: Count = 4
    heads: Count = 4
    hidden: Count = 128
    decay: float = 0.1
    chunk: Count = 100
    windows: Count = 400
    sample: Count = 300
    adam_rates: tuple[float, ...] = (1e-3, 2e-3, 4e-3)
    lion_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3)
    vote_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3)
    average_rates: tuple[float, ...] = (1e-3, 2e-3, 4e-3)
    scales: tuple[float, ...] = (1e-4, 3e-4, 1e-3)
    leaf_factors: tuple[float, ...] = (0.03, 0.1, 0.3)
    coordinate_factors: tuple[float, ...] = (0.25, 0.5, 1.0)


PRESETS = {
    "quick": Config(
        num_seeds=1,
        num_steps=300,
        tune_steps=100,
        warm_up=20,
        layers=2,
        hidden=32,
        adam_rates=(4e-3,),
        lion_rates=(1e-3, 2e-3),
        vote_rates=(1e-3, 2e-3),
        average_rates=(2e-3, 4e-3),
    ),
    "perceptron": Config(
        model="perceptron",
        num_steps=800,
        tune_steps=800,
        warm_up=20,
        batch_size=32,
        one_worker_batch=256,
        context=8,
        hidden=96,
        decay=0.0,
        windows=4000,
        adam_rates=(0.01, 0.03, 0.1),
        lion_rates=(1e-3, 3e-3, 5e-3),
        vote_rates=(1e-3, 3e-3, 5e-3, 8e-3),
        average_rates=(1e-3, 3e-3, 5e-3),
        leaf_factors=(0.01, 0.03, 0.1),
        coordinate_factors=(0.5, 1.0, 2.0, 4.0),
    ),
    "tiny": tiny(
        Config(),
        contenders=("mean + AdamW", "noisy Lion vote, b per leaf"),
        num_workers=2,
        tune_steps=2,
        warm_up=1,
        one_worker_batch=2,
        context=8,
        layers=1,
        heads=2,
        windows=4,
        sample=5,
    ),
}


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


def run(config: Config, checkpoints: Path | None = None) -> Result:
    """Tunes and trains every contender."""
    names = config.contenders or (ONE_WORKER, *CONTENDERS)
    unknown = [name for name in names if name not in (ONE_WORKER, *CONTENDERS)]
    if unknown:
        raise ValueError(
            f"--contenders takes some of {[ONE_WORKER, *CONTENDERS]}; got {unknown}."
        )
    trial, tuning = build_trial(config), build_trial(config, validate=True)
    alone = dataclasses.replace(
        config, num_workers=1, batch_size=config.one_worker_batch
    )

    def train(name: str) -> Reached:
        folder = part_folder(checkpoints, name)
        if name == ONE_WORKER:  # at nanoGPT's own rate
            pooled = build_trial(dataclasses.replace(alone, adam_rates=(1e-3,)))
            return _train(pooled, pooled, CONTENDERS["mean + AdamW"], folder)
        return _train(tuning, trial, CONTENDERS[name], folder)

    reached, partial = each_part(names, train)
    sent = {
        name: (CONTENDERS[name].bits if name in CONTENDERS else 32) / 8 / 1e6
        for name in reached
    }
    d = trial.num_parameters()
    curves = {
        name: one.curve | {"megabytes": one.curve["step"] * sent[name] * d}
        for name, one in reached.items()
    }
    before = trial.corpus.written(jax.jit(trial.write)(trial.model.params).tolist())
    extra = {
        "parameters": d,
        "characters": len(trial.corpus.characters),
        "chosen": {name: one.setting for name, one in reached.items()},
        "written before": before,
        "written after": {name: one.written for name, one in reached.items()},
    }
    claims = _claims(trial, reached)
    return Result(curves, claims, extra, partial=partial, data=_read(config))


def _read(config: Config) -> str:
    """Returns what was read, by the name that quoted results have to give it."""
    if config.texts is not None:
        names = sorted(file.stem for file in config.texts.glob("*.txt"))
        return f"{config.texts.name}: {', '.join(names)}"
    return "an invented play" if config.text is None else config.text.name


def _train(
    tuning: Trial, trial: Trial, contender: Contender, folder: Path | None
) -> Reached:
    """Chooses the setting in few steps with one seed, then trains all seeds."""
    config = trial.config
    tuned = {"rate": getattr(config, contender.rates)}
    if contender.scales:
        tuned["scale"] = getattr(config, contender.scales)
    settings = grid(**tuned)
    if len(settings["rate"]) > 1:
        tried = _runs(
            *(tuning, contender, settings, config.tune_steps, 1),
            folder and folder / "tune",
        )
        losses = np.nan_to_num(tried.metrics["validation_loss"][:, 0, -1], nan=np.inf)
        settings = {k: v[[losses.argmin()]] for k, v in settings.items()}
    runs = _runs(
        trial,
        contender,
        settings,
        config.num_steps,
        config.num_seeds,
        folder and folder / "train",
    )
    written = runs.metrics["written"][0, 0, -1]
    shown = {k: v for k, v in runs.metrics.items() if k != "written"}
    return Reached(
        runs.describe(0),
        Runs(settings, shown).curve(0),
        shown["held_out_loss"][0, :, -1],
        trial.corpus.written(written.tolist()),
    )


def _runs(
    trial: Trial,
    contender: Contender,
    settings: Any,
    num_steps: int,
    num_seeds: int,
    folder: Path | None,
) -> Runs:
    config = trial.config

    def build(key: Any, rate: Any, scale: Any = None) -> optax.GradientTransformation:
        schedule = learning_rate(rate, config.warm_up, num_steps)
        return contender.build(config, schedule, scale, key)

    trainer = build_trainer(
        trial.problem(num_seeds),
        build,
        batch_size=config.batch_size,
        num_steps=num_steps,
        chunk=min(config.chunk, num_steps),
        measure=trial.measure,
        worker_chunk=1,  # a quarter faster on CPUs than all at once
    )
    return trainer(settings, trial.corpus.split, folder)


def _claims(trial: Trial, reached: dict[str, Reached]) -> tuple[Claim, ...]:
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
        if name.startswith("noisy"):
            claims += _compare(name, reached, is_trained)
    return tuple(claims)


def _compare(name: str, reached: dict[str, Reached], judged: bool) -> list[Claim]:
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
                f"{name} is ahead of Distributed Lion (two standard errors)",
                f"by {report(ahead)} nats",
                verdict(ahead, lambda mean, error: mean > 2 * error)
                if judged
                else None,
            )
        )
    return claims


def plot(result: Result) -> Figure:
    """Draws the held-out loss against steps, and against what a worker sent up."""
    figure, axes = panels(2)
    for ax, against in zip(axes, ("step", "megabytes"), strict=True):
        for name, curve in result.curves.items():
            draw_band(ax, curve, "held_out_loss", name, against)
    axes[0].set_title("nats per character on held-out text")
    axes[1].set(xscale="log", xlabel="megabytes sent up by a worker")
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside right upper")
    return figure
