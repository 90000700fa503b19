"""That a database was made here, and which: a word beside it. Without it a lost one looks like one that never was.

Promises: it is there, whole and synced, before anything is accepted into the database, and stays as it is.

Refuses: to let an empty database, or another, be taken for the one that was made; to touch what is left of that one.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rise.envelope import new_key
from rise.errors import StoreCorrupt, StoreUnavailable

if TYPE_CHECKING:
    import apsw

_CONSEQUENCE: Final = (
    ": what was accepted into the one before it is not there, and nothing is accepted until it is back"
)
_BACK: Final = "put the file back, or stop Rise and `rise restore --force` a backup"


@dataclass(frozen=True, slots=True)
class Marker:
    """A file with the identity of the ledger in the database."""

    path: Path

    def refuse_lost(self, database: Path) -> None:
        """Before anything opens it, which would make an empty one and take away the log. Raises `StoreCorrupt`."""
        if not _size_bytes(database) and (self.path.exists() or _size_bytes(_log_of(database))):
            raise self._lost(database, "empty" if database.exists() else "gone")

    def refuse_another(self, database: Path, connection: apsw.Connection) -> None:
        """Raises `StoreCorrupt` if the database is not the one that was made here."""
        made = self._made()
        if made and made != identity_of(connection):
            import apsw  # here, because whoever only wants help does not wait for it

            # The log may be what is left of the lost one: closing must not write it into this one and remove it.
            connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            raise self._exchanged(database)

    def write(self, connection: apsw.Connection) -> None:
        """Unless it is there, or the database has no ledger. Raises `StoreUnavailable`."""
        identity = identity_of(connection)
        if not identity or self.path.exists():
            return
        try:
            write_once(self.path, identity)
        except OSError as error:
            raise StoreUnavailable(f"{self.path} cannot be written: {error.strerror}") from error

    def _made(self) -> str:
        """The identity; empty if nothing says which, as in a directory of a Rise before there was one."""
        try:
            return self.path.read_text().strip()
        except FileNotFoundError:
            return ""
        except (OSError, ValueError) as error:
            raise StoreUnavailable(f"{self.path} cannot be read: {error}") from error

    def _lost(self, database: Path, how: str) -> StoreCorrupt:
        log = _log_of(database)
        left = [path for path in (self.path, log) if path.exists()]
        kept = f"; {log.name}, what is left of it, is not touched" if log in left else ""
        return StoreCorrupt(
            f"{database} is {how}{_CONSEQUENCE}{kept}",
            remedy=f"{_BACK}; or stop it and remove {' and '.join(map(str, left))} to begin anew:"
            " what was there is lost then",
        )

    def _exchanged(self, database: Path) -> StoreCorrupt:
        return StoreCorrupt(
            f"{database} is not the one that was made here{_CONSEQUENCE}",
            remedy=f"{_BACK}; or stop it and remove {self.path} to go on with this one",
        )


def identity_of(connection: apsw.Connection) -> str:
    """Of the ledger in it; empty if there is none, or an old one."""
    tables = connection.execute("SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = 'identity'")
    if not tables.fetchone()[0]:
        return ""
    row = connection.execute("SELECT name FROM identity").fetchone()
    return str(row[0]) if row else ""


def write_once(path: Path, text: str) -> None:
    """Whole or not at all, also when two processes start at the same moment or the power is cut; the first counts."""
    # By chance, not by the process's number: containers that share a directory all count from one.
    nameless = path.with_name(f"{path.name}.{new_key()[:8]}")
    fd = os.open(nameless, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(nameless, path)
    except FileExistsError:
        pass
    finally:
        nameless.unlink()
    sync(path.parent)


def sync(path: Path) -> None:
    """On the disk: what is in a file, or which names are in a directory. Raises `OSError`."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _log_of(database: Path) -> Path:
    return Path(f"{database}-wal")


def _size_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise StoreUnavailable(f"{path} cannot be looked at: {error.strerror}") from error
