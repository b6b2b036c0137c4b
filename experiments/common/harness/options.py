"""Options of an experiment: the fields of its Config, ``--preset``, ``--out``, ...

tyro reads them, and says what is wrong with them. ``--seeds`` stands for
``--num-seeds``.
"""

import argparse
import dataclasses
import math
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import tyro

from experiments.common.harness.misuse import Misuse

C = TypeVar("C")


def _whole_number(
    least: int, most: float = math.inf
) -> tyro.constructors.PrimitiveConstructorSpec[int]:
    takes = f"{least} or more" if most == math.inf else f"{least} to {most}"

    def read(words: list[str]) -> int:
        number = int(words[0])
        if not least <= number <= most:
            raise ValueError(f"it takes {takes}; got {number}")
        return number

    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="INT",
        instance_from_str=read,
        is_instance=lambda value: isinstance(value, int),
        str_from_instance=lambda value: [str(value)],
    )


Count = Annotated[int, _whole_number(1)]
Whole = Annotated[int, _whole_number(0)]
Seed = Annotated[int, _whole_number(0, 2**32 - 1)]


def _read_amounts(words: list[str]) -> tuple[float, ...]:
    numbers = tuple(map(float, words))
    if not numbers or not all(0 <= number < math.inf for number in numbers):
        found = " ".join(words) or "none"
        raise ValueError(f"it takes finite numbers >= 0, one at least; got {found}")
    return numbers


# Numbers that an option refuses below 0, and takes one of at least: rates, scales.
Amounts = Annotated[
    tuple[float, ...],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="FLOAT [FLOAT ...]",
        instance_from_str=_read_amounts,
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: [str(number) for number in value],
    ),
]


class Parsed(NamedTuple):
    """What the options ask for.

    Attributes:
      config: of the experiment, made from the preset and the other options.
      out: folder for the results.
      resume: whether to go on from the checkpoints in it.
    """

    config: Any
    out: Path
    resume: bool


def parse(experiment: ModuleType, name: str, options: list[str]) -> Parsed:
    """Reads the options into a Config that starts from the preset they name.

    Raises:
      SystemExit: after help was printed, or what is wrong with an option.
      Misuse: for what the Config itself refuses.
    """
    presets = {"default": experiment.Config(), **experiment.PRESETS}
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", nargs="?", default="default")
    chosen = parser.parse_known_args(options)[0].preset
    start = _with_seeds(presets.get(chosen, presets["default"]))

    @dataclasses.dataclass(frozen=True)
    class Options:
        config: Annotated[type(start), tyro.conf.arg(name="")]  # type: ignore[valid-type]
        preset: Annotated[
            Literal[tuple(presets)],  # type: ignore[valid-type]
            tyro.conf.arg(help="Settings that the other options then change."),
        ] = "default"
        out: Annotated[
            Path, tyro.conf.arg(help="Folder for the results; made if need be.")
        ] = Path("results") / name
        resume: Annotated[
            bool,
            tyro.conf.arg(help="Go on from the checkpoints in the folder, if any."),
            tyro.conf.FlagCreatePairsOff,
        ] = False

    try:
        parsed = tyro.cli(
            Options,
            args=options,
            prog=f"python -m experiments {name}",
            description=experiment.__doc__,
            default=Options(config=start),
        )
        config = experiment.Config(**_fields(parsed.config))
    except ValueError as error:  # of its __post_init__
        raise Misuse(str(error)) from error
    return Parsed(config, parsed.out, parsed.resume)


def _with_seeds(config: Any) -> Any:
    """Gives a Config's ``num_seeds`` the shorter name ``--seeds`` as well."""
    if "num_seeds" not in _fields(config):
        return config
    seeds = ("num_seeds", Annotated[Count, tyro.conf.arg(aliases=("--seeds",))])
    with_seeds = dataclasses.make_dataclass(
        "Config", [seeds], bases=(type(config),), frozen=True
    )
    return with_seeds(**_fields(config))


def _fields(config: Any) -> dict[str, Any]:
    return {one.name: getattr(config, one.name) for one in dataclasses.fields(config)}


_TINY = {"num_seeds": 2, "num_steps": 2, "chunk": 1, "batch_size": 2, "hidden": 4}


def tiny(config: C, **changes: Any) -> C:
    """Shrinks a Config to toy size: what a test can run in seconds.

    Two seeds, two steps, four hidden units, and the first entry of every tuple, unless
    ``changes`` say otherwise.
    """
    smaller: dict[str, Any] = {}
    for name, value in _fields(config).items():
        if isinstance(value, tuple):
            smaller[name] = value[:1]
        elif name in _TINY and value is not None:
            smaller[name] = min(value, _TINY[name])
    return dataclasses.replace(config, **smaller | changes)  # type: ignore[type-var]
