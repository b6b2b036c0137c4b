"""Anybody's images: ``train/<class>/*.png`` and ``test/<class>/*.png``, or an archive.

A folder, .zip or .tar (.tar.gz, .tar.bz2, .tar.xz) whose images, PNG or JPEG, all have
one size. What is around ``train`` and ``test``, hidden, or no image is left alone; an
image in them that is not read, for its place or its format, is an error. A folder's
links are followed, an archive's refused. Classes are numbered in the order of their
names, images of a class follow theirs. Grey images stay grey, ``[n, height, width]``,
unless others beside them have colours.

Pillow decodes them, once: the pixels are kept in ``$JAXMEDIAN_CACHE`` (or
``~/.cache/jaxmedian``) under the SHA-256 of what was read, and nothing is extracted.
"""

import hashlib
import io
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import numpy as np

from experiments.common.data.cache import cache_folder, remembered
from experiments.common.data.data_set import DataSet, Images, Labels
from experiments.common.harness.misuse import Misuse

_SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
_PARTS = ("train", "test")
_CIFAR10 = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


def load_image_folder(path: str | Path) -> DataSet:
    """Loads images that lie in a folder or an archive, one folder a class.

    Args:
      path: of the folder that holds ``train`` and ``test`` (or of one above it), or of
        an archive of it.

    Returns:
      A `DataSet` of uint8 images ``[n, height, width]`` or ``[n, height, width, 3]``.
      Its description says how they were stored: "CIFAR-10, JPEG copies", say.

    Raises:
      Misuse: if there are no images, some would be left out, a class is missing in
        one part, sizes differ, or an image or the archive cannot be read; it names
        the file.
      ImportError: if Pillow is not installed.
    """
    path = Path(path).expanduser()
    decode = remembered(_decoded, cache_folder(), ignore=["path"])
    found: _Decoded = decode(path, _digest(path))
    return DataSet(*found.train, *found.test, found.description)


class _Decoded(NamedTuple):
    """What a folder of images holds."""

    train: tuple[Images, Labels]
    test: tuple[Images, Labels]
    description: str


def _decoded(path: Path, digest: str) -> _Decoded:
    """Decodes all images; ``digest`` tells apart what was kept of several folders."""
    del digest
    members = {
        place: _pixels(content, path, place.name) for place, content in _images(path)
    }
    if not members:
        raise Misuse(
            f"{path} holds no images: train/<class>/*.png, .jpg or .jpeg are wanted, "
            "and test/<class>/... beside them."
        )
    classes = _classes(path, members)
    _check_sizes(path, members)
    grey = all(pixels.ndim == 2 for pixels in members.values())
    parts = [_part(members, part, classes, grey) for part in _PARTS]
    return _Decoded(parts[0], parts[1], _description(path, members, classes))


# --- what lies there ------------------------------------------------------------------


class _Place(NamedTuple):
    """Where an image lies, in the order in which images are numbered."""

    part: str
    label: str
    name: str  # as it is written there


def _images(path: Path) -> list[tuple[_Place, bytes]]:
    """Lists the images of both parts, and raises if some would be left out."""
    found, misplaced = [], []
    readable = _pillow().registered_extensions()  # of all formats, in lower case
    for name, content in _files(path):
        suffix = PurePosixPath(name).suffix.lower()
        if suffix not in readable or not _is_in_part(name):
            continue
        *_, part, label, _file = ("", *PurePosixPath(name).parts)
        if part in _PARTS and suffix in _SUFFIXES:
            found.append((_Place(part, label, name), content))
        else:
            misplaced.append(name)
    if misplaced:
        raise Misuse(
            f"{path} has images that would be left out, {len(misplaced):,} of them, "
            f"{misplaced[0]} first: images lie in train/<class>/ and test/<class>/, no "
            "higher and no deeper, as .png, .jpg or .jpeg. Move or convert them, or "
            "take them out."
        )
    return found


def _is_in_part(name: str) -> bool:
    """Returns whether a file lies in a part, and nothing about it is hidden."""
    names = PurePosixPath(name).parts
    hidden = any(part.startswith((".", "__MACOSX")) for part in names)
    return not hidden and not {*_PARTS}.isdisjoint(names[:-1])


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yields the name and content of each file in a folder or archive."""
    if path.is_dir():
        for file in sorted(_walk(path)):
            name = file.relative_to(path).as_posix()
            if _is_in_part(name):
                yield name, file.read_bytes()
        return
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for info in archive.infolist():
                    _refuse_link(path, info.filename, info.external_attr >> 16)
                    if not info.is_dir():
                        yield info.filename, archive.read(info)
            return
        with tarfile.open(path) as tape:
            for member in tape:  # in their order: a compressed one cannot go back
                is_link = member.issym() or member.islnk()
                _refuse_link(path, member.name, stat.S_IFLNK if is_link else 0)
                if member.isfile():
                    content: IO[bytes] | None = tape.extractfile(member)
                    yield member.name, content.read() if content else b""
    except (
        *(tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error),
        EOFError,
    ) as error:
        raise Misuse(
            f"{path} cannot be read: a folder of images is wanted, or a whole .zip, "
            f".tar, .tar.gz or .tar.xz of one ({error})."
        ) from error


def _walk(path: Path) -> Iterator[Path]:
    """Yields the files below a folder, behind links too."""
    for above, folders, files in os.walk(path, followlinks=True):
        here = Path(above)
        folders[:] = [  # a link to a folder above would never end
            name
            for name in folders
            if not here.resolve().is_relative_to((here / name).resolve())
        ]
        yield from (here / name for name in files)


def _refuse_link(path: Path, name: str, mode: int) -> None:
    """Raises for a link to or in a part, whose images the archive may not hold."""
    if stat.S_ISLNK(mode) and _is_in_part(f"{name}/file"):
        raise Misuse(
            f"{path} holds a link, {name}: put files in its place (tar with "
            "--dereference --hard-dereference, zip without --symlinks)."
        )


def _digest(path: Path) -> str:
    """Tells contents apart: of the archive as it is, or of a folder's parts."""
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for name, content in _files(path):
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


# --- pixels ---------------------------------------------------------------------------


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            "Images are decoded with Pillow, which is not installed: "
            "pip install 'jaxmedian[experiments]', or `pip install pillow`."
        ) from error
    return Image


def _pixels(content: bytes, path: Path, name: str) -> Images:
    """Decodes one image, ``[height, width]`` if it is grey, else ``[..., 3]``."""
    try:
        with _pillow().open(stream := io.BytesIO(content)) as image:
            if image.mode[0] in "IF" or ";16" in str(image.tile):  # as "RGB;16B"
                raise Misuse("more than 8 bits a colour")
            return np.asarray(image.convert("L" if image.mode in "1L" else "RGB"))
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's, for broken files
        reason = str(error).replace(repr(content), "").replace(repr(stream), name)
        raise Misuse(f"{path}: {name} cannot be decoded ({reason}).") from error


def _classes(path: Path, members: dict[_Place, Images]) -> list[str]:
    """Lists the classes by name, and raises unless both parts have them all."""
    train, test = (
        {place.label for place in members if place.part == part} for part in _PARTS
    )
    for there, elsewhere, missing in ((train, test, "test"), (test, train, "train")):
        if there - elsewhere:
            names = ", ".join(sorted(there - elsewhere))
            raise Misuse(
                f"{path} has no image in {missing}/ of these classes: {names}."
            )
    return sorted(train)


def _check_sizes(path: Path, members: dict[_Place, Images]) -> None:
    first, *others = members
    size = members[first].shape[:2]
    for place in others:
        found = members[place].shape[:2]
        if found != size:
            raise Misuse(
                f"{path}: all images must have one size; {first.name} has {size[1]} x "
                f"{size[0]} pixels, {place.name} {found[1]} x {found[0]}."
            )


def _part(
    members: dict[_Place, Images], part: str, classes: list[str], grey: bool
) -> tuple[Images, Labels]:
    places = sorted(place for place in members if place.part == part)
    rows = [members[place] for place in places]
    if not grey:
        rows = [np.stack([x] * 3, axis=-1) if x.ndim == 2 else x for x in rows]
    numbers = {label: number for number, label in enumerate(classes)}
    labels = np.array([numbers[place.label] for place in places], np.int32)
    return np.stack(rows), labels


def _description(path: Path, members: dict[_Place, Images], classes: list[str]) -> str:
    kinds = {_SUFFIXES[PurePosixPath(place.name).suffix.lower()] for place in members}
    height, width = next(iter(members.values())).shape[:2]
    if tuple(classes) == _CIFAR10 and (height, width) == (32, 32):
        name = "CIFAR-10"
    else:
        name = f"{path.name}, {len(classes)} classes of {width} x {height} pixels"
    return f"{name}, {' and '.join(sorted(kinds))} copies"
