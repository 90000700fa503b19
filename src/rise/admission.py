"""Whether a message may be accepted now: said at once, where asking the stores would only make people wait.

Two reasons to refuse. Nothing could be kept just now: from then on one acceptance at a time tries whether that has
passed, and all others are refused without trying, until one is kept or somebody has seen the store work. Or there
is too much to do, everywhere or of what came by one channel, which the supervisor sees and takes back.

Refuses: to keep a message in memory until things are better.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Final

from rise.errors import Busy, CapabilityClosed, Unavailable
from rise.telemetry import log

RETRY_AFTER_SECONDS: Final = 2
"""Somebody tries all the time: it is known at once when it is back."""


class Admission:
    """One per process. For the event loop's thread."""

    def __init__(self) -> None:
        self._closed_by: Unavailable | None = None
        self._is_trying = False
        self._busy: Busy | None = None
        self._busy_channels: dict[str, Busy] = {}

    @contextmanager
    def entry(self, channel: str = "") -> Iterator[None]:
        """Around the keeping of one message. Raises `Busy` or `CapabilityClosed` instead of entering."""
        busy = self._busy or self._busy_channels.get(channel)
        if busy is not None:
            raise Busy(busy.public_message, retry_after_seconds=busy.retry_after_seconds)
        is_trial = self._closed_by is not None
        if is_trial:
            self._refuse_beside_the_trial()
            self._is_trying = True
        try:
            yield
        except Unavailable as error:
            self._close(error)
            raise
        else:
            self.open()
        finally:
            if is_trial:
                self._is_trying = False

    def open(self) -> None:
        """Something could be kept."""
        if self._closed_by is not None:
            self._closed_by = None
            log.info("task_runtime.enabled")

    def refuse(self, why: str, *, retry_after_seconds: int) -> None:
        """Take no more work, until `admit`."""
        self._busy = Busy(why, retry_after_seconds=retry_after_seconds)

    def refuse_from(self, channels: Collection[str], why: str, *, retry_after_seconds: int) -> None:
        """Take no more from these channels, until `admit`; all others go on."""
        self._busy_channels = dict.fromkeys(channels, Busy(why, retry_after_seconds=retry_after_seconds))

    def admit(self) -> None:
        self._busy = None
        self._busy_channels = {}

    def _refuse_beside_the_trial(self) -> None:
        cause = self._closed_by
        if self._is_trying and cause is not None:
            raise CapabilityClosed(
                cause.capability,
                "unavailable",
                cause.public_message,
                retry_after_seconds=cause.retry_after_seconds or RETRY_AFTER_SECONDS,
            )

    def _close(self, error: Unavailable) -> None:
        if self._closed_by is None:
            log.error(
                "task_runtime.disabled",
                capability=error.capability,
                error=error,
                consequence="answered 503 at once; one at a time tries whether it has passed",
            )
        self._closed_by = error
