"""TPU: memory and traffic of every rule, compiled ahead of time for eight cores.

Claim: with one worker on each of 8 TPU v5e cores the packed vote keeps nothing on the
side larger than its packed bits and sends less than 2 bits a coordinate and worker, up
and down together, where a float32 mean sends 56. All numbers are the compiler's, read
from programs compiled ahead of time for the topology; nothing runs, so no times.

    pip install libtpu
    python -m experiments tpu                    every rule, 1 and 4 workers a core
    python -m experiments tpu --preset quick     1 worker a core

It prints the table in systems/tpu/v5e.md. Without libtpu there is nothing to show, and
the table says so.
"""

import dataclasses
from typing import Any

from matplotlib.figure import Figure

from experiments.common.harness.options import Count
from experiments.common.harness.own_process import run_module
from experiments.common.harness.plots import panels
from experiments.common.harness.results import Claim, Result


@dataclasses.dataclass(frozen=True)
class Config:
    """What to compile.

    Attributes:
      topology: of the cores, as `jax.experimental.topologies` names it.
      num_coordinates: d of the rules' gradients.
      workers_per_core: M / D, each in turn.
      hidden: hidden units of the MNIST network, whose whole step is compiled too.
      batch_size: images a worker and step there.
    """

    topology: str = "v5e:2x4"
    num_coordinates: Count = 1_000_000
    workers_per_core: tuple[Count, ...] = (1, 4)
    hidden: Count = 128
    batch_size: Count = 64


PRESETS = {
    "quick": Config(workers_per_core=(1,)),
    "tiny": Config(num_coordinates=1000, workers_per_core=(1,), hidden=8),
}
_COLUMNS = {
    "program": "program",
    "workers_per_core": "workers a core",
    "argument_bytes": "arguments, bytes",
    "temporary_bytes": "temporaries, bytes",
    "memory_traffic_bytes": "memory traffic, bytes",
    "sent_bytes": "sent, bytes",
    "bits_per_coordinate": "bits a coordinate and worker",
}


def run(config: Config) -> Result:
    """Compiles in a process of its own, since libtpu must be there from the start."""
    environment = {
        "JAX_PLATFORMS": "cpu",  # nothing is run on a TPU
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
    }
    found = run_module(
        "experiments.systems.tpu.programs", config, environment, timeout=3600
    )
    rows = found.get("rows", [])
    if rows:
        print(f"{found['device_kind']}, {config.topology}, compiled ahead of time")
    print(table(rows))
    return Result({}, tuple(_claims(found)), found)


def table(rows: list[dict[str, Any]]) -> str:
    """Writes the rows as a table in Markdown."""
    lines = [list(_COLUMNS.values()), ["---"] * len(_COLUMNS)]
    lines += [[_written(row[column]) for column in _COLUMNS] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _written(value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.3f}"


def _claims(found: dict[str, Any]) -> list[Claim]:
    small = "On 8 TPU cores the packed vote keeps nothing larger than packed votes"
    short = "It sends at most 2 bits a coordinate and worker, up and down together"
    if "skipped" in found:
        reason = found["skipped"]
        return [Claim(what, "not compiled", reason=reason) for what in (small, short)]
    one = {row["program"]: row for row in found["rows"] if row["workers_per_core"] == 1}
    if "packed vote" not in one:
        return []
    packed, mean = one["packed vote"], one["mean"]
    kept, limit = packed["temporary_bytes"], found["packed_bytes"]
    bits = packed["bits_per_coordinate"]
    judged = found["packed_bytes"] >= 100_000  # padding weighs on fewer coordinates
    return [
        Claim(
            small, f"{kept:,} bytes beside {limit:,}", kept <= limit if judged else None
        ),
        Claim(
            short,
            f"{bits:.3f} bits; float32 mean {mean['bits_per_coordinate']:.2f}",
            bits <= 2 if judged else None,
            paper="1 bit up",
        ),
    ]


def plot(result: Result) -> Figure:
    """Draws what each program keeps on the side and what it sends."""
    figure, (left, right) = panels(2)
    rows = result.extra.get("rows", [])
    names = [f"{row['program']}, {row['workers_per_core']} a core" for row in rows]
    left.barh(names, [row["temporary_bytes"] / 1e3 for row in rows])
    left.set_title("kept on the side, kB")
    right.barh(names, [row["sent_bytes"] / 1e6 for row in rows])
    right.set_title("sent by a core, MB")
    right.set_yticks([])
    for axes in (left, right):
        axes.invert_yaxis()
    return figure
