"""What is so now: which capabilities work, what passes by, what is open, what a person should know; and all of it live.

All of it is in memory, so the page is as quick with a million messages stored as with none. Between the looks of the
stream nothing is asked of the stores but what `rise.runtime.pulse` counts.

Refuses: more open streams than people could look at.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from rise.capabilities import CapabilityStatus, meaning_of
from rise.clock import epoch_ms
from rise.console.rendering import Page, render
from rise.console.sessions import Session
from rise.envelope import encode_json
from rise.errors import RateExceeded
from rise.runtime.assembly.house import House
from rise.runtime.pulse import Beat

STREAMS_MAX: Final = 100
STREAM_SECONDS_MAX: Final = 900.0
"""The page comes back by itself, and has to show its cookie again."""
LOOK_SECONDS: Final = 5.0
"""Without a beat: so that a page whose server counts nothing still hears that it is there."""

_STANDINGS: Final = {
    "ok": ("All is well", "Messages are accepted, run and answered."),
    "degraded": ("Not everything works", "Messages are accepted. What does not work, and what that means, is below."),
    "unavailable": ("No messages are accepted", "Senders are told to come again."),
}


class Light(msgspec.Struct, frozen=True, kw_only=True):
    """One capability."""

    name: str
    status: CapabilityStatus
    detail: str
    since: datetime
    consequence: str = ""
    remedy: str = ""


class NowPages:
    def __init__(self, house: House, page: Page) -> None:
        self._house = house
        self._page = page
        self._streams = 0
        self._closing = False

    def close(self) -> None:
        """End all streams; their pages come back to the next process."""
        self._closing = True
        self._house.pulse.wake()

    async def show(self, request: Request, session: Session) -> Response:
        beats = self._house.pulse.beats
        last = _beat(beats[-1]) if beats else None
        return self._page(request, "now.html", session, self._parts() | {"last": last})

    async def events(self, request: Request, session: Session) -> Response:
        """`beats`: figures, first of the last minutes, then of each moment. Else: a part of the page has changed."""
        if self._streams >= STREAMS_MAX:
            raise RateExceeded("too many open streams", retry_after_seconds=5)
        headers = {"X-Accel-Buffering": "no"}
        return StreamingResponse(self._stream(), media_type="text/event-stream", headers=headers)

    async def _stream(self) -> AsyncIterator[str]:
        clock, pulse = self._house.clock, self._house.pulse
        ends_at = clock.monotonic() + STREAM_SECONDS_MAX
        shown: dict[str, bytes] = {}
        told = 0
        self._streams += 1
        try:
            with pulse.watching() as beaten:
                yield "retry: 2000\n\n"
                while not self._closing and clock.monotonic() < ends_at:
                    for name, values in self._parts().items():
                        if shown.get(name) != (said := encode_json(values)):
                            shown[name] = said
                            yield _event(name, self._part(name, values))
                    fresh, told = pulse.after(told), pulse.number
                    if fresh:
                        yield _event("beats", encode_json([_beat(one) for one in fresh]).decode())
                    else:
                        yield ": still here\n\n"
                    await beaten.wait(LOOK_SECONDS)
        finally:
            self._streams -= 1

    def _part(self, name: str, values: Any) -> str:
        # The page's own address is that from which the parts are fetched, too.
        return render(f"part_{name}.html", {name: values, "now": self._house.clock.now(), "base": "console"})

    def _parts(self) -> dict[str, Any]:
        """What the page is made of that may change, by the names of the templates."""
        return {
            "standing": self._standing(),
            "lights": self._lights(),
            "alerts": self._house.alerts.all()[::-1],
            "counted": self._house.pulse.counted,
        }

    def _standing(self) -> dict[str, str]:
        """In one sentence."""
        standing, closed = self._house.capabilities.overall(), self._house.capabilities.not_accepting()
        title, words = _STANDINGS[standing]
        if closed is not None:
            words = f"{words} {closed.name}: {closed.detail}"
        return {"is": standing, "title": title, "words": words}

    def _lights(self) -> list[Light]:
        """What is worst first."""
        lights = []
        for name, state in sorted(self._house.capabilities.all().items()):
            since = state.since or state.checked_at
            is_well = state.status is CapabilityStatus.AVAILABLE
            meaning = {} if is_well else meaning_of(name, state.remedy)
            lights.append(Light(name=name, status=state.status, detail=state.detail, since=since, **meaning))
        worst_first = list(reversed(CapabilityStatus))
        return sorted(lights, key=lambda light: worst_first.index(light.status))


def _beat(beat: Beat) -> list[float | None]:
    """As short as it can be said: a page has a hundred and fifty of them."""
    return [epoch_ms(beat.at), round(beat.accepted, 2), round(beat.answered, 2), beat.open, beat.oldest_seconds]


def _event(name: str, data: str) -> str:
    lines = "".join(f"data: {line}\n" for line in data.splitlines())
    return f"event: {name}\n{lines}\n"
