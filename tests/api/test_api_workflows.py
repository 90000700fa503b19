"""Workflows and prompts over HTTP: edited, published, compared, taken back; strictly read, and who may what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from api_house import ADMIN, OPERATOR, VIEWER, Work, as_, client_of, echo, opened

from rise.api.app import App, build_app
from rise.definitions.records import BindingRecord
from rise.runtime.assembly.house import House
from rise.runtime.in_process import InProcessWorker
from rise.telemetry import redact
from rise.testing.model_server import ModelStandIn, Say
from rise.testing.waiting import eventually

WORKFLOWS = "/api/workflows"
PROMPTS = "/api/prompts"
SAY = {"name": "say", "kind": "reply", "template": "hi {{ text }}"}
GREETER = {"name": "greeter", "stages": [SAY]}
GREET = {"name": "greet", "template": "Greet {{ text }}, {{ tone }}", "placeholders": ["tone"]}


async def created(client: httpx.AsyncClient, **fields: Any) -> str:
    response = await client.post(WORKFLOWS, json=GREETER | fields)
    assert response.status_code == 200, response.text
    return str(response.json()["data"]["workflowId"])


async def data(response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    return response.json()["data"]


def refused(response: httpx.Response) -> tuple[int, str, str | None]:
    error = response.json()["error"]
    return response.status_code, error["code"], error.get("field")


@pytest.mark.req("WFL-1")
async def test_a_workflow_is_made_published_edited_compared_and_taken_back(client: httpx.AsyncClient):
    made = await data(await client.post(WORKFLOWS, json=GREETER))
    path = f"{WORKFLOWS}/{made['workflowId']}"
    assert {name: made[name] for name in ("name", "kind", "stages", "version", "publishedVersion", "status")} == {
        "name": "greeter", "kind": "stages", "stages": [SAY], "version": 1, "publishedVersion": None, "status": "draft"
    }  # fmt: skip
    published = await data(await client.post(f"{path}/publish", json={"comment": "first"}))
    assert (published["status"], published["publishedVersion"], published["isChannelEnabled"]) == ("published", 1, True)
    other = [SAY | {"template": "hello"}]
    edited = await data(await client.put(path, json={"stages": other, "version": 1}))
    assert (edited["version"], edited["publishedVersion"], edited["hasUnpublishedChanges"]) == (2, 1, True)
    assert (edited["updatedBy"], edited["stages"]) == ("olga", other)
    stale = await client.put(path, json={"name": "late", "version": 1})
    assert refused(stale) == (409, "version_stale", None)
    change = [{"path": "stages.say.template", "change": "changed", "old": "hi {{ text }}", "new": "hello"}]
    assert await data(await client.get(f"{path}/diff")) == change
    await client.post(f"{path}/publish", json={"version": 2})
    assert await data(await client.get(f"{path}/diff", params={"from": 1, "to": 2})) == change
    back = await data(await client.post(f"{path}/rollback", json={"version": 1}))
    assert (back["publishedVersion"], back["stages"]) == (3, [SAY])
    history = await data(await client.get(f"{path}/history"))
    assert [(one["version"], one["comment"], one["updatedBy"], one["isCurrent"]) for one in history] == [
        (3, "back to version 1", "olga", True), (2, "", "olga", False), (1, "first", "olga", False)
    ]  # fmt: skip
    assert await data(await client.get(path)) == back
    assert await data(await client.get(WORKFLOWS)) == [back]


@pytest.mark.req("WFL-1", "ENV-5")
async def test_what_is_published_runs_and_what_is_not_is_404(client: httpx.AsyncClient, house: House, work: Work):
    await work(echo)
    workflow_id = await created(client)
    ask = {"workflowId": workflow_id, "userText": "Ann", "waitForResult": True}
    assert refused(await client.post(f"{WORKFLOWS}/apply", json=ask)) == (404, "workflow_unknown", "workflowId")
    await client.post(f"{WORKFLOWS}/{workflow_id}/publish", json={})
    ran = await data(await client.post(f"{WORKFLOWS}/apply", json=ask))
    assert (ran["status"], ran["result"]["text"]) == ("completed", "hi Ann")
    assert "stages" not in ran["result"]
    task = await data(await client.get(f"{WORKFLOWS}/tasks/{ran['taskId']}"))
    assert (task["workflowRun"], task["workflowVersion"]) == (workflow_id, 1)
    assert [(one["name"], one["kind"], one["outcome"]) for one in task["stages"]] == [("say", "reply", "done")]
    await client.put(f"{WORKFLOWS}/{workflow_id}", json={"isChannelEnabled": False, "comment": "spam"})
    await house.bindings.refresh()
    assert refused(await client.post(f"{WORKFLOWS}/apply", json=ask))[0] == 404


@pytest.mark.req("WFL-1", "SUS-2")
async def test_a_message_that_waits_in_a_channel_is_answered_when_its_workflow_is_published(
    client: httpx.AsyncClient, house: House, work: Work
):
    workflow_id = await created(client)
    binding = BindingRecord(channel="http", account="default", workflow_id=workflow_id)
    await house.editor.bind(binding, by="ann")
    await work(echo)
    sent = await data(await client.post(f"{WORKFLOWS}/apply", json={"userText": "Ann", "metadata": {"chat_id": 1}}))

    async def task() -> Any:
        return await data(await client.get(f"{WORKFLOWS}/tasks/{sent['taskId']}"))

    await eventually(lambda: _is(task, reason="workflow_pending"))
    listed = await data(await client.get("/internal/tasks/suspended"))
    assert [(one["taskId"], one["reason"]) for one in listed] == [(sent["taskId"], "workflow_pending")]
    await client.post(f"{WORKFLOWS}/{workflow_id}/publish", json={"comment": "go"})
    await house.bindings.refresh()
    # Whoever writes next brings along what waits; without, the supervisor does.
    await client.post(f"{WORKFLOWS}/apply", json={"userText": "Bob", "metadata": {"chat_id": 1}})
    await eventually(lambda: _is(task, status="completed"))
    assert (await task())["result"]["text"] == "hi Ann"


async def _is(task: Any, **fields: str) -> bool:
    found = await task()
    return all(found[name] == value for name, value in fields.items())


@pytest.mark.req("WFL-1", "WFL-3")
async def test_a_workflow_in_code_is_listed_beside_the_others_and_can_only_be_switched(
    client: httpx.AsyncClient, house: House, work: Work
):
    await work(echo)
    [listed] = await data(await client.get(WORKFLOWS))
    assert (listed["workflowId"], listed["kind"], listed["stages"]) == ("wf_bot", "code", None)
    assert (listed["status"], listed["publishedVersion"]) == ("published", 1)
    assert listed["boundTo"] == ["http:default", "telegram:7", "webchat:default"]
    path = f"{WORKFLOWS}/wf_bot"
    assert refused(await client.put(path, json={"name": "x"})) == (409, "state_conflict", None)
    assert refused(await client.post(f"{path}/publish", json={})) == (409, "state_conflict", None)
    assert refused(await client.post(WORKFLOWS, json=GREETER | {"name": "bot"})) == (409, "state_conflict", "name")
    off = await data(await client.put(path, json={"isChannelEnabled": False}))
    assert (off["isChannelEnabled"], off["version"]) == (False, 2)


@pytest.mark.req("WFL-1", "SEC-1")
async def test_a_viewer_looks_an_operator_changes_an_admin_removes(app: App, client: httpx.AsyncClient, house: House):
    workflow_id = await created(client)
    path = f"{WORKFLOWS}/{workflow_id}"
    async with client_of(app, **as_(VIEWER)) as viewer, client_of(app, **as_(ADMIN)) as admin:
        assert (await viewer.get(path)).status_code == 200
        assert (await viewer.get(f"{path}/history")).status_code == 200
        for changing in (viewer.put(path, json={}), viewer.post(f"{path}/publish", json={}), client.delete(path)):
            assert refused(await changing)[:2] == (403, "role_insufficient")
        await house.editor.bind(BindingRecord(channel="http", account="default", workflow_id=workflow_id), by="ann")
        bound = await admin.delete(path)
        assert refused(bound)[:2] == (409, "state_conflict")
        assert "http:default" in bound.json()["error"]["message"]
        await house.editor.unbind("http", "default", workflow_id, by="ann")
        assert refused(await admin.delete(path, params={"version": 7}))[:2] == (409, "version_stale")
        assert await data(await admin.delete(path)) == {"workflowId": workflow_id, "isRemoved": True}
        assert refused(await viewer.get(path)) == (404, "workflow_unknown", "workflowId")


@pytest.mark.req("WFL-1", "ENV-4")
@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"stages": [SAY]}, "name"),
        ({"name": "a"}, "stages"),
        ({"name": "", "stages": [SAY]}, "name"),
        ({"name": 7, "stages": [SAY]}, "name"),
        ({"name": "x" * 101, "stages": [SAY]}, "name"),
        ({"name": "a", "stages": []}, "stages"),
        ({"name": "a", "stages": {}}, "stages"),
        ({"name": "a", "stages": [SAY, {"name": "x", "kind": "reply"}]}, "stages[1].template"),
        ({"name": "a", "stages": [SAY | {"template": "{{ nope }}"}]}, "stages[0].template"),
        ({"name": "a", "stages": [SAY], "id": 1}, "id"),
    ],
)
async def test_what_is_wrong_in_a_workflow_is_422_with_its_field(
    client: httpx.AsyncClient, body: dict[str, Any], field: str
):
    assert refused(await client.post(WORKFLOWS, json=body)) == (422, "payload_invalid", field)
    assert await data(await client.get(WORKFLOWS)) == []


@pytest.mark.req("WFL-1", "ENV-4")
async def test_what_is_wrong_in_a_change_is_422_or_404_with_its_field(client: httpx.AsyncClient):
    workflow_id = await created(client)
    path = f"{WORKFLOWS}/{workflow_id}"
    for ask, expected in [
        (client.put(path, json={}), (422, "payload_invalid", "stages")),
        (client.put(path, json={"version": "1", "name": "a"}), (422, "payload_invalid", "version")),
        (client.put(path, json={"isChannelEnabled": 1}), (422, "payload_invalid", "isChannelEnabled")),
        (client.put(path, json={"name": "a", "isChannelEnabled": True}), (409, "state_conflict", "isChannelEnabled")),
        (client.post(f"{path}/publish", json={"comment": "x" * 501}), (422, "payload_invalid", "comment")),
        (client.post(f"{path}/rollback", json={}), (422, "payload_invalid", "version")),
        (client.post(f"{path}/rollback", json={"version": 1}), (404, "version_unknown", "version")),
        (client.get(f"{path}/diff"), (404, "version_unknown", "from")),
        (client.get(f"{path}/diff", params={"from": "x"}), (422, "payload_invalid", "from")),
        (client.get(f"{path}/history", params={"limit": 0}), (422, "payload_invalid", "limit")),
        (client.get(f"{WORKFLOWS}/wf_nobody"), (404, "workflow_unknown", "workflowId")),
        (
            client.put(f"{WORKFLOWS}/wf_nobody", json={"name": "a", "version": 3}),
            (404, "workflow_unknown", "workflowId"),
        ),
    ]:
        assert refused(await ask) == expected
    kept = await data(await client.get(path))
    assert (kept["version"], kept["name"]) == (1, "greeter"), "what is refused in part is refused whole"


@pytest.mark.req("WFL-1")
async def test_prompts_are_kept_with_their_versions_and_checked_placeholders(app: App, client: httpx.AsyncClient):
    made = await data(await client.post(PROMPTS, json=GREET | {"temperature": 0.5, "maxTokens": 100, "model": "small"}))
    assert (made["promptId"], made["version"], made["placeholders"], made["usedBy"]) == ("pr_greet", 1, ["tone"], [])
    path = f"{PROMPTS}/pr_greet"
    wrong = await client.put(path, json={"template": "{{ twon }}"})
    assert refused(wrong) == (422, "payload_invalid", "template")
    assert "twon" in wrong.json()["error"]["message"]
    edited = await client.put(path, json={"template": "Greet.", "temperature": None, "version": 1, "comment": "short"})
    assert edited.json()["meta"]["warnings"] == ["placeholder_unused: tone"]
    assert ((await data(edited))["temperature"], (await data(edited))["model"]) == (None, "small")
    assert refused(await client.put(path, json={"version": 1, "name": "x"}))[:2] == (409, "version_stale")
    history = await data(await client.get(f"{path}/history"))
    assert [(one["version"], one["comment"], one["template"]) for one in history] == [
        (2, "short", "Greet."), (1, "", GREET["template"])
    ]  # fmt: skip
    workflow_id = await created(client, stages=[{"name": "ask", "kind": "prompt", "promptId": "pr_greet"}])
    missing = await client.post(f"{WORKFLOWS}/{workflow_id}/publish", json={})
    assert refused(missing) == (422, "payload_invalid", "stages[0].values")
    await client.put(path, json={"placeholders": []})
    await data(await client.post(f"{WORKFLOWS}/{workflow_id}/publish", json={}))
    assert (await data(await client.get(PROMPTS)))[0]["usedBy"] == [workflow_id]
    async with client_of(app, **as_(ADMIN)) as admin:
        used = await admin.delete(path)
        assert refused(used)[:2] == (409, "state_conflict")
        assert workflow_id in used.json()["error"]["message"]
        await data(await admin.post(PROMPTS, json=GREET | {"name": "spare"}))
        assert await data(await admin.delete(f"{PROMPTS}/pr_spare")) == {"promptId": "pr_spare", "isRemoved": True}


@pytest.mark.req("WFL-1", "WFL-2")
async def test_a_published_workflow_asks_the_model_with_the_prompt_as_it_stands(tmp_path: Path):
    async with ModelStandIn() as model, opened(tmp_path / "data", llm_base_url=model.url, llm_model="small") as house:
        worker = InProcessWorker(house, {})
        await worker.start()
        app = build_app(house)
        async with client_of(app, **as_(OPERATOR)) as client:
            await data(await client.post(PROMPTS, json=GREET | {"system": "Be brief.", "temperature": 0.5}))
            ask = {"name": "ask", "kind": "prompt", "promptId": "pr_greet", "values": {"tone": "warm, {{ channel }}"}}
            say = {"name": "say", "kind": "reply", "template": "{{ stages.ask }}!"}
            workflow_id = await created(client, stages=[ask, say])
            await data(await client.post(f"{WORKFLOWS}/{workflow_id}/publish", json={}))
            model.then(Say("Hello Ann"), Say("Hello again"))
            for template in (None, "Again, {{ tone }}"):
                if template is not None:
                    await data(await client.put(f"{PROMPTS}/pr_greet", json={"template": template}))
                await house.bindings.refresh()
                body = {"workflowId": workflow_id, "userText": "Ann", "waitForResult": True}
                ran = await data(await client.post(f"{WORKFLOWS}/apply", json=body))
            assert ran["result"]["text"] == "Hello again!"
            assert model.asked == ["Greet Ann, warm, http", "Again, warm, http"]
        app.close()
        await worker.stop()


@pytest.mark.req("WFL-1", "ENV-4")
@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"name": None}, "name"),
        ({"template": None}, "template"),
        ({"template": 7}, "template"),
        ({"template": "{{ tone"}, "template"),
        ({"template": "{{ tone }}" + "x" * 40_000}, "template"),
        ({"system": "{{ other }}"}, "system"),
        ({"placeholders": "tone"}, "placeholders"),
        ({"placeholders": ["tone", "a b"]}, "placeholders[1]"),
        ({"placeholders": ["tone", "text"]}, "placeholders"),
        ({"temperature": 2.1}, "temperature"),
        ({"maxTokens": 1.5}, "maxTokens"),
        ({"model": ""}, "model"),
        ({"id": 1}, "id"),
    ],
)
async def test_what_is_wrong_in_a_prompt_is_422_with_its_field(
    client: httpx.AsyncClient, fields: dict[str, Any], field: str
):
    assert refused(await client.post(PROMPTS, json=GREET | fields)) == (422, "payload_invalid", field)
    assert await data(await client.get(PROMPTS)) == []


@pytest.mark.req("WFL-1", "CAP-3")
@pytest.mark.failure("C5")
async def test_while_the_store_is_away_it_is_503_with_its_capability(client: httpx.AsyncClient, house: House):
    await house.stores.close()
    for ask in (
        client.get(WORKFLOWS),
        client.get(PROMPTS),
        client.get(f"{WORKFLOWS}/wf_a"),
        client.post(WORKFLOWS, json=GREETER),
        client.post(PROMPTS, json=GREET),
    ):
        response = await ask
        assert (response.status_code, response.json()["capability"]) == (503, "disk")
        assert int(response.headers["Retry-After"]) > 0
    assert (await client.get("/healthz")).status_code == 200


@pytest.mark.req("SEC-4")
async def test_what_people_changed_is_in_the_audit_log(client: httpx.AsyncClient):
    workflow_id = await created(client)
    await client.post(f"{WORKFLOWS}/{workflow_id}/publish", json={"comment": "go"})
    await client.put(f"{WORKFLOWS}/{workflow_id}", json={"isChannelEnabled": False, "comment": "spam"})
    await client.post(PROMPTS, json=GREET)
    log = await data(await client.get("/internal/operations"))
    assert [(one["who"], one["action"], one["target"], one["why"]) for one in log][:4] == [
        ("olga", "create", "pr_greet", ""),
        ("olga", "disable", workflow_id, "spam"),
        ("olga", "publish", workflow_id, "go"),
        ("olga", "create", workflow_id, ""),
    ]


@pytest.mark.req("SEC-2")
async def test_a_viewer_is_shown_no_key_that_stands_in_a_header(app: App, client: httpx.AsyncClient):
    look = {"name": "look", "kind": "http", "url": "https://api.example", "headers": {"Authorization": "Bearer key-1"}}
    path = f"{WORKFLOWS}/{await created(client, stages=[look])}"
    await client.post(f"{path}/publish", json={})
    for headers in ({"Authorization": "Bearer key-2"}, {"X-Key": "key-3"}, None):
        await client.put(path, json={"stages": [look | {"headers": headers}, look | {"name": "more"}]})
        await client.post(f"{path}/publish", json={})
    assert (await data(await client.get(f"{path}/diff", params={"to": 2})))[0]["new"] == {
        "Authorization": "Bearer key-2"
    }
    async with client_of(app, **as_(VIEWER)) as viewer:
        looked = [await viewer.get(path), await viewer.get(WORKFLOWS)]
        for old, new in ((1, 2), (2, 3), (3, 4), (4, 1)):
            looked.append(await viewer.get(f"{path}/diff", params={"from": old, "to": new}))
    assert all(one.status_code == 200 and "key-" not in one.text for one in looked)
    assert looked[0].json()["data"]["stages"][1] == look | {"name": "more", "headers": {"Authorization": "***"}}


@pytest.mark.req("SEC-2")
async def test_a_key_that_stands_in_a_header_is_warned_of(client: httpx.AsyncClient):
    look = {"name": "look", "kind": "http", "url": "https://api.example", "headers": {"Authorization": "Bearer key"}}
    made = (await client.post(WORKFLOWS, json={"name": "shop", "stages": [look]})).json()
    [warning] = made["meta"]["warnings"]
    assert warning.startswith("stages[0].headers.Authorization stands in plain text")
    assert "{{ secrets.NAME }}" in warning
    path = f"{WORKFLOWS}/{made['data']['workflowId']}"
    assert (await client.post(f"{path}/publish", json={})).json()["meta"]["warnings"] == [warning]
    mended = [look | {"headers": {"Authorization": "Bearer {{ metadata.key }}"}}]
    assert (await client.put(path, json={"stages": mended})).json()["meta"]["warnings"] == []
    assert (await client.put(path, json={"name": "shop 2"})).json()["meta"]["warnings"] == []


@pytest.mark.req("SEC-1", "SEC-2")
async def test_secrets_are_an_admins_and_never_shown(client: httpx.AsyncClient):
    secret, admin = {"value": "key-of-the-shop-4711"}, as_(ADMIN)
    assert (await client.put("/api/secrets/SHOP", json=secret)).status_code == 403
    assert (await client.get("/api/secrets")).status_code == 403
    kept = await client.put("/api/secrets/SHOP", json=secret, headers=admin)
    listed = await client.get("/api/secrets", headers=admin)
    assert await data(listed) == [await data(kept)]
    shown = await data(kept)
    assert (shown["name"], shown["usedBy"], shown["version"]) == ("SHOP", [], 1)
    short = await client.put("/api/secrets/SHOP", json={"value": "queued"}, headers=admin)
    assert refused(short) == (422, "payload_invalid", "value")
    assert redact("queued: key-of-the-shop-4711") == "queued: ***", "what is refused is none, and hides no word"
    removed = await client.delete("/api/secrets/SHOP", headers=admin)
    assert await data(removed) == {"name": "SHOP", "isRemoved": True}
    gone = await client.delete("/api/secrets/SHOP", headers=admin)
    assert refused(gone) == (404, "secret_unknown", "name")
    assert not [one for one in (kept, listed, short, removed) if "4711" in one.text]


@pytest.mark.req("SEC-2", "WFL-2")
async def test_a_stage_is_run_with_the_secret_that_it_names(tmp_path: Path):
    """Through the whole house, over a site that says back what it is told."""
    key = "key-of-the-shop-4711"
    async with ModelStandIn() as site, opened(tmp_path / "data", http_stage_allow="127.0.0.1") as house:
        await house.editor.bind(BindingRecord(channel="http", account="default", workflow_id="wf_shop"), by="ann")
        worker, app = InProcessWorker(house, {}), build_app(house)
        async with client_of(app, **as_(ADMIN)) as admin:
            await data(await admin.put("/api/secrets/SHOP", json={"value": key}))
            said = {"messages": [{"role": "user", "content": "{{ secrets.SHOP }}"}]}
            look = {"name": "look", "kind": "http", "url": f"{site.url}/chat/completions", "method": "POST",
                    "headers": {"Authorization": "Bearer {{ secrets.SHOP }}"}, "json": said}  # fmt: skip
            await data(await admin.post(WORKFLOWS, json={"name": "shop", "stages": [look]}))
            await data(await admin.post(f"{WORKFLOWS}/wf_shop/publish", json={}))
            await house.bindings.refresh()
            await worker.start()
            ran = await admin.post(f"{WORKFLOWS}/apply", json={"userText": "?", "waitForResult": True})
            assert (await data(ran))["status"] == "completed", ran.text
            told = [await admin.get(path) for path in (WORKFLOWS, f"{WORKFLOWS}/wf_shop/history", "/api/secrets")]
            await worker.stop()
        app.close()
    assert (site.calls[0].authorization, site.asked) == (f"Bearer {key}", [key])
    assert '"content":"***"' in ran.text
    assert not [one for one in (ran, *told) if key in one.text]
