"""Lock a folder for one writer, by a file lock that ends with its process."""

import contextlib
import os
import pathlib
import re
import socket
import weakref
from typing import Any

import jax
import numpy as np

try:
    import fcntl
except ImportError:  # Windows: `Store.write` notices another writer, a step late
    fcntl = None  # type: ignore[assignment]

_NAME = ".in-use"
_HOLDER = "process {} on {}"


class FolderLock:
    """Keeps other writers out of a folder of checkpoints, dead ones not.

    An exclusive ``flock`` on a small file that names the holder: it ends with the
    process, however that ends, so what a killed one leaves behind locks nothing: its
    children neither, for those that Python forks let go of it. The first of several
    processes takes it for all. Remote folders and file systems without locks are not
    locked.

    Args:
      folder: path or URL of an existing folder.

    Raises:
      RuntimeError: if another writer holds it.
    """

    def __init__(self, folder: Any) -> None:
        """Takes the lock, in all processes or in none."""
        self._path = pathlib.Path(os.fspath(folder)) / _NAME
        self._file: int | None = None
        _taken.add(self)
        holder = ""
        if jax.process_index() == 0 and fcntl is not None and "://" not in str(folder):
            holder = self._take()
        if _any_process(bool(holder)):
            raise RuntimeError(
                f"{folder} is in use by {holder or 'another run'}, which writes "
                f"checkpoints there{_if_it_is_gone(holder)}. Wait until it ends, stop "
                "it, or give another folder. Nothing was changed."
            )

    def release(self) -> None:
        """Gives the folder back, once."""
        if self._file is None:
            return
        if not self.is_lost():  # otherwise it may be another's by now
            with contextlib.suppress(OSError):
                os.unlink(self._path)
        self.forget()

    def forget(self) -> None:
        """Closes the file here; who shares it holds the folder on."""
        if self._file is not None:
            os.close(self._file)
        self._file = None

    def is_lost(self) -> bool:
        """Returns whether the folder, or the file in it, is no longer where it was."""
        return self._file is not None and not self._is_there(self._file)

    def _take(self) -> str:
        """Tries to take the lock; returns who else holds it, or nothing."""
        while True:
            try:
                file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            except OSError:  # a folder that may only be read
                return ""
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(file, 200).decode(errors="replace").strip()
                os.close(file)
                return holder or "another process"
            except OSError:  # a file system without locks
                os.close(file)
                return ""
            if self._is_there(file):
                break
            os.close(file)  # its holder removed it before we had it
        self._file = file
        holder = _HOLDER.format(os.getpid(), socket.gethostname()) + "\n"
        with contextlib.suppress(OSError):  # a full disk locks as well, without a name
            os.ftruncate(file, 0)
            os.write(file, holder.encode())
        return ""

    def _is_there(self, file: int) -> bool:
        with contextlib.suppress(OSError):
            return os.path.samestat(os.fstat(file), os.stat(self._path))
        return False


# A forked child shares the file, and would hold the folder after its parent is killed.
_taken: weakref.WeakSet[FolderLock] = weakref.WeakSet()


def _forget_all() -> None:
    for lock in list(_taken):
        lock.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)


def _if_it_is_gone(holder: str) -> str:
    """Says of a holder of this host that has ended what may hold its lock."""
    named = re.fullmatch(_HOLDER.format(r"(\d+)", "(.*)"), holder)
    if named is None or named[2] != socket.gethostname():
        return ""
    with contextlib.suppress(PermissionError):  # it is there, and somebody else's
        try:
            os.kill(int(named[1]), 0)
        except ProcessLookupError:
            return " (that process has ended: one that it started holds the folder)"
    return ""


def _any_process(here: bool) -> bool:
    """Returns whether it is so in any process; each of them must ask."""
    if jax.process_count() == 1:
        return here
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.int32(here)).any())
