"""Write arrays and notes to a folder atomically: the only file that knows orbax.

    FOLDER/<step>/arrays  one array a name, global over all devices and processes
    FOLDER/<step>/notes   JSON, with a checksum of itself and of every array

orbax-checkpoint writes aside and renames what is whole, from all processes at once; it
is imported when a folder is opened, so that nothing else needs it. What it does not do
is done here: a folder that holds anything else is refused, so are damaged bits, and so
is a second writer. Folders of their own may be written to from several threads: orbax,
whose saves share the signals of their process, is given one save at a time.
"""

import contextlib
import errno
import json
import os
import tempfile
import threading
import time
import weakref
import zlib
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

import jax
import numpy as np

from jaxmedian.checkpoint.locks import FolderLock

Arrays = dict[str, jax.Array]

_MARK = "jaxmedian checkpoint 1"
_UNFINISHED = ".orbax-checkpoint-tmp"
_ITEMS = (
    "notes",
    "arrays",
    "commit_success.txt",
)  # of a step, beside orbax's own files

# Stores that are closed behind the back of a user who did not want to wait.
_closing: dict[str, threading.Thread] = {}


class _Saves:
    """Lets one save of this process begin when that before it has ended.

    The lock is held while a save begins. That which goes on behind is only looked at:
    its own store waits for it, perhaps much later, and is told what it raised. So
    nothing stays locked, whatever a thread that saves does next.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal handler may save too
        self._last: Callable[[], Any] = lambda: None

    def begin(self, manager: Any, *args: Any, **options: Any) -> None:
        """Calls the ``save`` of a manager."""
        with self._lock:
            last = self._last()
            if last is not None and last is not manager:
                while last.is_saving_in_progress():
                    time.sleep(0.001)
            manager.save(*args, **options)
            self._last = weakref.ref(manager)


_saves = _Saves()


class Store:
    """An open folder of checkpoints; use it as a context manager.

    Args:
      path: the folder, local or a URL that orbax knows (``gs://``); made if need be.
      keep: checkpoints to keep; older ones are removed after each `write`. None to read
        only: then the folder is left as it is, somebody may be writing there.

    Raises:
      ImportError: without orbax-checkpoint.
      ValueError: if the folder holds anything but checkpoints.
      OSError: if it is to be made where nothing may be written.
      RuntimeError: if another writer has opened it.
    """

    def __init__(self, path: str | os.PathLike[str], keep: int | None):
        """Opens the folder, and removes what an earlier kill left half written."""
        self._orbax, epath = _import_orbax()
        self.path = epath.Path(path)
        if "://" not in str(path):
            self.path = self.path.expanduser().resolve()
        _check_contents(self.path, for_writing=keep is not None)
        self._lock: FolderLock | None = None
        if keep is not None:
            if str(self.path) in _closing:
                _closing.pop(str(self.path)).join()
            with self._naming_the_folder():
                self.path.mkdir(parents=True, exist_ok=True)
            self._lock = FolderLock(self.path)
        options = self._orbax.CheckpointManagerOptions(
            max_to_keep=keep,
            create=keep is not None,
            cleanup_tmp_directories=keep is not None,
        )
        try:
            self._manager = self._orbax.CheckpointManager(self.path, options=options)
            self._known = self._steps_on_disk()
        except BaseException:
            self._unlock()
            raise

    def __enter__(self) -> "Store":
        """Returns itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """Waits until the last checkpoint is whole, unless Ctrl-C was urgent."""
        if kind is None or not issubclass(kind, KeyboardInterrupt):
            self._close()
            return
        thread = threading.Thread(target=self._close, daemon=True)
        _closing[str(self.path)] = thread
        thread.start()

    def _close(self) -> None:
        try:
            with self._naming_the_folder():
                self._manager.close()
        finally:
            self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.release()

    def check_writable(self) -> None:
        """Raises if nothing can be written, so that no run trains in vain.

        Raises:
          OSError: if the folder may only be read.
        """
        if "://" not in str(self.path):
            with self._naming_the_folder():
                tempfile.TemporaryFile(dir=self.path, prefix=".").close()

    def latest_step(self) -> int | None:
        """Returns the step of the newest whole checkpoint, or None without any."""
        return self._manager.latest_step()

    def read_notes(self, step: int) -> dict[str, Any]:
        """Reads the notes of a checkpoint.

        Raises:
          ValueError: if they are missing, damaged, or somebody else's.
        """
        args = self._orbax.args
        with self._refusing_the_unreadable(step):
            restored = self._manager.restore(
                step, args=args.Composite(notes=args.JsonRestore())
            )
            notes = dict(restored["notes"])
            if notes.pop("mark", None) != _MARK:
                raise ValueError("somebody else wrote it")
            if notes.pop("checksum") != _checksum_of_notes(notes):
                raise ValueError("its notes were changed")
        return notes

    def read_arrays(
        self,
        step: int,
        like: Mapping[str, jax.ShapeDtypeStruct],
        notes: Mapping[str, Any],
    ) -> Arrays:
        """Reads arrays of known shapes onto the devices that ``like`` names.

        Raises:
          ValueError: if they are missing or damaged.
        """
        args = self._orbax.args
        if not like:
            return {}
        with self._refusing_the_unreadable(step):
            restored = self._manager.restore(
                step, args=args.Composite(arrays=args.StandardRestore(dict(like)))
            )
            arrays = dict(restored["arrays"])
            for name, array in arrays.items():
                saved, read = notes["checksums"].get(name), _checksum(array)
                if saved is not None and read is not None and saved != read:
                    raise ValueError(f"the bits of `{name}` were changed")
        return arrays

    def write(self, step: int, arrays: Arrays, notes: Mapping[str, Any]) -> None:
        """Starts to write a checkpoint; it is whole when the next begins, or on exit.

        Raises:
          ValueError: if the folder already holds this step or a later one.
          RuntimeError: if another writer was here, where folders cannot be locked.
          OSError: if the folder was moved or removed, cannot be written to, or is full.
        """
        self._check_not_lost()
        foreign = self._steps_on_disk() - self._known
        if foreign:
            raise RuntimeError(
                f"{self.path} is written to by somebody else, who saved step "
                f"{max(foreign)}: give each run a folder of its own. The checkpoint of "
                f"step {step} was not written."
            )
        latest = self.latest_step()
        if latest is not None and step <= latest:
            raise ValueError(
                f"{self.path} already holds a checkpoint of step {latest}, so one of "
                f"step {step} is not written: restore it first, or give another folder."
            )
        checksums = {name: _checksum(array) for name, array in arrays.items()}
        content = {**notes, "checksums": checksums}
        content |= {"checksum": _checksum_of_notes(content), "mark": _MARK}
        args = self._orbax.args
        items = {"notes": args.JsonSave(content)}
        if arrays:
            copies = {name: _one_copy(array) for name, array in arrays.items()}
            items["arrays"] = args.StandardSave(copies)
        with self._naming_the_folder():
            composite = args.Composite(**items)
            _saves.begin(self._manager, step, args=composite, force=True)
        self._known.add(step)

    def _steps_on_disk(self) -> set[int]:
        names = (entry.name for entry in self.path.iterdir())
        return {int(name) for name in names if name.isdecimal()}

    def _check_not_lost(self, cause: Exception | None = None) -> None:
        """Raises if the folder is not the one that was opened."""
        if self._lock is not None and self._lock.is_lost():
            raise OSError(
                errno.ENOENT,
                "the folder of checkpoints, or its file `.in-use`, was moved or "
                "removed in mid-run. Give its new place, if it has one: the same call "
                "goes on from the newest checkpoint there",
                str(self.path),
            ) from cause

    @contextlib.contextmanager
    def _naming_the_folder(self) -> Iterator[None]:
        """Says of a folder that is lost, read-only or full which, and what to do."""
        try:
            yield
        except Exception as error:
            self._check_not_lost(error)
            number = getattr(error, "errno", None)
            if number == errno.ENOSPC or "RESOURCE_EXHAUSTED" in str(error):
                number = errno.ENOSPC
                remedy = (
                    "no space left for a checkpoint. Those before it are whole: free "
                    "some, and go on from the newest"
                )
            elif number in (errno.EACCES, errno.EROFS):
                remedy = (
                    "no checkpoint can be written there: give another folder, or "
                    "yourself the right to write to this one"
                )
            else:
                raise
            raise OSError(number, remedy, str(self.path)) from error

    @contextlib.contextmanager
    def _refusing_the_unreadable(self, step: int) -> Iterator[None]:
        """Turns whatever reading raises into one error that says what to do."""
        try:
            yield
        except Exception as error:  # each file of a checkpoint fails in its own way
            cause = str(error).strip().split("\n")[0][:200]
            raise ValueError(
                f"{self.path / str(step)} is not a whole checkpoint of jaxmedian "
                f"({type(error).__name__}: {cause}). Nothing was changed. Remove it to "
                "go on from an older one, if there is one, or give another folder."
            ) from error


def holds_checkpoints(path: str | os.PathLike[str]) -> bool:
    """Returns whether a folder exists and is not empty.

    Raises:
      ImportError: without orbax-checkpoint.
      ValueError: if it is a file.
    """
    _, epath = _import_orbax()
    folder = epath.Path(path).expanduser()
    _check_folder(folder)
    return folder.exists() and any(folder.iterdir())


def _check_folder(path: Any) -> None:
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file: checkpoints need a folder of their own.")


def _check_contents(path: Any, *, for_writing: bool) -> None:
    """Raises unless a folder is new, empty, or looks like one of checkpoints.

    Who writes also removes what is old, so then each number must be a checkpoint.
    """
    if not path.exists():
        return
    _check_folder(path)
    foreign = [
        entry.name
        for entry in sorted(path.iterdir(), key=lambda entry: entry.name)
        if not (_UNFINISHED in entry.name or entry.name.startswith("."))
        and not (entry.name.isdecimal() and (not for_writing or _is_step(entry)))
    ]
    if foreign:
        raise ValueError(
            f"{path} holds what is no checkpoint: {', '.join(foreign[:5])}. Nothing "
            "was changed. Give a folder that is empty or does not exist yet."
        )


def _is_step(entry: Any) -> bool:
    """Returns whether `Store.write` made a folder, or began to remove one it made."""
    return entry.is_dir() and all(
        inside.name in _ITEMS
        or inside.name.startswith(("_", "."))
        or _UNFINISHED in inside.name
        for inside in entry.iterdir()
    )


def _one_copy(array: jax.Array) -> jax.Array:
    """Returns what this process alone can write, where its devices hold copies.

    Raises:
      ValueError: for other copies on a JAX whose arrays orbax cannot share out.
    """
    if array.is_fully_addressable and array.is_fully_replicated:
        return array.addressable_data(0)
    if not hasattr(jax, "set_mesh") and any(s.replica_id for s in array.global_shards):
        raise ValueError(
            f"orbax-checkpoint cannot save arrays of several copies, {array.sharding}, "
            f"with jax {jax.__version__}: upgrade jax."
        )
    return array


def _checksum(array: jax.Array) -> int | None:
    """Returns the CRC-32 of an array's bytes; None where no process has them all."""
    if not array.is_fully_addressable:
        if not array.is_fully_replicated:
            return None
        array = array.addressable_data(0)
    values = np.ascontiguousarray(np.asarray(array))
    return zlib.crc32(values.reshape(-1).view(np.uint8).data)


def _checksum_of_notes(notes: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(notes, sort_keys=True).encode())


def _import_orbax() -> tuple[ModuleType, Any]:
    try:
        import orbax.checkpoint as orbax
        from etils import epath
    except ImportError as error:
        raise ImportError(
            "Checkpoints need orbax-checkpoint: `pip install 'jaxmedian[checkpoint]'`, "
            "or `pip install orbax-checkpoint`."
        ) from error
    return orbax, epath
