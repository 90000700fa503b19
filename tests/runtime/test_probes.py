"""What a running server asks, and how often, to know what it can use."""

from __future__ import annotations

from pathlib import Path

import pytest

from rise.capabilities import CapabilityStatus
from rise.runtime.assembly.house import build
from rise.runtime.probes import MODEL_SECONDS, register_probes
from rise.settings import load_settings
from rise.testing.clock import ManualClock
from rise.testing.model_server import ModelStandIn
from rise.workflows.model import OpenAIModel


@pytest.mark.req("CAP-2")
async def test_the_language_model_is_asked_whether_it_is_there_once_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    clock, made, make = ManualClock(), [], OpenAIModel._made
    monkeypatch.setattr(OpenAIModel, "_made", lambda model: made.append(model) or make(model))
    async with ModelStandIn() as server:
        settings = {"llm_base_url": server.url, "llm_model": "stand-in", "llm_api_key": "a-key-of-the-tests"}
        house = build(load_settings(data_dir=tmp_path, _env_file=None, **settings), clock=clock)
        register_probes(house)
        there = await house.capabilities.probe("llm")
        assert (there.status, there.detail) == (CapabilityStatus.AVAILABLE, "answers; it has stand-in")
        again = await house.capabilities.probe("llm")
    assert (again.status, len(made)) == (CapabilityStatus.AVAILABLE, 1), "by one client, which the house closes"
    assert server.calls == [], "which costs nothing"
    for seconds, status in ((MODEL_SECONDS - 1, CapabilityStatus.AVAILABLE), (2, CapabilityStatus.UNAVAILABLE)):
        clock.advance(seconds)
        await house.capabilities.probe_due()
        assert house.capabilities.all()["llm"].status is status
    await house.model.close()


@pytest.mark.req("CAP-2")
def test_where_no_language_model_is_configured_none_is_asked(tmp_path: Path):
    house = build(load_settings(data_dir=tmp_path, _env_file=None))
    register_probes(house)
    assert house.capabilities.get("llm") is None


@pytest.mark.req("CAP-2", "SUP-2")
@pytest.mark.failure("C5")
async def test_a_disk_without_room_is_said_to_be_so_while_it_can_still_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    house = build(load_settings(data_dir=tmp_path, disk_free_warn_mb=512, _env_file=None), clock=ManualClock())
    await house.stores.open()
    register_probes(house)
    well, little = CapabilityStatus.AVAILABLE, CapabilityStatus.DEGRADED
    for free, status in ((600, well), (513, well), (511, little), (513, little), (650, well), (500, little)):
        monkeypatch.setattr("rise.runtime.probes.space_of", lambda path, free=free: (free * 10**6, 10**12))
        assert (await house.capabilities.probe("disk")).status is status, free
    assert house.capabilities.get("disk").detail == f"written and synced, but only 500 MB are free for {tmp_path}"
    assert house.capabilities.acceptance.lacks(house.capabilities.all()) is None, "and goes on accepting"
    await house.stores.close()
