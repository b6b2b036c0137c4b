"""Command line: list the experiments, or run one.

python -m experiments                       what there is
python -m experiments toy --help            every field of its Config
python -m experiments mnist --preset quick  run it; results go to results/mnist
python -m experiments toy --seeds 100       over so many seeds; results to --out FOLDER
python -m experiments mnist --resume        go on where a killed or stopped run was
"""

import importlib
import sys
from pathlib import Path

BOXES = {
    "paper": "reproduce toy mnist cifar sweep stall paper_size rates bounds",
    "theory": "exactness gap density coupling estimator choose_noise gap_in_training "
    "coupling_in_training",
    "methods": "subsampling heterogeneity bucketing_reference neighbours local_steps",
    "hostile": "robustness_price byzantine peers",
    "systems": "benchmark communication tpu processes resume",
}
EXPERIMENTS = {name: box for box, names in BOXES.items() for name in names.split()}
_STOPPED = 130  # what shells expect of a program that ends by SIGINT


def main(arguments: list[str]) -> int:
    """Runs the command line.

    Returns:
      The exit code: 0, or 1 if one of our own claims failed, 2 for misuse, 130 if
      stopped by Ctrl-C.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_listing())
        return 0
    try:
        return _run(*arguments)
    except (ValueError, TypeError, OSError) as error:
        return _complain(str(error))
    except ImportError as error:
        return _complain(f"{error}. Run `pip install 'jaxmedian[experiments]'`.")
    except KeyboardInterrupt:
        return _complain("stopped.", _STOPPED)


def _run(name: str, *options: str) -> int:
    from experiments.common.harness.claims import all_hold, print_table
    from experiments.common.harness.options import did_you_mean, parse
    from experiments.common.harness.plots import look
    from experiments.common.harness.results import save
    from experiments.common.harness.resuming import can_resume, open_checkpoints

    if name not in EXPERIMENTS:
        hint = did_you_mean(name, {known: known for known in EXPERIMENTS})
        hint = hint or " `python -m experiments` lists them."
        raise ValueError(f"there is no experiment {name!r}.{hint}")
    experiment = importlib.import_module(f"experiments.{EXPERIMENTS[name]}.{name}")
    config, out, resume = parse(experiment, name, list(options))
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out takes a folder; {out} is a file.")
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


def _listing() -> str:
    """Lists the experiments with the first line of their docstrings."""
    width = max(map(len, EXPERIMENTS))
    lines = ["Experiments (python -m experiments NAME --help shows their settings):"]
    for name in EXPERIMENTS:
        lines.append(f"  {name:{width}} {_first_line(name)}")
    return "\n".join(lines)


def _first_line(name: str) -> str:
    folder = Path(__file__).parent / EXPERIMENTS[name]
    package = folder / name / "__init__.py"
    source = package if package.exists() else folder / f"{name}.py"
    return source.read_text().removeprefix('"""').splitlines()[0]


def _complain(message: str, exit_code: int = 2) -> int:
    print(f"experiments: {message}", file=sys.stderr)
    return exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
