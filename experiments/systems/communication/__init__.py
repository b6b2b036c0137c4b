"""Bytes between devices and step time: mean, median and votes on 2, 4 and 8 devices.

Claim: with one worker on each of 8 devices, the packed vote sends less than 2 bits a
coordinate and worker, up and down together, where a float32 mean sends 56. The bytes
are read from the compiled programs; for those of a TPU see `experiments.systems.tpu`.

    python -m experiments communication
    python -m experiments communication --preset quick     8 devices alone

Where there are fewer devices the CPU is split into virtual ones, whose step time is
that of one machine doing the work of all, with memory for a wire (the packed vote then
takes 2 to 3 times as long as the mean): for times over a real link see
`experiments.systems.processes`.
"""

import dataclasses
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from experiments.common.harness.options import Count, Seed
from experiments.common.harness.own_process import run_module, virtual_devices
from experiments.common.harness.plots import panels
from experiments.common.harness.results import Claim, Result


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure.

    Attributes:
      devices: numbers of devices.
      workers_per_device: M / D.
      num_coordinates: d.
      packing_workers: rows packed and unpacked against their unpacked vote.
      turns: the most turns each rule is timed.
      seed: of the gradients.
    """

    devices: tuple[Count, ...] = (2, 4, 8)
    workers_per_device: Count = 1
    num_coordinates: Count = 1_000_000
    packing_workers: Count = 11
    turns: Count = 15
    seed: Seed = 0


PRESETS = {
    "quick": Config(devices=(8,)),
    "tiny": Config(devices=(2,), num_coordinates=1000, turns=1),
}


def run(config: Config) -> Result:
    """Measures bytes and times, in a process of its own if devices are lacking."""
    if len(jax.devices()) >= max(config.devices):
        from experiments.systems.communication import measure

        measured = measure.on_devices(config)
    else:
        measured = _in_process(config)
    _print_rows(measured["rows"])
    claims = [*_byte_claims(measured["rows"]), *_packing_claims(config, measured)]
    most = max(config.devices)
    figures = {
        row["rule"]: row["bits_per_coordinate"]
        for row in measured["rows"]
        if row["D"] == most
    }
    return Result({}, tuple(claims), {**measured, "figures": figures})


def _in_process(config: Config) -> dict[str, Any]:
    """Runs `measure` in a process with enough devices."""
    module = "experiments.systems.communication.measure"
    environment = virtual_devices(max(config.devices))
    return run_module(module, config, environment, timeout=1800)


def _print_rows(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        print(
            f"D={row['D']}  {row['rule']:12} {row['bytes']:>12,.0f} bytes a device "
            f"{row['bits_per_coordinate']:7.2f} bits a coordinate and worker "
            f"({row['bytes_of_mean']:5.1f} times less than the mean)  "
            f"{row['ms']:7.2f} ms (x{row['ms_to_mean']:.2f})"
        )


def _byte_claims(rows: list[dict[str, Any]]) -> list[Claim]:
    bits = {(row["D"], row["rule"]): row["bits_per_coordinate"] for row in rows}
    claims = []
    if (8, "packed vote") in bits:
        packed, mean = bits[8, "packed vote"], bits[8, "mean"]
        claims.append(
            Claim(
                "8 devices: the packed vote sends at most 2 bits a coordinate and "
                "worker, up and down together",
                f"{packed:.3f} bits; float32 mean {mean:.2f}",
                packed <= 2,
                paper="1 bit up",
            )
        )
    same = all(row["same_as_one_device"] for row in rows if "same_as_one_device" in row)
    claims.append(
        Claim(
            "Tallies and packed bits give the votes of one device, bit for bit",
            "the same" if same else "they differ",
            same,
        )
    )
    return claims


def _packing_claims(config: Config, measured: dict[str, Any]) -> list[Claim]:
    ms = measured["packing_ms"]
    ratio = (ms["pack"] + ms["count"] + ms["unpack"]) / ms["vote"]
    judged = config.turns >= Config.turns
    return [
        Claim(
            f"Packing {config.packing_workers} rows of {config.num_coordinates:,}, "
            "counting the bits and unpacking the decisions take at most twice the "
            "unpacked vote",
            f"{ms['pack']:.2f} + {ms['count']:.2f} + {ms['unpack']:.2f} ms against "
            f"{ms['vote']:.2f}: {ratio:.2f} times",
            ratio <= 2 if judged else None,
        )
    ]


def plot(result: Result) -> Figure:
    """Draws bits a coordinate and worker, and step time, against the devices."""
    figure, (left, right) = panels(2)
    rows = result.extra["rows"]
    for axes, column in ((left, "bits_per_coordinate"), (right, "ms")):
        for rule in dict.fromkeys(row["rule"] for row in rows):
            of_rule = [row for row in rows if row["rule"] == rule]
            devices = [row["D"] for row in of_rule]
            values = [row[column] for row in of_rule]
            style = "--" if rule == "median" else "-"  # as many bytes as the mean
            axes.plot(devices, values, marker=".", linestyle=style, label=rule)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(devices, [str(number) for number in devices])
        axes.set_xlabel("devices")
    left.set_title("bits a coordinate and worker, up and down")
    right.set_title("ms an update, one machine for all devices")
    left.set_ylim(top=2 * np.max([row["bits_per_coordinate"] for row in rows]))
    right.legend(fontsize=7)
    return figure
