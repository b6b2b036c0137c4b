"""A language model by votes of workers who read different text: noisy Lion.

Claim: where workers read different text, Distributed Lion, one bit per coordinate and
worker, falls behind Lion on the mean of 32-bit gradients; noise on the interpolation of
Lion, before its sign, brings the vote back. So it is for a perceptron on eight
languages. Transformers get a part of the gap back so, and all of it with the momentum
behind the aggregator, Lion after noisy signs, once it forgets soon enough
(``--lion-b2 0.9``): nanoGPT's is ahead of Lion on the mean there, whose own sign wants
noise as a vote does. Drawn against steps and bytes sent up.

    python -m experiments shakespeare --text FILE     one text, cut into eight parts
    python -m experiments shakespeare --text FILE --split speakers
    python -m experiments shakespeare --texts FOLDER  NAME.txt, a file for each worker
    python -m experiments shakespeare --texts FOLDER  NAME/man1: a language's manuals
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
from typing import Any

import jax
import numpy as np
import optax
from matplotlib.figure import Figure

from experiments.common.data.texts import find_texts
from experiments.common.harness.misuse import Misuse
from experiments.common.harness.plots import draw_band, legend_outside, panels
from experiments.common.harness.results import Result, each_part
from experiments.common.training.outcomes import Runs, grid
from experiments.common.training.trainer import build_trainer, part_folder
from experiments.methods.shakespeare.claims import ONE_WORKER, Reached, judge
from experiments.methods.shakespeare.config import PRESETS, Config
from experiments.methods.shakespeare.contenders import (
    CONTENDERS,
    Contender,
    learning_rate,
)
from experiments.methods.shakespeare.trial import Trial, build_trial

__all__ = ["PRESETS", "Config", "plot", "run"]


def run(config: Config, checkpoints: Path | None = None) -> Result:
    """Tunes and trains every contender."""
    names = config.contenders or (ONE_WORKER, *CONTENDERS)
    unknown = [name for name in names if name not in (ONE_WORKER, *CONTENDERS)]
    if unknown:
        raise Misuse(
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
    claims = judge(trial, reached)
    return Result(curves, claims, extra, partial=partial, data=_read(config))


def _read(config: Config) -> str:
    """Returns what was read, by the name that quoted results have to give it."""
    if config.texts is not None:
        found = find_texts(config.texts)
        what = "manual pages" if found[0].is_dir() else config.texts.name
        return f"{what}: {', '.join(path.stem for path in found)}"
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


def plot(result: Result) -> Figure:
    """Draws the held-out loss against steps, and against what a worker sent up."""
    figure, axes = panels(2)
    for ax, against in zip(axes, ("step", "megabytes"), strict=True):
        for name, curve in result.curves.items():
            draw_band(ax, curve, "held_out_loss", name, against)
    axes[0].set_title("nats per character on held-out text")
    axes[1].set(xscale="log", xlabel="megabytes sent up by a worker")
    legend_outside(figure, axes[1])
    return figure
