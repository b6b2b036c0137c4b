"""Where an experiment keeps its checkpoints, and whose they are: ``--resume``.

An experiment whose ``run`` takes ``checkpoints``, a folder, saves each of its runs in a
folder of its own below it. The settings lie beside them: checkpoints made with others
are not resumed, but for settings that change no run. A start without ``--resume`` moves
the checkpoints of the start before it aside, and nothing is deleted before the next
start that finds new ones.
"""

import inspect
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.common.harness.misuse import Misuse
from experiments.common.harness.results import as_json

SETTINGS, SECONDS = NOTES = ("settings.json", "seconds.json")
# Where data lie, which the trainer knows by content, and which parts are wanted.
_SAME_RUNS = {"data_dir", "contenders", "curves", "methods", "rules"}


def can_resume(run: Callable[..., Any]) -> bool:
    """Returns whether an experiment saves checkpoints."""
    return "checkpoints" in inspect.signature(run).parameters


def open_checkpoints(out: Path, config: Any, resume: bool) -> Path:
    """Returns the folder of an experiment's checkpoints, a new one unless it resumes.

    What lay there is moved aside first, to ``checkpoints.old``.

    Raises:
      Misuse: to resume with other settings, or if the folder is somebody else's.
    """
    folder = out / "checkpoints"
    settings = folder / SETTINGS
    wanted = as_json(config)
    if resume:
        put_back(folder)
    if resume and settings.exists():
        _check_settings(settings, json.loads(wanted))
        return folder
    if resume:
        print(f"Nothing to resume in {folder}/: starting from the beginning.")
    if folder.exists() and any(folder.iterdir()):
        if not settings.exists():
            raise Misuse(f"{folder} holds no checkpoints of experiments: move it.")
        _move_aside(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settings.write_text(wanted)
    return folder


def put_back(folder: Path) -> None:
    """Puts the checkpoints that were moved aside back, if no new ones were saved."""
    old = _old(folder)
    if old.exists() and not _holds_checkpoint(folder):
        shutil.rmtree(folder, ignore_errors=True)
        old.rename(folder)
        print(
            f"Nothing new was saved: the checkpoints of {old}/ are back in {folder}/."
        )


def _move_aside(folder: Path) -> None:
    """Makes room for a new start; a folder of settings alone needs no copy."""
    if not _holds_checkpoint(folder):
        shutil.rmtree(folder)
        return
    old = _old(folder)
    if old.exists():
        shutil.rmtree(old)
    folder.rename(old)
    print(
        f"Moved the checkpoints that were there to {old}/. To go on with them: stop, "
        f"rename it back to {folder.name}, and give --resume."
    )


def _old(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.old")


def _holds_checkpoint(folder: Path) -> bool:
    """Returns whether anything lies there beside the settings and the seconds."""
    return any(file.is_file() and file.name not in NOTES for file in folder.rglob("*"))


def add_seconds(folder: Path, seconds: float) -> float:
    """Adds what one call took to what those before it took, and returns the sum."""
    file = folder / SECONDS
    total = seconds + (json.loads(file.read_text()) if file.exists() else 0.0)
    file.write_text(json.dumps(total))
    return total


def _check_settings(settings: Path, wanted: dict[str, Any]) -> None:
    saved = json.loads(settings.read_text())
    changed = _differences(saved, wanted)
    if changed:
        raise Misuse(
            f"the checkpoints in {settings.parent} were made with "
            f"{', '.join(changed)}. Give the same options, or leave out --resume to "
            "start from the beginning."
        )


def _differences(saved: Any, wanted: Any, name: str = "") -> list[str]:
    """Lists "option saved value" for all that differ, nested settings included."""
    if isinstance(saved, dict) and isinstance(wanted, dict):
        return [
            difference
            for key in {**saved, **wanted}
            if key not in _SAME_RUNS
            for difference in _differences(
                saved.get(key), wanted.get(key), f"{name}.{key}" if name else key
            )
        ]
    option = name.replace("_", "-")
    return [] if saved == wanted else [f"--{option} {saved} (now {wanted})"]
