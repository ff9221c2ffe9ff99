"""A folder lock: one writer at a time."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from seqssm.errors import InputError
from seqssm.files.disk import sweep, writing

WITHOUT_LOCKS = (
    errno.ENOLCK,
    errno.ENOTSUP,
    errno.ENOSYS,
)  # network file systems without locks: other writers go unnoticed


class Lock:
    """A lock on a folder, which the system releases when its holder exits for any reason.

    Temporary files that a killed holder left in the folder are removed.

    Args:
        folder: the folder; created if it does not exist, and removed on release if it is still empty.

    Attributes:
        exclusive: whether other writers are kept out; not on file systems without locks.

    Raises:
        InputError: another process holds the lock; the message has its process id and machine.
    """

    def __init__(self, folder: Path) -> None:
        self.path, self.holder = folder / ".lock", folder / ".lock.holder"
        with writing(folder):
            self.created = [parent for parent in (folder, *folder.parents) if not parent.exists()]
            folder.mkdir(parents=True, exist_ok=True)
        self.exclusive = False
        self.file: FileLock | None = FileLock(self.path, thread_local=False, fallback_to_soft=False)
        try:
            with writing(folder):
                self.file.acquire(timeout=0)
        except Timeout:
            holder = "another process"
            with suppress(OSError):
                holder = self.holder.read_text(encoding="utf-8").strip() or holder
            raise InputError(
                f"is being written by {holder}; wait until it has finished, or choose another folder", file=folder
            ) from None
        except NotImplementedError:
            pass
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
        else:
            self.exclusive = True
            sweep(folder)
        with writing(folder):
            self.holder.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")

    def release(self) -> None:
        """Release the lock, and remove the folders that it created if they are still empty."""
        if self.file is None:
            return
        self.holder.unlink(missing_ok=True)
        self.file.release()
        self.path.unlink(missing_ok=True)
        self.file = None
        for folder in self.created:
            try:
                folder.rmdir()
            except OSError:
                return

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
