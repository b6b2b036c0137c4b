"""A language model over a mesh: the bits of one device, seconds to a loss on a link.

Claim: the noisy Lion vote with a scale for each coordinate, packed, trains on 8 virtual
devices and in 2 processes to the parameters of one device, bit for bit. Where 100
Mbit/s join the processes, it is at a loss of 2.0 on held-out text sooner than Lion on
the mean of float32 or of bfloat16 gradients.

    python -m experiments language_link --text FILE    one text, cut into eight parts
    python -m experiments language_link --no-link      the bits and bytes alone

Model, text and schedule are those of `shakespeare`, the link is that of `processes`.
Seconds to a loss are the steps to it, counted on one device, times the seconds of a
step on the link: a vote's bits are the same there, and a mean's differ by rounding.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.common.harness.options import Count, Seed, Whole
from experiments.common.harness.plots import draw_curves, panels
from experiments.common.harness.results import Claim, Result, each_part
from experiments.common.training.trainer import part_folder
from experiments.systems.processes import bits_claim, check_meshes
from experiments.systems.processes.launch import start, start_on_link

VOTE = "noisy vote, packed"
_MODULE = "experiments.systems.language_link.reader"


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the language model and of the link.

    Attributes:
      text: a file of UTF-8 text; None invents a play.
      processes: numbers of processes to compare with one.
      devices: virtual devices a process, for each of them.
      exact_steps: steps of that comparison.
      target: loss on held-out text to be reached, nats.
      num_workers: M.
      num_steps: steps in which the rate warms up and falls to a tenth by a cosine.
      warm_up: steps over which the rate rises.
      chunk: steps between two measurements.
      batch_size: windows per worker and step.
      context: characters that the model looks back on.
      layers: of the transformer.
      heads: of its attention.
      hidden: its channels.
      windows: windows to measure on.
      lion_rate: learning rate of Lion on a mean.
      vote_rate: learning rate of the vote.
      factor: b over the running root mean square of each coordinate.
      every: steps between two looks at it.
      link: whether to time steps on a limited link too.
      link_processes: processes on the link.
      link_megabits: what each cable carries, a second and direction.
      link_steps: timed steps of each rule.
      seed: of the network, the windows and the noise.
    """

    text: Path | None = None
    processes: tuple[Count, ...] = (1, 2)
    devices: tuple[Count, ...] = (8, 1)
    exact_steps: Count = 20
    target: float = 2.0
    num_workers: Count = 8
    num_steps: Count = 2000
    warm_up: Whole = 100
    chunk: Count = 50
    batch_size: Count = 2
    context: Count = 64
    layers: Count = 4
    heads: Count = 4
    hidden: Count = 128
    windows: Count = 400
    lion_rate: float = 3e-4
    vote_rate: float = 3e-4
    factor: float = 0.5
    every: Count = 50
    link: bool = True
    link_processes: Count = 2
    link_megabits: float = 100.0
    link_steps: Count = 50
    seed: Seed = 0


PRESETS = {
    "quick": Config(
        processes=(2,),
        devices=(1,),
        num_steps=300,
        warm_up=20,
        layers=2,
        hidden=32,
        exact_steps=5,
        link_steps=10,
    ),
    "tiny": Config(
        processes=(1,),
        devices=(2,),
        exact_steps=2,
        num_workers=2,
        num_steps=2,
        warm_up=1,
        chunk=1,
        context=8,
        layers=1,
        heads=2,
        hidden=8,
        windows=4,
        link=False,
    ),
}


def run(config: Config, checkpoints: Path | None = None) -> Result:
    """Compares the bits, times steps on the link, and trains each rule to the loss."""
    from experiments.systems.language_link import reader

    check_meshes(config.processes, config.devices, config.num_workers)
    if config.link:
        check_meshes((config.link_processes,), (1,), config.num_workers)
    one = reader.simulate(config)
    claims = []
    for number, num_devices in zip(config.processes, config.devices, strict=True):
        found = start("train", config, number, num_devices, module=_MODULE)
        same = found["sha256"] == one["sha256"]
        claims.append(bits_claim(number, num_devices, same))
    link = _on_link(config)
    seconds = {row["rule"]: row["seconds"] for row in link.get("rows", ())}

    def train(name: str) -> dict[str, np.ndarray]:
        curve = reader.until_target(config, name, part_folder(checkpoints, name))
        return curve | {"seconds": curve["step"] * seconds.get(name, np.nan)}

    curves, partial = each_part(reader.RULES, train)
    claims += [_reached(config, name, curve) for name, curve in curves.items()]
    if not partial:
        claims.append(_sooner(config, curves, link))
    extra = {
        "sha256": one["sha256"],
        "parameters": one["parameters"],
        "link": link,
        "figures": figures_of(link),
    }
    return Result(curves, tuple(claims), extra, partial=partial)


def figures_of(link: dict[str, Any]) -> dict[str, float]:
    """Returns what pages quote of the link: megabytes that leave a host in a step."""
    return {
        f"{row['rule']}, megabytes": row["bytes_sent"] / 1e6
        for row in link.get("rows", ())
    }


def _on_link(config: Config) -> dict[str, Any]:
    if not config.link:
        return {"skipped": "--no-link"}
    found = start_on_link(
        "time_steps", config, config.link_processes, config.link_megabits, _MODULE
    )
    for row in found.get("rows", ()):
        print(
            f"{row['rule']:20} {1e3 * row['seconds']:8.0f} ms a step, "
            f"{row['bytes_counted']:12,.0f} bytes in the compiled program, "
            f"{row['bytes_sent']:12,.0f} sent, headers and new scales included"
        )
    return found


def _steps_to(config: Config, curve: dict[str, np.ndarray]) -> float:
    """Returns the first measured step at which the loss is reached, or infinity."""
    reached = curve["held_out_loss"] <= config.target
    return float(curve["step"][reached.argmax()]) if reached.any() else np.inf


def _reached(config: Config, name: str, curve: dict[str, np.ndarray]) -> Claim:
    steps = _steps_to(config, curve)
    last = f"{curve['held_out_loss'][-1]:.3f} nats after {curve['step'][-1]:,.0f} steps"
    here = last if np.isinf(steps) else f"{steps:,.0f} steps"
    return Claim(f"{name}: steps to {config.target:g} nats", here)


def _sooner(config: Config, curves: dict[str, Any], link: dict[str, Any]) -> Claim:
    statement = (
        f"On links of {config.link_megabits:g} Mbit/s the packed noisy vote is at "
        f"{config.target:g} nats before Lion on the mean of float32 or bfloat16"
    )
    if "skipped" in link:
        return Claim(statement, "not run", reason=link["skipped"])
    needed = {
        row["rule"]: _steps_to(config, curves[row["rule"]]) * row["seconds"]
        for row in link["rows"]
    }
    here = ", ".join(
        f"{name}: {'never' if np.isinf(s) else f'{s:,.0f} s'}"
        for name, s in needed.items()
    )
    if np.isinf(min(needed.values())):
        return Claim(statement, here, reason="no rule was there in these steps")
    others = [s for name, s in needed.items() if name != VOTE]
    return Claim(statement, here, needed[VOTE] < min(others))


def plot(result: Result) -> Figure:
    """Draws the held-out loss against steps, and against seconds on the link."""
    timed = "rows" in result.extra["link"]
    figure, axes = panels(2 if timed else 1)
    for ax, against in zip(axes, ("step", "seconds"), strict=False):
        draw_curves(ax, result.curves, "held_out_loss", against=against)
    axes[0].set_title("nats per character on held-out text")
    if timed:
        axes[1].set(xscale="log", xlabel="seconds on the link")
    axes[0].legend(fontsize=7)
    return figure
