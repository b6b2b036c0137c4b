"""Text for workers who read different things: parts of a text, its speakers, files.

To choose settings a worker's text is cut in two: what it trains on, and a twentieth at
its end; once they are chosen it trains on all of it. Held out for the report is the
last tenth of the text, or of each file. All windows are of one length, ``context``
characters and the one that follows.
"""

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

import jaxmedian as jm
from experiments.common.data.manual_pages import find_languages, read_manual
from experiments.common.harness.misuse import Misuse

RARE = "\ufffd"  # what characters are folded into
_HELD_OUT, _VALIDATION = 10, 20  # one in so many characters
# A speech: a line that ends in a colon, at the beginning or after an empty line.
_SPEECH = re.compile(r"(?:\A|\n\n)(?=([^\n:]+):\n)")


class Source(NamedTuple):
    """What is read before it is shared out.

    Attributes:
      parts: the text of each worker, without what is held out.
      held_out: text that nobody trains on, one or several.
    """

    parts: tuple[str, ...]
    held_out: tuple[str, ...]


class Corpus(NamedTuple):
    """Text as numbers, shared out among workers.

    Attributes:
      characters: one string each, by number.
      text: int32 [N], the training text of all workers, end to end.
      starts: int32 [n], where a training window may begin: inside one worker's text.
      split: of ``starts`` among the workers.
      validation: int32 [v, context + 1], windows that choose settings; v is 0 once
        they are chosen.
      held_out: int32 [h, context + 1], windows that are reported.
    """

    characters: tuple[str, ...]
    text: np.ndarray
    starts: np.ndarray
    split: jm.splits.Split
    validation: np.ndarray
    held_out: np.ndarray

    def written(self, numbers: Sequence[int]) -> str:
        """Turns numbers back into text."""
        return "".join(self.characters[number] for number in numbers)


def read_text(path: Path) -> str:
    """Reads a file of UTF-8 text.

    Raises:
      Misuse: if it is none, or cannot be read, naming the file.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise Misuse(f"{path} is no UTF-8 text: {error}") from error
    except OSError as error:
        raise Misuse(
            f"{path} cannot be read: {error.strerror}. Give the path of UTF-8 text."
        ) from error


def contiguous_parts(text: str, num_workers: int) -> Source:
    """Cuts a text into equal parts, one after another: acts, plays."""
    kept, held_out = _held_out(text)
    ends = [len(kept) * i // num_workers for i in range(num_workers + 1)]
    parts = tuple(kept[a:b] for a, b in itertools.pairwise(ends))
    return Source(parts, (held_out,))


def speakers_parts(text: str, num_workers: int) -> Source:
    """Gives each worker the speeches of its own speakers, names included.

    The speakers who say most are dealt first, each to the worker who has least.

    Raises:
      Misuse: if fewer speakers than workers are found.
    """
    kept, held_out = _held_out(text)
    pieces = _SPEECH.split(kept)
    speeches: dict[str, str] = {}
    for name, speech in zip(pieces[1::2], pieces[2::2], strict=True):
        speeches[name] = speeches.get(name, "") + speech + "\n\n"
    if len(speeches) < num_workers:
        raise Misuse(
            f"the training text has {len(speeches)} speakers, fewer than the "
            f"{num_workers} workers. A speaker stands on a line of its own that ends "
            "in a colon, after an empty line: take fewer --num-workers, or --split "
            "contiguous."
        )
    parts = [""] * num_workers
    for speech in sorted(speeches.values(), key=len, reverse=True):
        least = min(range(num_workers), key=lambda worker: len(parts[worker]))
        parts[least] += speech
    return Source(tuple(parts), (held_out,))


def find_texts(folder: Path) -> list[Path]:
    """Finds files ``NAME.txt`` or else languages' manual pages, by their names."""
    return sorted(folder.glob("*.txt")) or find_languages(folder)


def files_parts(folder: Path, num_workers: int) -> Source:
    """Gives each worker a file ``NAME.txt`` of a folder, or a language's manual pages.

    They are taken in the order of their names; one worker gets all of them.

    Raises:
      Misuse: if there are not as many as workers.
    """
    found = find_texts(folder)
    if not found or num_workers not in (1, len(found)):
        raise Misuse(
            f"--texts takes a folder with a file NAME.txt for each of the "
            f"{num_workers} workers, or a folder NAME of manual pages "
            f"(NAME/man1/...); {folder} has {len(found)}: set --num-workers."
        )
    read = [read_manual(path) if path.is_dir() else read_text(path) for path in found]
    kept, held = zip(*map(_held_out, read), strict=True)
    return Source(kept if num_workers > 1 else ("".join(kept),), held)


def build_corpus(
    source: Source,
    context: int,
    num_windows: int,
    fold_rare: int = 0,
    *,
    validate: bool = True,
) -> Corpus:
    """Numbers the characters and cuts windows.

    Args:
      source: what was read.
      context: characters that a window shows before the one that follows.
      num_windows: windows to measure on, spread evenly, for validation and held out.
      fold_rare: characters that occur less often in training become one.
      validate: whether to set a part of each worker's text apart.

    Raises:
      Misuse: for a text shorter than a window, or a character that training lacks.
    """
    shares = [len(part) // _VALIDATION if validate else 0 for part in source.parts]
    cuts = [len(part) - n for part, n in zip(source.parts, shares, strict=True)]
    train = [part[:cut] for part, cut in zip(source.parts, cuts, strict=True)]
    validation = [part[cut:] for part, cut in zip(source.parts, cuts, strict=True)]
    _check_lengths(train, "the training text of worker", context)
    if validate:
        _check_lengths(validation, "the validation text of worker", context)
    _check_lengths(source.held_out, "the held-out text", context)
    numbers = _number_characters(train, fold_rare)
    _check_known([*validation, *source.held_out], numbers)
    encoded = [_encode(text, numbers) for text in train]
    ends = np.cumsum([len(text) for text in encoded])
    starts = np.concatenate(
        [
            np.arange(end - len(text), end - context, dtype=np.int32)
            for text, end in zip(encoded, ends, strict=True)
        ]
    )
    workers = np.searchsorted(ends, starts, side="right")
    return Corpus(
        tuple(numbers),
        np.concatenate(encoded),
        starts,
        jm.splits.natural(np.zeros_like(starts), len(train), ids=workers),
        _windows(validation, numbers, context, num_windows if validate else 0),
        _windows(source.held_out, numbers, context, num_windows),
    )


def invented_play(num_speakers: int, num_speeches: int, seed: int = 0) -> str:
    """Writes a play without sense, for tests and first tries.

    Every speaker has words of its own, made of letters it prefers, so that speakers
    differ as authors do; and all of them obey one grammar.
    """
    rng = np.random.default_rng(seed)
    vowels, consonants = list("aeiou"), list("bcdfghklmnprstvw")

    def invent_words() -> list[str]:
        own = rng.choice(consonants, 6, replace=False)
        syllables = rng.integers(1, 4, 40)
        return [
            "".join(rng.choice(own) + rng.choice(vowels) for _ in range(count))
            for count in syllables
        ]

    words = [word.upper() for word in invent_words()]
    names = [f"{words[i % len(words)]} {i}" for i in range(num_speakers)]
    vocabulary = {name: invent_words() for name in names}
    speeches = []
    for number in range(num_speeches):
        name = names[number % num_speakers]
        said = rng.choice(vocabulary[name], rng.integers(5, 15))
        speeches.append(f"{name}:\n{' '.join(said).capitalize()}.")
    return "\n\n".join(speeches)


def _held_out(text: str) -> tuple[str, str]:
    cut = len(text) - len(text) // _HELD_OUT
    return text[:cut], text[cut:]


def _check_lengths(texts: Sequence[str], what: str, context: int) -> None:
    for number, text in enumerate(texts):
        if len(text) <= context:
            whose = f" {number}" if len(texts) > 1 else ""
            raise Misuse(
                f"{what}{whose} has {len(text)} characters, and a window takes "
                f"{context + 1}: give a longer text, fewer --num-workers or a shorter "
                "--context."
            )


def _number_characters(train: Sequence[str], fold_rare: int) -> dict[str, int]:
    counts = Counter("".join(train))
    kept = sorted(c for c, count in counts.items() if count >= fold_rare)
    folded = [RARE] if fold_rare > 1 and RARE not in kept else []
    return {c: number for number, c in enumerate([*kept, *folded])}


def _check_known(texts: Sequence[str], numbers: dict[str, int]) -> None:
    unseen = sorted({c for text in texts for c in text} - set(numbers))
    if unseen and RARE not in numbers:
        raise Misuse(
            f"the text to measure on has characters that the training text lacks: "
            f"{', '.join(map(repr, unseen))}. The model has no number for them: "
            "replace them, or fold rare characters into one: --fold-rare 10."
        )


def _encode(text: str, numbers: dict[str, int]) -> np.ndarray:
    rare = numbers.get(RARE, -1)
    return np.fromiter((numbers.get(c, rare) for c in text), np.int32, len(text))


def _windows(
    texts: Sequence[str], numbers: dict[str, int], context: int, num_windows: int
) -> np.ndarray:
    """Cuts windows at even distances, as many of each text."""
    each = -(-num_windows // len(texts))
    rows = []
    for text in texts:
        starts = np.linspace(0, len(text) - context - 1, each).astype(np.int64)
        rows.append(_encode(text, numbers)[starts[:, None] + np.arange(context + 1)])
    return np.concatenate(rows)
