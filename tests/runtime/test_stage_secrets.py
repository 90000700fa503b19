"""Secrets of stages: kept sealed, asked for by name, never removed under a workflow that runs with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rise.definitions.port import VERSIONS_KEPT, Kind
from rise.errors import PayloadInvalid, SecretUnknown, StateConflict
from rise.runtime.assembly.house import House, build
from rise.runtime.assembly.operations import build_stage_secrets, build_workflows
from rise.settings import load_settings

KEY = "key-of-the-shop-4711"
LOOK = {
    "name": "look", "kind": "http", "url": "https://api.example", "headers": {"Authorization": "{{ secrets.SHOP }}"}
}  # fmt: skip

pytestmark = pytest.mark.req("SEC-2")


@pytest.fixture
async def house(tmp_path: Path) -> Any:
    house = build(load_settings(_env_file=None, data_dir=tmp_path))
    await house.stores.open()
    yield house
    await house.stores.close()


async def test_what_is_kept_is_sealed_and_a_new_value_is_the_next_version(house: House, tmp_path: Path):
    secrets = build_stage_secrets(house)
    first = await secrets.set("SHOP", KEY, by="ann")
    assert (first.name, first.version, first.updated_by) == ("SHOP", 1, "ann")
    assert (await secrets.set("SHOP", KEY, by="bob")).version == 1, "nothing is new"
    assert (await secrets.set("SHOP", "another-key-4712", by="bob")).version == 2
    kept = await house.stores.definitions.versions(Kind.SECRET, "SHOP", limit=VERSIONS_KEPT)
    assert not [one for one in kept if KEY.encode() in (one.body or b"")]
    assert not [file for file in tmp_path.iterdir() if file.is_file() and KEY.encode() in file.read_bytes()]
    await house.bindings.refresh()
    known = house.bindings.secret("SHOP")
    assert known is not None
    assert house.seal.open(known.sealed) == "another-key-4712"
    operations = [(one.action, one.target) for one in await house.ledger.operations(limit=10)]
    assert operations == [("set secret", "SHOP")] * 2


@pytest.mark.parametrize(
    ("name", "value", "field"),
    [("9", KEY, "name"), ("a-b", KEY, "name"), ("A", "short", "value"), ("A", f"{KEY}\nX: y", "value"),
     ("A", "schlüssel", "value"), ("A", "k" * 5000, "value")],
)  # fmt: skip
async def test_what_could_not_be_named_or_sent_is_refused(house: House, name: str, value: str, field: str):
    with pytest.raises(PayloadInvalid) as refused:
        await build_stage_secrets(house).set(name, value, by="ann")
    assert refused.value.field == field
    assert value not in str(refused.value)


async def test_a_stage_that_asks_for_a_secret_is_published_when_it_is_there_and_keeps_it(house: House):
    secrets, workflows = build_stage_secrets(house), build_workflows(house)
    workflow_id = (await workflows.create("shop", [LOOK], by="ann")).workflow_id
    with pytest.raises(PayloadInvalid, match="`rise secrets set SHOP`") as refused:
        await workflows.publish(workflow_id, by="ann")
    assert refused.value.field == "stages[0].headers.Authorization"
    await secrets.set("SHOP", KEY, by="ann")
    await workflows.publish(workflow_id, by="ann")
    assert await secrets.used_by() == {"SHOP": [workflow_id]}
    with pytest.raises(StateConflict, match=workflow_id):
        await secrets.remove("SHOP", by="ann")
    await workflows.edit(workflow_id, stages=[LOOK | {"headers": {}}], by="ann")
    await workflows.publish(workflow_id, by="ann")
    await secrets.remove("SHOP", by="ann")
    assert await secrets.list() == []
    with pytest.raises(SecretUnknown):
        await secrets.remove("SHOP", by="ann")
    with pytest.raises(PayloadInvalid, match="names secrets"):
        await workflows.roll_back(workflow_id, 1, by="ann")
