"""One run of an experiment: its options, its folder, its results, Ctrl-C."""

import contextlib
import datetime
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from experiments.common.harness.misuse import Misuse
from experiments.common.harness.options import parse
from experiments.common.harness.plots import look
from experiments.common.harness.results import (
    all_hold,
    judged_claims,
    print_table,
    save,
)
from experiments.common.harness.resuming import (
    NOTES,
    add_seconds,
    can_resume,
    open_checkpoints,
    put_back,
)


def run_experiment(
    experiment: ModuleType, name: str, options: list[str]
) -> tuple[bool, bool]:
    """Runs an experiment and writes its results.

    Returns:
      Whether it came to its end, and whether each of our own claims held.

    Raises:
      Misuse, OSError: for what is wrong with an option or a folder.
      KeyboardInterrupt: if it was stopped before any part of it was finished.
    """
    config, out, resume = parse(experiment, name, options)
    with _writable(out):
        start, clock = datetime.datetime.now(datetime.UTC), time.perf_counter()
        if can_resume(experiment.run):
            folder = open_checkpoints(out, config, resume)
            try:
                result = experiment.run(config, folder)
            except BaseException:  # Ctrl-C included
                add_seconds(folder, time.perf_counter() - clock)
                put_back(folder)
                raise
            seconds = add_seconds(folder, time.perf_counter() - clock)
        elif resume:
            raise Misuse(f"{name} saves no checkpoints: run it without --resume.")
        else:
            result = experiment.run(config)
            seconds = time.perf_counter() - clock
        about = {
            "command": shlex.join(["python", "-m", "experiments", name, *options]),
            "date": start.date().isoformat(),
            "seconds": round(seconds, 1),
        }
        with look():
            save(out, config, result, experiment.plot(result), about)
    print_table(judged_claims(result))
    print(f"Wrote config.json, metrics.csv, summary.json and figure.png to {out}/")
    return not result.partial, all_hold(result.claims)


@contextlib.contextmanager
def _writable(folder: Path) -> Iterator[None]:
    """Makes a folder and tries to write there; removes it if nothing was saved."""
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise Misuse(
            f"--out takes a folder that can be written; got {folder}: {error.strerror}."
        ) from error
    try:
        yield
    finally:
        if made and all(
            path.name in NOTES for path in folder.rglob("*") if path.is_file()
        ):
            shutil.rmtree(folder)
