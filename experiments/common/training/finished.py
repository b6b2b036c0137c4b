"""Keep each finished part of a sweep: ``--resume`` trains only what is missing."""

import os
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import numpy as np

from experiments.common.training.trainer import Runs


def once(folder: Path | None, name: str, train: Callable[[], Runs]) -> Runs:
    """Returns the runs of this name from the folder, or trains and keeps them.

    Args:
      folder: of the checkpoints; None keeps nothing.
      name: of this part of the sweep, no other's.
      train: returns the runs if they are not in the folder.
    """
    if folder is None:
        return train()
    file = folder / f"{quote(name, safe=' ,')}.npz"
    if file.exists():
        print(f"  found in {folder}/")
        return _load(file)
    runs = train()
    unfinished = file.with_suffix(".unfinished")
    with unfinished.open("wb") as stream:
        parts = {"settings": runs.settings, "metrics": runs.metrics}
        np.savez(
            stream,
            allow_pickle=False,
            **{
                f"{part}/{k}": v
                for part, leaves in parts.items()
                for k, v in leaves.items()
            },
        )
    os.replace(unfinished, file)
    return runs


def _load(file: Path) -> Runs:
    with np.load(file, allow_pickle=False) as saved:
        leaves = {name: saved[name] for name in saved.files}

    def part(name: str) -> dict[str, np.ndarray]:
        return {
            key.removeprefix(f"{name}/"): leaf
            for key, leaf in leaves.items()
            if key.startswith(f"{name}/")
        }

    return Runs(part("settings"), part("metrics"))
