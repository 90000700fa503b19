"""The data directory: who owns it, the secrets that were made for it, and which bots it has been good for.

Promises: what is made here is the owner's alone; a secret is made once, whole, whoever comes first.

Refuses: a second `rise serve` on it; to look into one without a database as if it were an empty one, or into one whose
database was lost as if it were new; a secret that could be guessed; to be opened half restored.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
import struct
from pathlib import Path
from typing import Final

from rise.connections.marker import Marker, write_once
from rise.envelope import new_secret
from rise.errors import Rejected, RestoreUnfinished, StoreCorrupt, StoreLocked, StoreUnavailable

DATABASE = "rise.db"
LEDGER = "mongodb-ledger"
MARKER = "ledger-identity"
DEMO = Path(".rise-demo")
"""Where `rise demo` keeps its conversation, unless told otherwise."""

_SECRET_LENGTH_MIN: Final = len(new_secret())
_FLOCK: Final = struct.Struct("hhqqi4x")
"""`struct flock` of Linux on 64 bits: kind, whence, start, length, process."""


class DataDirectory:
    """One directory holds everything of the embedded profile. It is private to its owner (0700)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock_fd: int | None = None
        self._verified: set[str] = set()

    @property
    def database(self) -> Path:
        return self.path / DATABASE

    @property
    def marker(self) -> Marker:
        """That its database was made, and which."""
        return Marker(self.path / MARKER)

    @property
    def bus(self) -> Path:
        return self.path / "bus"

    @property
    def lock(self) -> Path:
        return self.path / "serve.lock"

    @property
    def unfinished(self) -> Path:
        """There from the moment a restore begins to change the directory until it is through."""
        return self.path / "restore-unfinished"

    def create(self) -> None:
        """Raises `StoreUnavailable` if it cannot be made or written."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StoreUnavailable(
                f"{self.path} cannot be made ({error.strerror}): set RISE_DATA_DIR to a directory that can be written"
            ) from error

    def refuse_half_restored(self) -> None:
        """Raises `RestoreUnfinished`: what a start would find or make there is neither the former nor the backup."""
        if self.unfinished.exists():
            raise RestoreUnfinished(
                f"a `rise restore` of {self.path} was cut off: run it again. Until then nothing opens the directory; "
                f"what was there before is in it, in {self.unfinished.name}/former or before-restore-…, and stays"
            )

    def refuse_without_database(self) -> None:
        """Raises `Rejected`, saying where to look instead; `RestoreUnfinished`; or `StoreCorrupt` if it was lost."""
        self.refuse_half_restored()
        self.refuse_lost()
        if not self.database.exists():
            raise Rejected(f"{self.path} holds no Rise database: {self.elsewhere()}", field="data_dir")

    def refuse_lost(self) -> None:
        """Raises `StoreCorrupt` if its database is gone or empty, and was not before."""
        self.marker.refuse_lost(self.database)

    def elsewhere(self) -> str:
        """Where to look for what is not here."""
        if DataDirectory(DEMO).database.exists():
            return f"the demo keeps its messages in {DEMO}, add --data-dir {DEMO}"
        return "name the right directory with --data-dir or RISE_DATA_DIR"

    def own(self, *, alone: bool = True) -> None:
        """Be the one `rise serve` of this directory, or one of several, until the process ends.

        Raises `StoreLocked`, or `StoreUnavailable` if it cannot be written.
        """
        try:
            fd = os.open(self.lock, os.O_CREAT | os.O_RDWR, 0o600)
        except OSError as error:
            raise StoreUnavailable(f"{self.path} cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(fd, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            # And so that it can be seen without being taken.
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _whole_file(fcntl.F_WRLCK if alone else fcntl.F_RDLCK))
        except BlockingIOError as error:
            os.close(fd)
            raise StoreLocked(
                f"another `rise serve` uses {self.path}, or a `rise restore`. Stop it, or give this one a directory "
                "of its own (RISE_DATA_DIR; `rise demo --data-dir`). More workers are added with `rise worker`."
            ) from error
        self._lock_fd = fd

    def disown(self) -> None:
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def is_owned(self) -> bool:
        """Whether a `rise serve` runs on it now. Takes nothing: one that starts at this moment would be refused."""
        try:
            fd = os.open(self.lock, os.O_RDWR)
        except OSError:
            return False
        try:
            in_the_way = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _whole_file(fcntl.F_WRLCK))
        finally:
            os.close(fd)
        return bool(_FLOCK.unpack(in_the_way)[0] != fcntl.F_UNLCK)

    def space(self) -> tuple[int, int] | None:
        return space_of(self.path)

    def members(self) -> list[str]:
        """The processes that use it now: servers, workers, commands. Each locks a file of its name."""
        return sorted(lock.stem for lock in self.bus.glob("*.lock") if _is_locked(lock))

    def kept_secret(self, name: str) -> str:
        """The secret of that name, made at first use and readable by the owner alone.

        Raises `StoreCorrupt` if it is shorter than what is made, `StoreUnavailable` if it cannot be read or made.
        """
        path = self.path / name
        try:
            if not path.exists():
                write_once(path, new_secret())
            secret = path.read_text().strip()
        except OSError as error:
            raise StoreUnavailable(f"{path} cannot be read or written: {error.strerror}") from error
        if len(secret) < _SECRET_LENGTH_MIN:
            # A copy that ran out of space leaves an empty one: what is derived from that, anybody can derive.
            raise StoreCorrupt(
                f"{path} holds {len(secret)} characters, one that is made has {_SECRET_LENGTH_MIN}: it could be "
                "guessed. Put the one of a backup there, or remove the file: another is made at the next start."
            )
        return secret

    def known_ledger(self) -> str | None:
        """The name of the ledger that was last heard of; None if none ever was."""
        try:
            return (self.path / LEDGER).read_text().strip() or None
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreUnavailable(f"{self.path / LEDGER} cannot be read: {error.strerror}") from error

    def remember_ledger(self, name: str) -> None:
        """For a start while the ledger is away. Raises `StoreUnavailable` if it cannot be written."""
        path = self.path / LEDGER
        if self.known_ledger() == name:
            return
        try:
            path.unlink(missing_ok=True)
            write_once(path, name)
        except OSError as error:
            raise StoreUnavailable(f"{path} cannot be written: {error.strerror}") from error

    def has_verified(self, account: str) -> bool:
        """Whether Telegram has known this bot, and taken its webhook, at least once since the directory was made."""
        if account not in self._verified and self._verification(account).exists():
            self._verified.add(account)
        return account in self._verified

    def remember_verified(self, account: str, detail: str = "") -> None:
        """From now on, restarts included. Raises `StoreUnavailable` if that is known to this process alone."""
        self._verified.add(account)
        path = self._verification(account)
        try:
            if not path.exists():
                write_once(path, detail)
        except OSError as error:
            raise StoreUnavailable(f"{path} cannot be written: {error.strerror}") from error

    def _verification(self, account: str) -> Path:
        return self.path / f"telegram-{account}.verified"


def derived_secret(key: str, purpose: str) -> str:
    """A secret for one purpose that tells nothing about the key or the others. 48 hexadecimal digits."""
    digest = hmac.new(key.encode(), purpose.encode(), hashlib.sha256).hexdigest()
    return digest[:48]


def space_of(path: Path) -> tuple[int, int] | None:
    """Free and total bytes of the disk it is on; None if that cannot be told."""
    try:
        disk = os.statvfs(path)
    except OSError:
        return None
    return disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize


def _whole_file(kind: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, 0, 0, 0)


def _is_locked(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDWR)
    except OSError:
        return False  # it was just given up
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
