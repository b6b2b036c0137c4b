"""Command line: list experiments, run one, keep its results, write pages that quote.

python -m experiments                       what there is
python -m experiments toy --help            every field of its Config
python -m experiments mnist --preset quick  run it; results go to results/mnist
python -m experiments toy --seeds 100       over so many seeds; results to --out FOLDER
python -m experiments mnist --resume        go on where a killed or stopped run was
python -m experiments keep FOLDER           put its results into records/ and figures/
python -m experiments report                write the tables of the pages from records/
"""

import difflib
import importlib
import sys
from pathlib import Path

from experiments.common.harness.misuse import Misuse

BOXES = {
    "paper": "reproduce toy mnist cifar sweep stall rates bounds",
    "theory": "exactness gap density coupling estimator choose_noise gap_in_training "
    "coupling_in_training",
    "methods": "subsampling heterogeneity bucketing_reference neighbours local_steps "
    "shakespeare",
    "hostile": "robustness_price byzantine peers",
    "systems": "benchmark communication tpu processes language_link elastic loading "
    "resume",
}
EXPERIMENTS = {name: box for box, names in BOXES.items() for name in names.split()}
_HELP = ("-h", "--help")
_STOPPED = 130  # what shells expect of a program that ends by SIGINT


def main(arguments: list[str]) -> int:
    """Runs the command line.

    Returns:
      The exit code: 0, or 1 if one of our own claims failed, 2 for misuse, 130 if
      stopped by Ctrl-C.
    """
    if arguments and arguments[0] in _HELP:  # of the experiment named after it, if any
        arguments = [arguments[1], "--help"] if arguments[1:] else []
    try:
        if not arguments:
            print(_listing())
            return 0
        return _run(*arguments)
    except (Misuse, OSError) as error:  # OSError: files, the network
        return _complain(str(error))
    except ImportError as error:
        return _complain(f"{error}. Run `pip install 'jaxmedian[experiments]'`.")
    except KeyboardInterrupt:
        return _complain("stopped.", _STOPPED)
    except SystemExit as stop:  # tyro's, which has printed help or what is wrong
        return int(stop.code or 0)


def _run(name: str, *options: str) -> int:
    known = (*EXPERIMENTS, "keep", "report")
    if name not in known:  # before anything slow is imported
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"Did you mean {close[0]}?" if close else ""
        hint = hint or "`python -m experiments` lists them."
        raise Misuse(f"there is no experiment {name!r}. {hint}")
    if name == "report":
        from experiments.common.harness.report import report

        return report(options)
    if name == "keep":
        from experiments.common.harness.keeping import keep

        return keep(options)
    from experiments.common.harness.session import run_experiment

    module = importlib.import_module(f"experiments.{EXPERIMENTS[name]}.{name}")
    finished, held = run_experiment(module, name, list(options))
    return (0 if held else 1) if finished else _complain("stopped.", _STOPPED)


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
