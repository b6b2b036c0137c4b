"""Options of an experiment: the fields of its Config, ``--preset``, ``--out``, ...

tyro reads them; here is what people expect beyond that: an error is one line, a
misspelled name comes with the nearest one, and ``--seeds`` stands for ``--num-seeds``.
"""

import argparse
import contextlib
import dataclasses
import difflib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, NamedTuple

import tyro

_OTHERS = ("help", "preset", "out", "resume")


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
      ValueError: for unknown presets and options and for values of a wrong type.
    """
    presets = {"default": experiment.Config(), **experiment.PRESETS}
    chosen = _preset(presets, options)
    start = _with_seeds(presets[chosen])

    @dataclasses.dataclass(frozen=True)
    class Options:
        config: Annotated[type(start), tyro.conf.arg(name="")]  # type: ignore[valid-type]
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

    program = f"python -m experiments {name}"
    with _errors_in_one_line(program):
        parsed, unknown = tyro.cli(
            Options,
            args=options,
            prog=program,
            description=experiment.__doc__,
            default=Options(config=start),
            return_unknown_args=True,
        )
    _check_names(unknown, name, start)
    fields = _fields(parsed.config)
    if fields.get("num_seeds", 1) < 1:
        raise ValueError(f"--seeds takes 1 or more; got {fields['num_seeds']}.")
    return Parsed(experiment.Config(**fields), parsed.out, parsed.resume)


def _preset(presets: Mapping[str, Any], options: Sequence[str]) -> str:
    """Finds which preset the options name, before they are read for the rest."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", nargs="?", const="", default="default")
    preset = parser.parse_known_args(options)[0].preset
    if preset not in presets:
        hint = did_you_mean(preset, {name: name for name in presets})
        takes = f"--preset takes one of {', '.join(presets)}"
        raise ValueError(f"{takes}; got {preset!r}.{hint}")
    return preset


def did_you_mean(word: str, known: Mapping[str, str]) -> str:
    """Returns " Did you mean ...?" with the nearest of what is known, or nothing.

    Args:
      word: what was typed.
      known: what might have been meant, each with the spelling to suggest.
    """
    close = difflib.get_close_matches(word, known, n=1)
    return f" Did you mean {known[close[0]]}?" if close else ""


def _with_seeds(config: Any) -> Any:
    """Gives a Config's ``num_seeds`` the shorter name ``--seeds`` as well."""
    if "num_seeds" not in _fields(config):
        return config
    seeds = ("num_seeds", Annotated[int, tyro.conf.arg(aliases=("--seeds",))])
    with_seeds = dataclasses.make_dataclass(
        "Config", [seeds], bases=(type(config),), frozen=True
    )
    return with_seeds(**_fields(config))


def _fields(config: Any) -> dict[str, Any]:
    return {one.name: getattr(config, one.name) for one in dataclasses.fields(config)}


@contextlib.contextmanager
def _errors_in_one_line(program: str) -> Iterator[None]:
    """Turns the box in which tyro draws an error into a ValueError of one line."""
    with contextlib.redirect_stderr(io.StringIO()) as box:
        try:
            yield
        except SystemExit as stop:
            if not stop.code:
                raise  # --help
            message = _first_paragraph(box.getvalue())
            raise ValueError(f"{message} ({program} --help)") from None


def _first_paragraph(box: str) -> str:
    """Returns what stands in a box, drawn with lines or dashes, between two rules."""
    plain = re.sub("\x1b\\[[0-9;]*m", "", box)  # without colours
    _before, *paragraphs = re.split(r"(?m)^(?:╭.*|\W*[─-]{3}\W*)$", plain)
    return " ".join(" ".join(paragraphs[:1]).replace("│", "").split())


def _check_names(unknown: Sequence[str], name: str, config: Any) -> None:
    """Refuses what is no option of the experiment, and names the nearest."""
    if not unknown:
        return
    word = unknown[0].split("=")[0]
    if not word.startswith("-"):
        raise ValueError(f"{name} takes options, --NAME VALUE; got {word!r}.")
    known = {option: f"--{option}" for option in (*_OTHERS, *_names(config))}
    known |= {option.split(".")[-1]: known[option] for option in known if "." in option}
    if "num-seeds" in known:
        known["seeds"] = known["num-seeds"].replace("--num-seeds", "--seeds")
    hint = did_you_mean(word.strip("-"), known)
    raise ValueError(
        f"{name} has no option {word}.{hint} (python -m experiments {name} --help)"
    )


def _names(config: Any) -> Iterator[str]:
    """Yields the names of a Config's options, nested ones with dots."""
    for field, value in _fields(config).items():
        option = field.replace("_", "-")
        if dataclasses.is_dataclass(value):
            yield from (f"{option}.{below}" for below in _names(value))
        else:
            yield option
