"""Several processes: the bits of one, and one-bit votes on a slow link.

Claim: processes that each hold their own workers' digits, joined by `jax.distributed`,
train to the parameters of the one-device simulator, bit for bit (`worker_chunk=1`). On
a link of 100 Mbit/s, 4 processes with 1,000,000 parameters take at least 10 times
longer for a step with a float32 mean than with the packed vote.

    python -m experiments processes                 loopback, then the link (root only)
    python -m experiments processes --no-link       loopback alone

Everything runs on this machine:
network namespaces stand for hosts, `tc tbf` limits their links; where that is not
allowed the run says why and leaves it out. On real hosts the program is the same: see
`experiments.systems.processes.participant`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.common.harness.misuse import Misuse
from experiments.common.harness.options import Count, Seed
from experiments.common.harness.plots import draw_curves, panels
from experiments.common.harness.results import Claim, Result
from experiments.systems.processes.launch import start, start_on_link


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the processes.

    Attributes:
      processes: numbers of processes to compare with one.
      devices: virtual devices a process, for each of them.
      num_workers: M, of the training run.
      num_steps: steps of the training run.
      learning_rate: step of the noisy vote.
      scale: b, of its Gaussian noise.
      hidden: units of the hidden layer.
      link: whether to time steps on a limited link too.
      link_processes: processes on the link, one worker each.
      link_megabits: what each cable carries, a second and direction.
      link_hidden: units of the hidden layer there; 1280 make 1,017,610 parameters.
      link_steps: timed steps of each rule.
      seed: of the network, the split and the noise.
    """

    processes: tuple[Count, ...] = (1, 2, 4)
    devices: tuple[Count, ...] = (4, 2, 1)
    num_workers: Count = 20
    num_steps: Count = 30
    learning_rate: float = 1e-3
    scale: float = 1e-2
    hidden: Count = 128
    link: bool = True
    link_processes: Count = 4
    link_megabits: float = 100.0
    link_hidden: Count = 1280
    link_steps: Count = 15
    seed: Seed = 0


PRESETS = {
    "quick": Config(processes=(2,), devices=(2,), num_steps=10, link_steps=5),
    "tiny": Config(
        processes=(2,), devices=(2,), num_workers=4, num_steps=2, hidden=8, link=False
    ),
}


def run(config: Config) -> Result:
    """Trains on one device and in processes; times steps on a limited link."""
    from experiments.systems.processes.participant import simulate

    check_meshes(config.processes, config.devices, config.num_workers)
    one = simulate(config)
    curves = {"one device, simulator": _curve(one)}
    claims = []
    for number, num_devices in zip(config.processes, config.devices, strict=True):
        name = f"{number} x {num_devices} devices"
        found = start("train", config, number, num_devices)
        curves[name] = _curve(found)
        same = found["sha256"] == one["sha256"]
        claims.append(bits_claim(number, num_devices, same))
    link: dict[str, Any] = {}
    if config.link:
        link = _on_link(config)
        claims.append(_link_claim(config, link))
    return Result(curves, tuple(claims), {"sha256": one["sha256"], "link": link})


def check_meshes(
    processes: Sequence[int], devices: Sequence[int], num_workers: int
) -> None:
    """Refuses meshes over which the workers cannot be spread evenly."""
    if len(processes) != len(devices):
        raise Misuse(
            "--devices takes one number for each of --processes; got "
            f"{devices} for {processes}."
        )
    for number, num_devices in zip(processes, devices, strict=True):
        if num_workers % (number * num_devices):
            raise Misuse(
                f"--num-workers must be a multiple of all devices; got "
                f"{num_workers} for {number} x {num_devices}."
            )


def bits_claim(num_processes: int, num_devices: int, same: bool) -> Claim:
    """States that processes train to the parameters of one device."""
    return Claim(
        f"{num_processes} process(es) with {num_devices} device(s) each train to the "
        "parameters of one device",
        "the same bits" if same else "they differ",
        same,
    )


def _curve(found: dict[str, Any]) -> dict[str, np.ndarray]:
    losses = np.asarray(found["losses"])
    return {"step": np.arange(1, len(losses) + 1), "loss": losses}


def _on_link(config: Config) -> dict[str, Any]:
    found = start_on_link(
        "time_steps", config, config.link_processes, config.link_megabits
    )
    for row in found.get("rows", ()):
        print(
            f"{row['rule']:12} {row['ms']:9.1f} ms a step, "
            f"{row['bytes_counted']:12,.0f} bytes counted, "
            f"{row['bytes_sent']:12,.0f} sent, headers included"
        )
    return found


def _link_claim(config: Config, link: dict[str, Any]) -> Claim:
    statement = (
        f"{config.link_processes} processes on links of {config.link_megabits:g} "
        "Mbit/s: a step with the packed vote is at least 10 times faster than with a "
        "float32 mean"
    )
    if "skipped" in link:
        return Claim(statement, "not run", reason=link["skipped"])
    ms = {row["rule"]: row["ms"] for row in link["rows"]}
    times = ms["mean"] / ms["packed vote"]
    here = (
        f"{ms['packed vote']:.0f} ms against {ms['mean']:.0f}: {times:.1f} times, "
        f"{link['num_parameters']:,} parameters"
    )
    return Claim(statement, here, times >= 10)


def plot(result: Result) -> Figure:
    """Draws the losses, one curve on the other, and the step times on the link."""
    link = result.extra["link"]
    figure, axes = panels(2 if "rows" in link else 1)
    styles = ("-", "--", ":", "-.")
    for i, (name, curve) in enumerate(result.curves.items()):
        draw_curves(
            axes[0],
            {name: curve},
            "loss",
            linestyle=styles[i % len(styles)],
            linewidth=4 - i % 4,
        )
    axes[0].set_title("loss, processes x devices: one curve")
    axes[0].legend(fontsize=7)
    if "rows" in link:
        _draw_link(axes[1], link)
    return figure


def _draw_link(axes: Axes, link: dict[str, Any]) -> None:
    names = [row["rule"] for row in link["rows"]]
    bars = axes.bar(names, [row["ms"] for row in link["rows"]])
    axes.bar_label(bars, fmt="%.0f")
    axes.set_title(f"ms a step on the link, {link['num_parameters']:,} parameters")
