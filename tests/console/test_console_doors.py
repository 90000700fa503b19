"""At each door, who has no credentials is counted by itself, and who shows wrong ones is told of."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
import structlog
from api_house import OPERATOR, as_, opened

from rise.console.app import build_front
from rise.console.sessions import COOKIE
from rise.telemetry import registry
from rise.testing.clock import ManualClock


@pytest.mark.req("SEC-1", "SEC-4")
async def test_a_crowd_in_the_web_chat_keeps_nobody_from_the_other_doors(tmp_path: Path) -> None:
    async with opened(tmp_path / "crowd", rate_per_source=0.1) as house:
        front = build_front(house)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(front), base_url="http://localhost") as client:
            doors = {
                "webchat": lambda: client.post("/webchat/session"),
                "console": lambda: client.get("/console/sign-in"),
                "api": lambda: client.get("/internal/tasks/stats", headers=as_("not-a-token")),
                "webhook": lambda: client.post("/telegram/webhook"),
            }
            first = {name: (await ask()).status_code for name, ask in doors.items()}
            assert first == {"webchat": 200, "console": 200, "api": 401, "webhook": 401}
            assert {(await ask()).status_code for ask in doors.values()} == {429}
            assert (await client.get("/internal/tasks/stats", headers=as_(OPERATOR))).status_code == 200
            signed_in = await client.post("/console/sign-in", data={"token": OPERATOR})
            assert signed_in.status_code == 303, "the right token always gets in"
        front.close()


@pytest.mark.req("SEC-1", "OPS-2")
async def test_refused_credentials_are_counted_and_the_first_of_a_source_and_minute_is_logged(tmp_path: Path) -> None:
    clock = ManualClock()
    async with opened(tmp_path / "guessed", rate_per_source=0.1, clock=clock) as house:
        front = build_front(house)

        async def guess(address: str) -> None:
            transport = httpx.ASGITransport(front, client=(address, 1))
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                for _ in range(3):
                    await client.get("/internal/tasks/stats", headers=as_("not-a-token"))
                    await client.post("/console/sign-in", data={"token": "not-a-token"})
                    await client.get("/console", headers={"cookie": f"{COOKIE}=not-a-session"})
                await client.get("/internal/tasks/stats")
                await client.get("/console")

        before = {door: _refused(door) for door in ("api", "console")}
        with structlog.testing.capture_logs() as lines:
            await guess("192.0.2.1")
            await guess("192.0.2.2")
            clock.advance(61)
            await guess("192.0.2.2")
        front.close()
    assert {door: _refused(door) - count for door, count in before.items()} == {"api": 9, "console": 18}
    told = [line for line in lines if line["event"] == "credentials.refused"]
    assert [line["source"] for line in told] == ["192.0.2.1", "192.0.2.2", "192.0.2.2"]
    assert "not-a-" not in str(told)


def _refused(door: str) -> float:
    return registry.get_sample_value("rise_credentials_refused_total", {"door": door}) or 0.0
