"""The bus of one host: datagrams between the processes that share a data directory.

Each member binds a socket and holds a file lock beside it. The kernel drops the lock with the process, so a
member whose lock can be taken is dead for certain, at once, without any timeout.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import weakref
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from rise.bus.port import Listener, Topic
from rise.clock import Clock
from rise.envelope import encode_json, new_key
from rise.telemetry import log

DATAGRAM_BYTES_MAX: Final = 8192
PEERS_SECONDS: Final = 0.25


class LocalBus:
    """`rise.bus.port.Bus` for one host."""

    name = "bus"

    def __init__(self, directory: Path, clock: Clock) -> None:
        self._directory = directory
        self._clock = clock
        self.member = f"{os.getpid()}-{new_key()[:8]}"
        self._listeners: dict[Topic, list[Listener]] = defaultdict(list)
        self._socket: socket.socket | None = None
        self._lock_fd: int | None = None
        self._directory_fd: int | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._hints_waiting: set[Topic] = set()
        self._peers_known: list[str] = []
        self._peers_until = 0.0

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory_fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        self._lock_fd = _locked_file(self._directory, self.member)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(self._address(self.member))
        _started.add(self)
        self._loop.add_reader(self._socket, self._receive)

    async def stop(self) -> None:
        if self._socket is None or self._loop is None:
            return
        self._loop.remove_reader(self._socket)
        self._socket.close()
        self._socket = None
        # On a disk that has become read-only it cannot be taken back; then it is found dead, and is.
        with suppress(OSError):
            self.bury(self.member)
        for fd in (self._lock_fd, self._directory_fd):
            if fd is not None:
                os.close(fd)
        _started.discard(self)

    def publish(self, topic: Topic, payload: Mapping[str, Any] | None = None) -> None:
        if self._loop is None or self._socket is None:
            return
        if payload is not None:
            self._send(topic, payload)
        elif topic not in self._hints_waiting:
            # A hundred messages accepted in one turn of the loop are one hint.
            self._hints_waiting.add(topic)
            self._loop.call_soon(self._send_hint, topic)

    def subscribe(self, topic: Topic, listener: Listener) -> Callable[[], None]:
        listeners = self._listeners[topic]
        listeners.append(listener)
        return lambda: listeners.remove(listener) if listener in listeners else None

    async def has_queued(self) -> bool:
        return False

    def dead_members(self) -> list[str]:
        return [member for member in self._members() if member != self.member and _is_dead(self._lock_path(member))]

    def bury(self, member: str) -> None:
        (self._directory / f"{member}.sock").unlink(missing_ok=True)
        self._lock_path(member).unlink(missing_ok=True)

    # --- for a bus that reaches further ---

    def is_here(self, member: str) -> bool:
        """Whether it is a process of this host: it has heard already."""
        return member in self._members()

    def tell(self, topic: Topic, payload: Mapping[str, Any]) -> None:
        """Only those who listen in this process."""
        for listener in list(self._listeners[topic]):
            try:
                listener(payload)
            except Exception as error:  # noqa: BLE001 - border: it has missed a hint and looks by itself; the others hear
                log.error("bus.listener_failed", topic=topic, error=error, exc_info=error)

    # --- inside ---

    def leave_to_parent(self) -> None:
        """In a forked child: its copy of the lock would hide the parent's death."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def _send_hint(self, topic: Topic) -> None:
        self._hints_waiting.discard(topic)
        self._send(topic, {})

    def _send(self, topic: Topic, payload: Mapping[str, Any]) -> None:
        if self._socket is None:
            return
        self.tell(topic, payload)
        datagram = encode_json((topic, payload))
        for member in self._peers():
            if member != self.member:
                try:
                    self._socket.sendto(datagram, self._address(member))
                except OSError:
                    # Gone, or too busy to listen: it looks by itself before long.
                    continue

    def _receive(self) -> None:
        assert self._socket is not None
        while True:
            try:
                datagram = self._socket.recv(DATAGRAM_BYTES_MAX)
            except BlockingIOError:
                return
            try:
                topic, payload = msgspec.json.decode(datagram, type=tuple[Topic, dict[str, Any]])
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                continue  # another version's topic, or not one of us
            self.tell(topic, payload)

    def _peers(self) -> list[str]:
        """The members, looked up a few times a second at most: who came just now looks by itself at its start."""
        now = self._clock.monotonic()
        if now >= self._peers_until:
            self._peers_known, self._peers_until = self._members(), now + PEERS_SECONDS
        return self._peers_known

    def _members(self) -> list[str]:
        return [lock.stem for lock in self._directory.glob("*.lock")]

    def _address(self, member: str) -> str:
        # Through the directory's descriptor: a socket's path may have no more than 107 bytes.
        return f"/proc/self/fd/{self._directory_fd}/{member}.sock"

    def _lock_path(self, member: str) -> Path:
        return self._directory / f"{member}.lock"


_started: weakref.WeakSet[LocalBus] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for bus in list(_started):
        bus.leave_to_parent()
    _started.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)


def _locked_file(directory: Path, member: str) -> int:
    """Locked before it gets its name, so that nobody finds it unlocked while its process is starting."""
    nameless = directory / f"{member}.starting"
    fd = os.open(nameless, os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    nameless.rename(directory / f"{member}.lock")
    return fd


def _is_dead(lock: Path) -> bool:
    try:
        fd = os.open(lock, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True
