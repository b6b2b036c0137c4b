"""Data larger than a device's memory, and meshes: what `run` costs beside a bare loop.

Claim: fed by an iterator over a memory-mapped file of several GB, `jm.run` takes at
most 5 % longer a step of some 10 ms than with a batch that lies on the device, and
holds no more than a few batches in memory. Over a mesh it takes at most 3 % longer than
a loop of one's own over `jm.sharding.shard_step`, its measurements included.

    python -m experiments loading                  a file of 4 GB, in a scratch folder
    python -m experiments loading --gigabytes 40   or as large as the disk allows

The file is removed at the end. Runs that are compared take turns, and figures are
medians: on a shared machine single turns differ by much more than what is measured. On
CPUs the "device" computes on the cores that read and copy the batches too, so what
loading costs is not hidden there; the goal is one for accelerators. An iterator that
gives the batch on the device each time, and loads nothing, shows what calls cost.
"""

import dataclasses
from typing import Any

import jax
from matplotlib.figure import Figure

from experiments.common.harness.misuse import Misuse
from experiments.common.harness.options import Count, Seed
from experiments.common.harness.own_process import run_module, virtual_devices
from experiments.common.harness.plots import panels
from experiments.common.harness.results import Claim, Result


@dataclasses.dataclass(frozen=True)
class Config:
    """What is trained, and how often.

    Attributes:
      gigabytes: size of the file.
      scratch: folder it is written to; None for the system's temporary one.
      num_workers: M.
      batch_size: samples of a worker in a step.
      features: float32 numbers of a sample.
      hidden: units of the network, which decide how long a step takes.
      devices: of the mesh.
      num_steps: steps of a turn.
      chunk: steps between two edges, at which times are taken.
      turns: of each way to train.
      seed: of the numbers in the file.
    """

    gigabytes: float = 4.0
    scratch: str | None = None
    num_workers: Count = 4
    batch_size: Count = 64
    features: Count = 1024
    hidden: Count = 1024
    devices: Count = 2
    num_steps: Count = 300
    chunk: Count = 100
    turns: Count = 7
    seed: Seed = 0


_QUIET = 0.2  # by which the ratios of turns may differ, to be judged

PRESETS = {
    "tiny": Config(
        gigabytes=0.0005, features=16, batch_size=8, hidden=4, num_steps=4, chunk=2,
        turns=1,
    ),
}  # fmt: skip


def run(config: Config) -> Result:
    """Measures in a process of its own, where the CPU is split into enough devices."""
    _check(config)
    environment = {}
    if len(jax.devices()) < config.devices:
        environment = virtual_devices(config.devices)
    module = "experiments.systems.loading.measure"
    measured = run_module(module, config, environment, timeout=7200)
    for name, row in measured["rows"].items():
        print(
            f"{name:32} {row['ms']:8.2f} ms a step, {1e3 / row['ms']:7.1f} steps/s, "
            f"{row['core_ms']:8.2f} core ms"
        )
    figures = figures_of(measured)
    return Result({}, _claims(config, measured), {"figures": figures, **measured})


def figures_of(measured: dict[str, Any]) -> dict[str, str | float]:
    """Returns what pages quote: times a step, and by how much they are longer."""
    figures: dict[str, str | float] = {
        "file, MB": f"{measured['memory']['file']:,.0f}",
        "memory, MB": round(measured["memory"]["mapped"]),
    }
    for name, row in measured["rows"].items():
        figures[f"{name}, ms"] = row["ms"]
        figures[f"{name}, core ms"] = row["core_ms"]
    for name, (ratio, low, high, cores) in measured["ratios"].items():
        for kind, value in zip(
            ("longer", "at best", "at worst", "work"), (ratio, low, high, cores),
            strict=True,
        ):  # fmt: skip
            figures[f"{name}, {kind}"] = f"{100 * (value - 1):+.0f} %"
    return figures


def _check(config: Config) -> None:
    if config.num_steps % config.chunk or config.num_steps < 2 * config.chunk:
        raise Misuse(
            "--num-steps must be a multiple of --chunk, and two at least (the first "
            f"chunk compiles); got {config.num_steps} and {config.chunk}."
        )
    if config.num_workers % config.devices:
        raise Misuse(
            f"--num-workers must be a multiple of --devices; got {config.num_workers} "
            f"and {config.devices}."
        )


def _claims(config: Config, measured: dict[str, Any]) -> tuple[Claim, ...]:
    rows, is_judged = measured["rows"], config.turns >= Config.turns

    def slower(statement: str, name: str, than: str, percent: float) -> Claim:
        ratio, low, high, cores = measured["ratios"][name]
        here = (
            f"{rows[name]['ms']:.2f} ms against {rows[than]['ms']:.2f}: "
            f"{100 * (ratio - 1):+.1f} % (turns from {100 * (low - 1):+.1f} to "
            f"{100 * (high - 1):+.1f}; work of the cores {100 * (cores - 1):+.1f} %)"
        )
        is_quiet = high - low <= _QUIET
        return Claim(
            f"{statement}: at most {percent:g} % slower",
            here,
            ratio <= 1 + percent / 100 if is_judged and is_quiet else None,
            reason="" if is_quiet else "turns differ too much to judge: a busy machine",
        )

    memory = measured["memory"]
    return (
        slower(
            "Batches read from a memory-mapped file, against one on the device",
            "memory-mapped file", "batch on the device", 5,
        ),
        slower(
            "Batches from the host's memory, against one on the device",
            "host memory", "batch on the device", 5,
        ),
        Claim(
            f"Training from a file of {memory['file']:,.0f} MB takes less than a "
            "quarter of it in memory of the process",
            f"{memory['mapped']:,.0f} MB more than at the start, "
            f"{memory['device']:,.0f} with one batch on the device",
            memory["mapped"] < memory["file"] / 4 if is_judged else None,
            reason="anonymous memory; pages of the file, which the system may drop at "
            "any time, do not count",
        ),
        slower(
            f"`run(mesh=)` on {config.devices} devices, against a loop over "
            "`shard_step` that measures nothing",
            "run(mesh=)", "loop over shard_step", 3,
        ),
    )  # fmt: skip


def plot(result: Result) -> Figure:
    """Draws the time a step of every way, each turn a point."""
    figure, (axes,) = panels(1)
    rows = result.extra["rows"]
    for place, row in enumerate(rows.values()):
        axes.scatter([place] * len(row["turns"]), row["turns"], s=8, alpha=0.6)
        axes.hlines(row["ms"], place - 0.3, place + 0.3)
    axes.set_xticks(range(len(rows)), [name.replace(" ", "\n", 1) for name in rows])
    axes.tick_params(axis="x", labelsize=7)
    axes.set_title("ms a step, by turn, and median")
    axes.set_ylim(bottom=0)
    return figure
