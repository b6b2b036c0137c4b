"""What a run leaves on disk: config.json, metrics.csv, summary.json and figure.png."""

import csv
import dataclasses
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure

from experiments.common.harness.claims import Claim

Curves = Mapping[str, Mapping[str, np.ndarray]]  # curve -> metric -> its values


class Result(NamedTuple):
    """What an experiment found.

    Attributes:
      curves: one table of metrics a curve.
      claims: what was to be shown, and whether it was.
      extra: what else belongs into summary.json.
      against: the column that every table has and is drawn against.
    """

    curves: Curves
    claims: tuple[Claim, ...]
    extra: Mapping[str, Any] = MappingProxyType({})
    against: str = "step"


def save(folder: Path, config: Any, result: Result, figure: Figure) -> None:
    """Writes the four files of a run into ``folder``, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(as_json(config))
    (folder / "summary.json").write_text(as_json(_summary(result)))
    _write_csv(folder / "metrics.csv", result.curves, result.against)
    figure.savefig(folder / "figure.png", dpi=150)


def _summary(result: Result) -> dict[str, Any]:
    device = jax.devices()[0]
    return {
        "claims": [claim._asdict() for claim in result.claims],
        "last": {
            name: {key: float(values[-1]) for key, values in curve.items()}
            for name, curve in result.curves.items()
        },
        "device": f"{device.platform}: {device.device_kind}",
        "python": platform.python_version(),
        "jax": jax.__version__,
        **result.extra,
    }


def as_json(content: Any) -> str:
    """Writes a Config, or a dictionary, as JSON."""
    if dataclasses.is_dataclass(content) and not isinstance(content, type):
        content = dataclasses.asdict(content)
    return json.dumps(content, indent=2, default=str) + "\n"


def _write_csv(path: Path, curves: Curves, against: str) -> None:
    """Writes one row a curve and point; a metric a curve lacks stays empty."""
    metrics = sorted({key for curve in curves.values() for key in curve} - {against})
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["curve", against, *metrics])
        for name, curve in curves.items():
            for row, point in enumerate(curve[against]):
                values = [curve[key][row] if key in curve else "" for key in metrics]
                writer.writerow([name, point.item(), *values])
