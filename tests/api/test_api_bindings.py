"""Bindings over HTTP: what is listed, what switching on needs, versions, roles, and that a token is shown to nobody."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from typing import Any

import httpx
import msgspec
import pytest
import structlog
from api_house import ADMIN, BOT, OPERATOR, VIEWER, as_, client_of, opened

from rise.api.app import App, build_app
from rise.definitions.port import Definition, Kind
from rise.definitions.records import CODE, WorkflowRecord
from rise.runtime.assembly.house import House
from rise.telemetry import redact

TOKEN = "8000000001:AAE-a-token-that-nobody-may-see-0123456789"
OTHER = "8000000001"
OPERATORS = "8000000009:AAE-a-token-that-only-an-admin-may-bind-0123"
PATH = "/api/channel-bindings"
SAY = {"name": "say", "kind": "reply", "template": "hi {{ text }}"}


@pytest.fixture
async def admin(app: App, house: House) -> AsyncIterator[httpx.AsyncClient]:
    for workflow in (
        WorkflowRecord(workflow_id="wf_a", name="a", channels=("telegram", "http")),
        WorkflowRecord(workflow_id="wf_b", name="b", channels=("telegram",)),
        WorkflowRecord(workflow_id="wf_off", name="off", channels=("telegram",), enabled=False),
        WorkflowRecord(workflow_id="wf_draft", name="draft", channels=("telegram",), published=False),
        WorkflowRecord(workflow_id="wf_inner", name="inner"),
    ):
        await house.editor.publish(workflow, by=CODE)
    async with client_of(app, **as_(ADMIN)) as client:
        yield client


def enabling(**fields: Any) -> dict[str, Any]:
    return {"channel": "telegram", "enabled": True} | fields


def burst(**fields: Any) -> dict[str, Any]:
    return {"quietSeconds": 3, "longestWaitSeconds": 20} | fields


async def put(client: httpx.AsyncClient, workflow_id: str, body: dict[str, Any], **query: Any) -> Any:
    answered = await client.put(f"{PATH}/{workflow_id}", json=body, params=query)
    assert answered.status_code == 200, answered.text
    return answered.json()["data"]


def refused(answered: httpx.Response) -> tuple[int, str, str]:
    error = answered.json()["error"]
    return answered.status_code, error["code"], error.get("field", "")


# --- what is listed ---------------------------------------------------------------------------------------


@pytest.mark.req("BND-1")
async def test_every_workflow_that_may_be_bound_is_listed_and_no_other(admin: httpx.AsyncClient):
    await put(admin, "wf_a", enabling())
    options = (await admin.get(f"{PATH}/options")).json()["data"]
    shown = [(one["workflowId"], one["channel"], one["account"], one["isBound"], one["status"]) for one in options]
    assert shown == [
        ("wf_a", "http", "default", False, "unbound"),
        ("wf_a", "telegram", BOT, True, "bound"),
        ("wf_b", "telegram", BOT, False, "unbound"),
        ("wf_inner", "telegram", BOT, False, "unbound"),
    ]
    bound = options[1]
    assert bound["health"] == {
        "status": "unknown", "source": "", "detail": bound["health"]["detail"], "lastCheckedAt": None
    }  # fmt: skip
    assert {name: bound[name] for name in ("workflowName", "publishedVersion", "isChannelEnabled", "killSwitch")} == {
        "workflowName": "a", "publishedVersion": 1, "isChannelEnabled": True, "killSwitch": None
    }  # fmt: skip
    assert (bound["bindingVersion"], bound["updatedBy"]) == (1, "admin")
    assert bound["updatedAt"] and options[0]["updatedAt"] is None
    only = (await admin.get(f"{PATH}/options", params={"channel": "http"})).json()["data"]
    assert [one["workflowId"] for one in only] == ["wf_a"]


@pytest.mark.req("BND-1", "BND-2")
async def test_a_binding_is_disabled_or_killed_before_it_is_anything_else(admin: httpx.AsyncClient):
    await put(admin, "wf_a", enabling())
    await admin.post(f"{PATH}/wf_a/kill-switch", json={"on": True, "reason": "it raves"})
    assert (await admin.get(f"{PATH}/wf_a")).json()["data"]["status"] == "killed"
    await admin.post(f"{PATH}/wf_a/kill-switch", json={"on": False})
    assert (await put(admin, "wf_a", {"channel": "telegram", "enabled": False}))["status"] == "disabled"
    unbound = (await admin.get(f"{PATH}/wf_b")).json()["data"]
    assert (unbound["status"], unbound["enabled"], unbound["bindingVersion"]) == ("unbound", False, 0)


@pytest.mark.req("BND-2")
async def test_what_nobody_has_written_is_unknown_and_what_is_being_written_can_be_bound(
    admin: httpx.AsyncClient, house: House
):
    for answered in (
        await admin.get(f"{PATH}/wf_nobody"),
        await admin.put(f"{PATH}/wf_nobody", json=enabling()),
        await admin.post(f"{PATH}/wf_nobody/refresh"),
        await admin.post(f"{PATH}/wf_nobody/kill-switch", json={"on": True}),
    ):
        assert refused(answered) == (404, "workflow_unknown", "workflowId")
    draft = Definition(kind=Kind.WORKFLOW, name="wf_new", version=1, body=b"{}", at_ms=0, by="Ann")
    await house.stores.definitions.put(draft)
    answered = await admin.put(f"{PATH}/wf_new", json=enabling())
    assert answered.json()["meta"]["warnings"] == ["its workflow is not published: messages wait until it is"]
    off = await admin.put(f"{PATH}/wf_off", json=enabling(isDefault=False, routes=[{"by": "chat", "value": 1}]))
    assert off.json()["meta"]["warnings"] == ["its workflow is switched off: messages wait until it is on"]


# --- switching on and off ---------------------------------------------------------------------------------


@pytest.mark.req("BND-2", "BND-3", "CHN-3")
async def test_everything_that_is_said_is_shown_again_and_what_is_left_out_stays(admin: httpx.AsyncClient):
    whole = await put(
        admin,
        "wf_a",
        enabling(
            routes=[{"by": "chat", "value": 42}, {"by": "command", "value": "/start"}],
            isDefault=True,
            config={
                "botToken": TOKEN,
                "webhookUrl": "https://bots.example/hook",
                "usePolling": False,
                "waitForResult": False,
                "workflowMissingMessage": "Not yet.",
                "timeoutMessage": "Soon.",
                "burst": {"quietSeconds": 3, "longestWaitSeconds": 20.5},
                "metadata": {"allowedChatIds": [1, "2", 1], "rateLimitPerMin": 60, "locale": "de", "team": "north"},
            },
        ),
    )
    assert (whole["account"], whole["bindingVersion"], whole["isDefault"]) == (OTHER, 1, True)
    assert whole["routes"] == [{"by": "chat", "value": "42"}, {"by": "command", "value": "/start"}]
    assert whole["config"] == {
        "botToken": f"{OTHER}:***",
        "webhookUrl": "https://bots.example/hook",
        "usePolling": False,
        "waitForResult": False,
        "workflowMissingMessage": "Not yet.",
        "timeoutMessage": "Soon.",
        "burst": {"quietSeconds": 3, "longestWaitSeconds": 20.5},
        "engine": "native",
        "metadata": {"allowedChatIds": ["1", "2"], "rateLimitPerMin": 60, "locale": "de", "team": "north"},
    }
    await put(admin, "wf_a", {"channel": "telegram", "enabled": False}, account=OTHER)
    again = await put(
        admin,
        "wf_a",
        enabling(config={"timeoutMessage": None, "metadata": {"rateLimitPerMin": None, "team": None}}),
        account=OTHER,
    )
    assert again["isDefault"] is True, "what is left out stays"
    assert again["config"] == whole["config"] | {
        "timeoutMessage": None,
        "metadata": {"allowedChatIds": ["1", "2"], "rateLimitPerMin": None, "locale": "de"},
    }
    assert (await admin.get(f"{PATH}/wf_a", params={"account": OTHER})).json()["data"] == again


@pytest.mark.req("TMP-1")
async def test_where_there_is_no_temporal_nothing_is_bound_to_it(admin: httpx.AsyncClient):
    answered = await admin.put(f"{PATH}/wf_a", json=enabling(config={"engine": "temporal"}))
    assert refused(answered) == (422, "payload_invalid", "config.engine")
    assert "RISE_TEMPORAL_ADDRESS" in answered.json()["error"]["message"]
    switched_off = {"channel": "telegram", "enabled": False, "config": {"engine": "temporal"}}
    assert (await put(admin, "wf_a", switched_off))["config"]["engine"] == "temporal"


@pytest.mark.req("TMP-1")
async def test_with_temporal_a_binding_says_where_it_is_run_and_goes_back(tmp_path: Any):
    async with opened(tmp_path / "with", temporal_address="127.0.0.1:7233") as house:
        await house.editor.publish(WorkflowRecord(workflow_id="wf_a", name="a", channels=("telegram",)), by=CODE)
        async with client_of(build_app(house), **as_(ADMIN)) as client:
            assert (await put(client, "wf_a", enabling()))["config"]["engine"] == "native"
            assert (await put(client, "wf_a", enabling(config={"engine": "temporal"})))["config"][
                "engine"
            ] == "temporal"
            assert (await put(client, "wf_a", enabling()))["config"]["engine"] == "temporal", "what is left out stays"
            assert (await put(client, "wf_a", enabling(config={"engine": None})))["config"]["engine"] == "native"


@pytest.mark.req("BND-2")
async def test_switching_on_names_all_that_is_missing_and_switching_off_needs_nothing(tmp_path: Any):
    async with opened(tmp_path / "bare", telegram_token=None, telegram_mode="webhook", public_url=None) as house:
        await house.editor.publish(WorkflowRecord(workflow_id="wf_a", name="a", channels=("telegram",)), by=CODE)
        async with client_of(build_app(house), **as_(ADMIN)) as client:
            answered = await client.put(f"{PATH}/wf_a", json=enabling(account=OTHER))
            assert refused(answered) == (422, "payload_invalid", "config.botToken")
            assert "config.botToken and config.webhookUrl" in answered.json()["error"]["message"]
            answered = await client.put(f"{PATH}/wf_a", json=enabling(config={"botToken": TOKEN}))
            assert refused(answered) == (422, "payload_invalid", "config.webhookUrl")
            polled = await client.put(f"{PATH}/wf_a", json=enabling(config={"botToken": TOKEN, "usePolling": True}))
            assert polled.json()["data"]["status"] == "bound"
            off = await client.put(
                f"{PATH}/wf_a", json={"channel": "telegram", "enabled": False}, params={"account": OTHER}
            )
            assert off.json()["data"]["status"] == "disabled"
            known = await client.put(f"{PATH}/wf_a", json=enabling(account=OTHER))
            assert known.json()["data"]["status"] == "bound", "its token is known already"


@pytest.mark.req("BND-2", "TGM-3")
async def test_a_bot_is_not_bound_to_a_public_address_to_which_telegram_does_not_deliver(tmp_path: Any):
    async with opened(
        tmp_path / "plain", telegram_token=None, telegram_mode="webhook", public_url="http://bots.example"
    ) as house:
        await house.editor.publish(WorkflowRecord(workflow_id="wf_a", name="a", channels=("telegram",)), by=CODE)
        async with client_of(build_app(house), **as_(ADMIN)) as client:
            answered = await client.put(f"{PATH}/wf_a", json=enabling(config={"botToken": TOKEN}))
            assert refused(answered) == (422, "payload_invalid", "config.webhookUrl")
            assert "RISE_PUBLIC_URL, is https://" in answered.json()["error"]["message"]
            polled = await client.put(f"{PATH}/wf_a", json=enabling(config={"botToken": TOKEN, "usePolling": True}))
            assert polled.json()["data"]["status"] == "bound"


@pytest.mark.req("BND-2")
async def test_a_bot_api_server_of_ones_own_may_deliver_without_tls(tmp_path: Any):
    async with opened(tmp_path / "own", telegram_api_base="http://127.0.0.1:8081") as house:
        await house.editor.publish(WorkflowRecord(workflow_id="wf_a", name="a"), by=CODE)
        async with client_of(build_app(house), **as_(ADMIN)) as client:
            bound = await put(client, "wf_a", enabling(config={"webhookUrl": "http://10.0.0.1/hook"}))
            assert bound["config"]["webhookUrl"] == "http://10.0.0.1/hook"


@pytest.mark.req("BND-2", "BND-7")
async def test_without_a_default_bot_a_binding_is_found_by_its_workflow_as_long_as_that_is_bound_once(tmp_path: Any):
    async with opened(tmp_path / "bare", telegram_token=None) as house:
        for workflow_id in ("wf_a", "wf_b"):
            await house.editor.publish(WorkflowRecord(workflow_id=workflow_id, name=workflow_id), by=CODE)
        async with client_of(build_app(house), **as_(ADMIN)) as client:
            nobodys = f"{PATH}/wf_b"
            await put(client, "wf_a", enabling(config={"botToken": TOKEN}))
            assert (await client.get(f"{PATH}/wf_a")).json()["data"]["account"] == OTHER
            assert (await client.post(f"{PATH}/wf_a/refresh")).json()["data"]["account"] == OTHER
            killed = await client.post(f"{PATH}/wf_a/kill-switch", json={"on": True, "reason": "x"})
            assert (killed.json()["data"]["account"], killed.json()["data"]["status"]) == (OTHER, "killed")
            off = await put(client, "wf_a", {"channel": "telegram", "enabled": False})
            assert (off["account"], off["enabled"]) == (OTHER, False)
            assert (await put(client, "wf_a", enabling()))["enabled"] is True
            assert refused(await client.put(nobodys, json=enabling())) == (422, "payload_invalid", "account")
            unbound = (await client.get(nobodys)).json()["data"]
            assert (unbound["account"], unbound["status"]) == (None, "unbound"), "as it is listed"
            await put(client, "wf_a", enabling(config={"botToken": OPERATORS}))
            several = await client.get(f"{PATH}/wf_a")
            assert refused(several) == (422, "payload_invalid", "account")
            assert f"{OTHER}, {OPERATORS.partition(':')[0]}" in several.json()["error"]["message"]


@pytest.mark.req("BND-2")
@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"enabled": True}, "channel"),
        ({"channel": "fax", "enabled": True}, "channel"),
        ({"channel": "telegram"}, "enabled"),
        ({"channel": "telegram", "enabled": "yes"}, "enabled"),
        (enabling(colour="red"), "colour"),
        (enabling(config={"colour": "red"}), "config.colour"),
        (enabling(config={"botToken": "hunter2"}), "config.botToken"),
        (enabling(config={"botToken": TOKEN}, account="1"), "config.botToken"),
        (enabling(account="٨٠٠٠"), "account"),
        (enabling(account="8²"), "account"),
        (enabling(config={"webhookUrl": "ftp://x"}), "config.webhookUrl"),
        (enabling(config={"webhookUrl": "https://[x"}), "config.webhookUrl"),
        (enabling(config={"webhookUrl": "HTTP://bots.example/hook"}), "config.webhookUrl"),
        (enabling(config={"usePolling": 1}), "config.usePolling"),
        (enabling(config={"timeoutMessage": " "}), "config.timeoutMessage"),
        (enabling(config={"burst": 3}), "config.burst"),
        (enabling(config={"burst": {"quietSeconds": 3}}), "config.burst.longestWaitSeconds"),
        (enabling(config={"burst": burst(quietSeconds=True)}), "config.burst.quietSeconds"),
        (enabling(config={"burst": burst(quietSeconds=0.01)}), "config.burst.quietSeconds"),
        (enabling(config={"burst": burst(quietSeconds=31, longestWaitSeconds=40)}), "config.burst.quietSeconds"),
        (enabling(config={"burst": burst(longestWaitSeconds=2)}), "config.burst.longestWaitSeconds"),
        (enabling(config={"burst": burst(longestWaitSeconds=61)}), "config.burst.longestWaitSeconds"),
        (enabling(config={"burst": burst(patience=1)}), "config.burst.patience"),
        (enabling(config={"engine": "steam"}), "config.engine"),
        (enabling(config={"engine": True}), "config.engine"),
        (enabling(config={"metadata": {"rateLimitPerMin": 0}}), "config.metadata.rateLimitPerMin"),
        (enabling(config={"metadata": {"allowedChatIds": [True]}}), "config.metadata.allowedChatIds"),
        (enabling(config={"metadata": {"allowedChatIds": "1"}}), "config.metadata.allowedChatIds"),
        (enabling(config={"metadata": {"note": "x" * 20_000}}), "config.metadata"),
        (enabling(isDefault=False), "isDefault"),
        (enabling(routes=[{"by": "mood", "value": "1"}]), "routes[0].by"),
        (enabling(routes=[{"by": "chat", "value": "1"}, {"by": "command", "value": "start"}]), "routes[1].value"),
        (enabling(routes=["/start"]), "routes[0]"),
        (enabling(account="@name"), "account"),
        ({"channel": "http", "enabled": True, "account": "other"}, "account"),
    ],
)
async def test_what_cannot_be_used_is_named_and_changes_nothing(
    admin: httpx.AsyncClient, house: House, body: dict[str, Any], field: str
):
    before = await house.stores.definitions.changes()
    assert refused(await admin.put(f"{PATH}/wf_a", json=body)) == (422, "payload_invalid", field)
    assert await house.stores.definitions.changes() == before


@pytest.mark.req("SEC-2", "SEC-4")
@pytest.mark.parametrize("token", [OPERATOR, ADMIN], ids=["an operator", "an admin"])
async def test_what_is_no_token_hides_nothing_in_the_log(app: App, admin: httpx.AsyncClient, token: str):
    """Otherwise whoever may bind could have any word masked from then on, such as who did what."""
    word = f"channel_binding.updated by {token[:5]}"
    async with client_of(app, **as_(token)) as client:
        answered = await client.put(f"{PATH}/wf_a", json=enabling(config={"botToken": word}))
    assert answered.status_code == (403 if token == OPERATOR else 422)
    assert redact(word) == word
    async with client_of(app, **as_(OPERATOR)) as client:
        assert (await client.put(f"{PATH}/wf_a", json=enabling(config={"botToken": OPERATORS}))).status_code == 403
    assert redact(OPERATORS[11:]) == OPERATORS[11:]


@pytest.mark.req("BND-2")
async def test_channel_and_account_may_be_said_in_body_or_query_but_not_two_of_them(admin: httpx.AsyncClient):
    body = {"channel": "http", "enabled": True}
    answered = await admin.put(f"{PATH}/wf_a", json=body, params={"channel": "telegram"})
    assert refused(answered) == (422, "payload_invalid", "channel")
    assert (await put(admin, "wf_a", body, channel="http", account="default"))["account"] == "default"
    assert (await admin.get(f"{PATH}/wf_a", params={"channel": "fax"})).status_code == 422


@pytest.mark.req("BND-2")
async def test_a_new_default_demotes_the_former_one_and_says_so(admin: httpx.AsyncClient):
    await put(admin, "wf_a", enabling())
    answered = (await admin.put(f"{PATH}/wf_b", json=enabling())).json()
    assert answered["data"]["demoted"] == "wf_a"
    assert answered["meta"]["warnings"] == ["wf_a is no longer the default of its account"]
    former = (await admin.get(f"{PATH}/wf_a")).json()["data"]
    assert (former["isDefault"], former["bindingVersion"]) == (False, answered["data"]["bindingVersion"])
    assert (await put(admin, "wf_b", enabling()))["demoted"] is None


@pytest.mark.req("BND-2")
async def test_what_is_switched_off_takes_the_default_from_nobody(admin: httpx.AsyncClient):
    await put(admin, "wf_a", enabling())
    off = await put(admin, "wf_b", enabling(isDefault=True) | {"enabled": False})
    assert (off["status"], off["demoted"]) == ("disabled", None)
    assert (await admin.get(f"{PATH}/wf_a")).json()["data"]["isDefault"] is True


@pytest.mark.req("BND-2")
async def test_a_default_with_routes_stays_it_until_somebody_says_otherwise_and_is_told_what_that_means(
    admin: httpx.AsyncClient,
):
    routes = [{"by": "command", "value": "/help"}]
    await put(admin, "wf_a", enabling(routes=routes, isDefault=True))
    limited = await put(admin, "wf_a", enabling(config={"metadata": {"rateLimitPerMin": 9}}))
    assert (limited["isDefault"], limited["routes"]) == (True, routes)
    routed = (await admin.put(f"{PATH}/wf_a", json=enabling(routes=[{"by": "command", "value": "/h"}]))).json()
    assert routed["data"]["isDefault"] is False
    assert routed["meta"]["warnings"] == ["its account has no default any more: what no route names waits"]


@pytest.mark.req("BND-2", "BND-4")
async def test_whatever_else_is_changed_of_a_former_default_leaves_the_default_where_it_is(admin: httpx.AsyncClient):
    await put(admin, "wf_a", enabling())
    await put(admin, "wf_b", enabling())
    body = enabling(config={"timeoutMessage": "Soon."})
    for change in (body, body | {"isDefault": False}, body | {"isDefault": False, "routes": []}):
        changed = (await admin.put(f"{PATH}/wf_a", json=change)).json()
        assert (changed["data"]["isDefault"], changed["data"]["demoted"]) == (False, None)
        assert changed["meta"]["warnings"] == [
            "it serves nothing: no routes, not the default. isDefault (--default) makes it that"
        ]
    assert (await admin.get(f"{PATH}/wf_b")).json()["data"]["isDefault"] is True
    assert changed["data"]["config"]["timeoutMessage"] == "Soon."


@pytest.mark.req("BND-1", "BND-8")
async def test_a_former_default_without_routes_is_shown_as_what_serves_nothing(admin: httpx.AsyncClient, house: House):
    await put(admin, "wf_a", enabling())
    await put(admin, "wf_b", enabling())
    [listed] = [
        one
        for one in (await admin.get(f"{PATH}/options")).json()["data"]
        if one["workflowId"] == "wf_a" and one["channel"] == "telegram"
    ]
    former = (await admin.get(f"{PATH}/wf_a")).json()["data"]
    for shown in (listed, former):
        assert (shown["isBound"], shown["isDefault"], shown["status"]) == (False, False, "unbound")
    await house.bindings.refresh()
    health = (await admin.get("/api/channels/telegram/health")).json()["data"]
    assert [one["workflowId"] for one in health["bindings"]] == ["wf_b"]
    routed = await put(admin, "wf_a", enabling(routes=[{"by": "command", "value": "/a"}]))
    assert (routed["isBound"], routed["isDefault"]) == (True, False)


@pytest.mark.req("BND-2")
async def test_a_former_default_that_was_off_is_it_again_when_it_is_switched_on(admin: httpx.AsyncClient):
    await put(admin, "wf_a", enabling())
    await put(admin, "wf_b", enabling())
    await put(admin, "wf_a", {"channel": "telegram", "enabled": False})
    again = await put(admin, "wf_a", enabling())
    assert (again["isDefault"], again["demoted"]) == (True, "wf_b")


@pytest.mark.req("BND-2")
@pytest.mark.failure("H5")
async def test_of_two_who_change_what_they_have_read_one_is_told_that_it_has_changed(admin: httpx.AsyncClient):
    made = await put(admin, "wf_a", enabling(bindingVersion=0))
    answers = await asyncio.gather(
        *(
            admin.put(
                f"{PATH}/wf_a",
                json=enabling(bindingVersion=made["bindingVersion"], config={"timeoutMessage": f"Soon {one}."}),
            )
            for one in range(4)
        )
    )
    assert sorted(answered.status_code for answered in answers) == [200, 409, 409, 409]
    assert {refused(one)[1] for one in answers if one.status_code == 409} == {"version_stale"}
    assert (await admin.put(f"{PATH}/wf_b", json=enabling(bindingVersion=3))).status_code == 409


@pytest.mark.req("BND-2", "WFL-1")
async def test_who_binds_what_is_removed_at_the_same_moment_is_told(
    admin: httpx.AsyncClient, house: House, monkeypatch: pytest.MonkeyPatch
):
    made = await admin.post("/api/workflows", json={"name": "short", "stages": [SAY]})
    await admin.post("/api/workflows/wf_short/publish", json={})
    assert made.status_code == 200
    put_definition = house.stores.definitions.put

    async def put_late(definition: Definition) -> None:
        monkeypatch.undo()
        assert (await admin.delete("/api/workflows/wf_short")).status_code == 200
        await put_definition(definition)

    monkeypatch.setattr(house.stores.definitions, "put", put_late)
    answered = (await admin.put(f"{PATH}/wf_short", json=enabling())).json()
    assert answered["meta"]["warnings"] == ["its workflow is not published: messages wait until it is"]


@pytest.mark.req("BND-4")
async def test_a_route_of_another_is_refused(admin: httpx.AsyncClient):
    route = [{"by": "command", "value": "/start"}]
    await put(admin, "wf_a", enabling(routes=route))
    assert refused(await admin.put(f"{PATH}/wf_b", json=enabling(routes=route))) == (409, "route_taken", "routes")


# --- kill switch, refresh ---------------------------------------------------------------------------------


@pytest.mark.req("BND-7", "SEC-4")
async def test_the_kill_switch_says_why_since_when_and_by_whom_and_is_recorded(
    admin: httpx.AsyncClient, client: httpx.AsyncClient
):
    await put(admin, "wf_a", enabling())
    on = {"on": True, "reason": "it raves"}
    shown = (await client.post(f"{PATH}/wf_a/kill-switch", json=on)).json()["data"]["killSwitch"]
    assert (shown["reason"], shown["by"]) == ("it raves", "olga")
    again = (await admin.post(f"{PATH}/wf_a/kill-switch", json=on)).json()["data"]["killSwitch"]
    assert again == shown, "it is on already"
    assert (await admin.post(f"{PATH}/wf_a/kill-switch", json={"on": False})).json()["data"]["killSwitch"] is None
    entries = (await admin.get("/internal/operations")).json()["data"]
    assert [(one["who"], one["action"], one["why"]) for one in entries][:3] == [
        ("admin", "kill switch off", "wf_a: "),
        ("olga", "kill switch on", "wf_a: it raves"),
        ("admin", "bind", ""),
    ]
    assert refused(await admin.post(f"{PATH}/wf_b/kill-switch", json=on))[:2] == (409, "binding_missing")
    assert refused(await admin.post(f"{PATH}/wf_a/kill-switch", json={"reason": "x"})) == (
        422, "payload_invalid", "on"
    )  # fmt: skip


@pytest.mark.req("BND-2", "BND-5")
async def test_refreshing_makes_this_process_agree_at_once(admin: httpx.AsyncClient, house: House):
    await put(admin, "wf_a", enabling())
    assert not house.bindings.is_asked_for("telegram", BOT)
    assert (await admin.post(f"{PATH}/wf_a/refresh")).json()["data"]["status"] == "bound"
    assert house.bindings.is_asked_for("telegram", BOT)


# --- who may, and secrets ---------------------------------------------------------------------------------


@pytest.mark.req("SEC-1")
async def test_viewers_look_operators_bind_and_only_admins_bring_tokens(
    app: App, admin: httpx.AsyncClient, client: httpx.AsyncClient, nobody: httpx.AsyncClient
):
    async with client_of(app, **as_(VIEWER)) as viewer:
        assert (await viewer.get(f"{PATH}/options")).status_code == 200
        assert (await viewer.get(f"{PATH}/wf_a")).status_code == 200
        for method, path in (("PUT", "wf_a"), ("POST", "wf_a/refresh"), ("POST", "wf_a/kill-switch")):
            assert (await viewer.request(method, f"{PATH}/{path}", json={})).status_code == 403
    await put(client, "wf_a", enabling(config={"timeoutMessage": "Soon."}))
    for config in ({"botToken": TOKEN}, {"webhookUrl": "https://elsewhere.example"}):
        assert (await client.put(f"{PATH}/wf_a", json=enabling(config=config))).status_code == 403
    assert (await nobody.get(f"{PATH}/options")).status_code == 401


@pytest.mark.req("SEC-2")
async def test_a_token_is_in_no_answer_no_log_and_not_readable_on_disk(admin: httpx.AsyncClient, house: House):
    secret = TOKEN.partition(":")[2]
    with structlog.testing.capture_logs(processors=[structlog.stdlib.add_log_level]) as log:
        answers = [
            await admin.put(f"{PATH}/wf_a", json=enabling(config={"botToken": TOKEN})),
            await admin.put(f"{PATH}/wf_a", json=enabling(config={"botToken": TOKEN, "usePolling": "x"})),
            await admin.get(f"{PATH}/wf_a", params={"account": OTHER}),
            await admin.get(f"{PATH}/options"),
            await admin.get("/internal/operations"),
        ]
    assert [answered.status_code for answered in answers] == [200, 422, 200, 200, 200]
    assert not any(secret in answered.text for answered in answers)
    assert secret not in str(log)
    with closing(sqlite3.connect(house.stores.directory.database)) as database:
        kept = [body for (body,) in database.execute("SELECT body FROM definitions WHERE kind = 'bindings'")]
    assert any(OTHER.encode() in body for body in kept)
    assert not any(secret.encode() in body for body in kept)
    for path in house.stores.directory.path.rglob("*"):
        assert not path.is_file() or secret.encode() not in path.read_bytes(), path
    definition = await house.stores.definitions.version(Kind.BINDINGS, f"telegram:{OTHER}")
    assert definition is not None and definition.body is not None
    [binding] = msgspec.json.decode(definition.body)
    assert house.seal.open(binding["own"]["bot_token"]) == TOKEN


@pytest.mark.req("SEC-2", "BND-2")
async def test_the_same_token_again_is_no_change(admin: httpx.AsyncClient):
    first = await put(admin, "wf_a", enabling(config={"botToken": TOKEN}))
    assert (await put(admin, "wf_a", enabling(config={"botToken": TOKEN})))["bindingVersion"] == first["bindingVersion"]
    assert (await put(admin, "wf_a", enabling(account=OTHER)))["bindingVersion"] == first["bindingVersion"]
