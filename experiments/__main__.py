"""Command line: list the experiments, or run one.

python -m experiments                       what there is
python -m experiments toy --help            every field of its Config
python -m experiments mnist --preset quick  run it; results go to results/mnist
python -m experiments mnist --resume        go on where a killed or stopped run was
"""

import argparse
import dataclasses
import difflib
import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

EXPERIMENTS = (
    *("reproduce", "toy", "mnist", "cifar", "sweep"),  # the paper's figures
    *("exactness", "gap", "density", "coupling", "estimator"),  # the theory
    *("rates", "bounds"),  # convergence
    *("choose_noise", "gap_in_training", "coupling_in_training"),  # theory on data
    *("subsampling", "heterogeneity"),  # data
    *("neighbours", "local_steps"),  # other methods
    *("robustness_price", "peers"),  # hostile workers
    *("benchmark", "communication", "processes", "resume"),  # speed, bytes, kills
)


def main(arguments: list[str]) -> int:
    """Runs the command line.

    Returns:
      The exit code: 0, or 1 if one of our own claims failed, 2 for misuse.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_listing())
        return 0
    name, *options = arguments
    if name not in EXPERIMENTS:
        close = difflib.get_close_matches(name, EXPERIMENTS, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        return _complain(f"there is no experiment {name!r}.{hint}\n\n{_listing()}")
    try:
        return _run(importlib.import_module(f"experiments.{name}"), name, options)
    except (ValueError, TypeError, ConnectionError) as error:
        return _complain(str(error))
    except ImportError as error:
        return _complain(f"{error}. Run `pip install 'jaxmedian[experiments]'`.")


def _run(experiment: ModuleType, name: str, options: list[str]) -> int:
    from experiments.common.claims import all_hold, print_table
    from experiments.common.plots import look
    from experiments.common.results import save
    from experiments.common.resuming import can_resume, open_checkpoints

    config, out, resume = _parse(experiment, name, options)
    if can_resume(experiment.run):
        result = experiment.run(config, open_checkpoints(out, config, resume))
    elif resume:
        raise ValueError(f"{name} saves no checkpoints: run it without --resume.")
    else:
        result = experiment.run(config)
    with look():
        save(out, config, result, experiment.plot(result))
    print_table(result.claims)
    print(f"Wrote config.json, metrics.csv, summary.json and figure.png to {out}/")
    return 0 if all_hold(result.claims) else 1


def _parse(
    experiment: ModuleType, name: str, options: list[str]
) -> tuple[Any, Path, bool]:
    """Reads the options into a Config that starts from the preset they name.

    Returns:
      The Config, the folder for the results, and whether to resume.
    """
    import tyro

    presets = {"default": experiment.Config(), **experiment.PRESETS}
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", default="default")
    chosen = first.parse_known_args(options)[0].preset
    if chosen not in presets:
        raise ValueError(f"--preset takes one of {', '.join(presets)}; got {chosen!r}.")

    @dataclasses.dataclass(frozen=True)
    class Options:
        config: Annotated[experiment.Config, tyro.conf.arg(name="")]  # type: ignore[name-defined]
        preset: Annotated[
            Literal[tuple(presets)],  # type: ignore[valid-type]
            tyro.conf.arg(help="Settings that the other options then change."),
        ] = chosen
        out: Annotated[
            Path, tyro.conf.arg(help="Folder for the results; made if need be.")
        ] = Path("results") / name
        resume: Annotated[
            bool,
            tyro.conf.arg(help="Go on from the checkpoints in the folder, if any."),
            tyro.conf.FlagCreatePairsOff,
        ] = False

    parsed = tyro.cli(
        Options,
        args=options,
        prog=f"python -m experiments {name}",
        description=experiment.__doc__,
        default=Options(config=presets[chosen]),
    )
    return parsed.config, parsed.out, parsed.resume


def _listing() -> str:
    """Lists the experiments with the first line of their docstrings."""
    lines = ["Experiments (python -m experiments NAME --help shows their settings):"]
    for name in EXPERIMENTS:
        lines.append(f"  {name:13} {_first_line(name)}")
    return "\n".join(lines)


def _first_line(name: str) -> str:
    folder = Path(__file__).parent
    package = folder / name / "__init__.py"
    source = package if package.exists() else folder / f"{name}.py"
    return source.read_text().removeprefix('"""').splitlines()[0]


def _complain(message: str) -> int:
    print(f"experiments: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
