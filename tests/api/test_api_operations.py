"""What operators ask: health, what waits, letting go and dropping, and who may."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from api_house import ADMIN, OPERATOR, VIEWER, Work, as_, client_of, echo, opened

import rise
from rise.api.app import App, build_app
from rise.capabilities import CapabilityStatus
from rise.definitions.records import CODE, BindingRecord
from rise.envelope import Status, TaskId
from rise.errors import (
    CapabilityClosed,
    MongoMisconfigured,
    MongoUnavailable,
    RabbitUnavailable,
    RedisUnavailable,
    StateConflict,
    StoreCorrupt,
    StoreUnavailable,
    TaskUnknown,
    Unavailable,
)
from rise.queue.port import Selection
from rise.runtime.alerts import Alerts
from rise.runtime.assembly.house import House
from rise.runtime.in_process import InProcessWorker
from rise.runtime.operations import Operations
from rise.runtime.overload import Load, Overload, OverloadLimits
from rise.runtime.probes import register_probes
from rise.testing.clock import ManualClock
from rise.testing.waiting import eventually
from rise.workflows.definition import WorkflowDefinition

APPLY = "/api/workflows/apply"
SUSPENDED = "/internal/tasks/suspended"


async def failing(turn: rise.Turn) -> None:
    raise ValueError("on purpose")


async def suspend_some(client: httpx.AsyncClient, count: int) -> list[str]:
    """Tasks that failed for good. The house's worker runs `failing`."""
    ids = []
    for n in range(count):
        sent = await client.post(APPLY, json={"userText": str(n), "retryMax": 0, "metadata": {"chat_id": str(n)}})
        ids.append(sent.json()["data"]["taskId"])

    async def all_there() -> bool:
        return len((await client.get(SUSPENDED)).json()["data"]) == count

    await eventually(all_there)
    return sorted(ids)


@pytest.mark.req("CAP-6")
async def test_health_answers_200_and_names_capabilities(nobody: httpx.AsyncClient, house: House) -> None:
    body = (await nobody.get("/healthz")).json()
    assert (body["status"], body["router"]) == ("ok", "behavior")
    assert set(body["capabilities"]) == {"disk"}
    assert set(body["capabilities"]["disk"]) == {"status", "checked_at", "detail"}
    house.capabilities.set("disk", CapabilityStatus.UNAVAILABLE, "gone")
    down = await nobody.get("/healthz")
    assert (down.status_code, down.json()["status"]) == (200, "unavailable")


@pytest.mark.req("CAP-6", "CPY-2")
@pytest.mark.failure("C5")
async def test_the_write_that_fails_changes_what_health_says_and_so_does_the_next_that_succeeds(
    client: httpx.AsyncClient, house: House
) -> None:
    async def disk() -> dict[str, str]:
        return dict((await client.get("/healthz")).json()["capabilities"]["disk"])

    await house.stores.database.write(lambda connection: connection.execute("PRAGMA max_page_count=1").fetchall())
    refused = await client.post(APPLY, json={"userText": "x" * 500_000}, headers={"Idempotency-Key": "k"})
    assert refused.status_code == 503
    down = await disk()
    assert (down["status"], down["detail"]) == ("unavailable", refused.json()["detail"])
    assert (await client.get("/healthz/startup")).status_code == 503
    assert (await client.post(APPLY, json={"userText": "x"})).status_code == 200
    assert (await disk())["status"] == "available"
    assert (await client.get("/healthz/startup")).status_code == 200


@pytest.mark.req("CAP-6")
async def test_readiness_asks_the_store_and_startup_only_the_registry(nobody: httpx.AsyncClient, house: House) -> None:
    assert (await nobody.get("/healthz/readiness")).status_code == 200
    assert (await nobody.get("/healthz/startup")).status_code == 200
    await house.stores.close()
    assert (await nobody.get("/healthz/startup")).status_code == 200
    down = await nobody.get("/healthz/readiness")
    assert down.status_code == 503
    assert int(down.headers["Retry-After"]) > 0
    # and from then on they agree
    assert (await nobody.get("/healthz/startup")).status_code == 503
    assert (await nobody.get("/healthz")).json()["capabilities"]["disk"]["status"] == "unavailable"


@pytest.mark.req("CAP-6")
async def test_degraded_work_never_makes_readiness_fail(nobody: httpx.AsyncClient, house: House) -> None:
    house.capabilities.set("pipeline", CapabilityStatus.DEGRADED, "not moving")
    assert (await nobody.get("/healthz/readiness")).status_code == 200
    assert (await nobody.get("/healthz")).json()["status"] == "degraded"


@pytest.mark.req("CAP-3")
async def test_a_closed_capability_is_said_in_its_own_form(app: App, nobody: httpx.AsyncClient) -> None:
    @app._behind.get("/api/needs-mongo")
    async def needs() -> None:
        raise CapabilityClosed("mongo", "unavailable", "one line")

    response = await nobody.get("/api/needs-mongo")
    assert (response.status_code, response.headers["Retry-After"]) == (503, "30")
    body = response.json()
    assert body.pop("meta").keys() == {"requestId", "status", "warnings"}
    assert body == {
        "data": None,
        "capability": "mongo",
        "status": "unavailable",
        "detail": "one line",
        "error": {"code": "capability_unavailable"},
    }


@pytest.mark.req("CAP-3")
@pytest.mark.parametrize(
    ("error", "capability", "seconds"),
    [
        (MongoUnavailable("one line"), "mongo", "30"),
        (MongoUnavailable("one line", retry_after_seconds=7), "mongo", "7"),
        (MongoMisconfigured("one line"), "mongo", "30"),
        (StoreUnavailable("one line"), "disk", "5"),
        (StoreCorrupt("one line"), "disk", "60"),
        (RedisUnavailable("one line"), "redis", "30"),
        (RabbitUnavailable("one line"), "rabbitmq", "30"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
async def test_a_store_that_does_not_answer_is_said_as_a_capability_that_is_closed(
    app: App, nobody: httpx.AsyncClient, error: Unavailable, capability: str, seconds: str
) -> None:
    """Whether a request is the first to find it away, or the probe was before it."""

    @app._behind.get("/api/needs-a-store")
    async def needs() -> None:
        raise error

    response = await nobody.get("/api/needs-a-store")
    assert (response.status_code, response.headers["Retry-After"]) == (503, seconds)
    body = response.json()
    meta = body.pop("meta")
    assert (meta["status"], meta["warnings"]) == ("service_unavailable", [])
    assert body == {
        "data": None,
        "capability": capability,
        "status": "unavailable",
        "detail": "one line",
        "error": {"code": "capability_unavailable"},
    }


async def test_an_error_nobody_expected_is_500_with_a_request_id_and_no_cause(
    app: App, nobody: httpx.AsyncClient
) -> None:
    @app._behind.get("/api/broken")
    async def broken() -> None:
        raise ZeroDivisionError("the secret cause")

    response = await nobody.get("/api/broken")
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal")
    assert "secret cause" not in response.text
    assert response.json()["meta"]["requestId"] == response.headers["X-Request-Id"]


@pytest.mark.req("SUS-1", "SUS-3")
async def test_suspended_work_is_listed_with_reason_channel_and_envelope(
    app: App, client: httpx.AsyncClient, work: Work
) -> None:
    await work(failing)
    ids = await suspend_some(client, 3)
    rows = (await client.get(SUSPENDED)).json()["data"]
    assert [row["taskId"] for row in rows] == ids
    assert {row["reason"] for row in rows} == {"retries_exhausted"}
    assert {row["payload"]["channel"] for row in rows} == {"http"}
    assert "raw" not in rows[0]["payload"]["channelPayload"]
    whole = (await client.get(SUSPENDED, params={"raw": 1})).json()["data"]
    assert whole[0]["payload"]["channelPayload"]["raw"]["retryMax"] == 0
    async with client_of(app, **as_(VIEWER)) as viewer:
        assert (await viewer.get(SUSPENDED)).json()["data"] == rows
        refused = await viewer.get(SUSPENDED, params={"raw": 1})
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "role_insufficient")
    assert "ValueError" in rows[0]["error"]


@pytest.mark.req("SUS-1")
async def test_the_list_is_narrowed_and_paged(client: httpx.AsyncClient, work: Work) -> None:
    await work(failing)
    ids = await suspend_some(client, 3)
    first = (await client.get(SUSPENDED, params={"limit": 2})).json()
    assert [row["taskId"] for row in first["data"]] == ids[:2]
    rest = (await client.get(SUSPENDED, params={"limit": 2, "after": first["meta"]["next"]})).json()
    assert [row["taskId"] for row in rest["data"]] == ids[2:]
    assert rest["meta"]["next"] is None
    assert (await client.get(SUSPENDED, params={"reason": "poison"})).json()["data"] == []
    assert (await client.get(SUSPENDED, params={"channel": "telegram"})).json()["data"] == []


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"reason": "nonsense"}, "reason"),
        ({"limit": "0"}, "limit"),
        ({"limit": "9" * 5000}, "limit"),
        ({"limit": "x"}, "limit"),
        ({"raw": "perhaps"}, "raw"),
    ],
)
async def test_a_bad_parameter_is_told_its_name(client: httpx.AsyncClient, params: dict[str, str], field: str) -> None:
    response = await client.get(SUSPENDED, params=params)
    assert (response.status_code, response.json()["error"]["field"]) == (422, field)


@pytest.mark.req("SUS-2")
async def test_one_is_resumed_and_recorded_with_who_and_why(client: httpx.AsyncClient, work: Work) -> None:
    fail = [True]

    async def fragile(turn: rise.Turn) -> None:
        if fail[0]:
            raise ValueError
        await turn.reply("mended")

    await work(fragile)
    [task_id] = await suspend_some(client, 1)
    fail[0] = False
    resumed = await client.post(f"/internal/tasks/{task_id}/resume", params={"why": "mended it"})
    assert resumed.status_code == 200

    async def completed() -> bool:
        return (await client.get(f"/api/workflows/tasks/{task_id}")).json()["data"]["status"] == "completed"

    await eventually(completed)
    [entry] = [
        entry for entry in (await client.get("/internal/operations")).json()["data"] if entry["action"] == "resume"
    ]
    assert (entry["who"], entry["target"], entry["why"]) == ("olga", task_id, "mended it")


@pytest.mark.req("SUS-2")
@pytest.mark.failure("H2")
async def test_resuming_what_is_not_suspended_is_a_conflict_or_unknown(client: httpx.AsyncClient, work: Work) -> None:
    pending = (await client.post(APPLY, json={"userText": "x"})).json()["data"]["taskId"]
    response = await client.post(f"/internal/tasks/{pending}/resume")
    assert (response.status_code, response.json()["error"]["code"]) == (409, "state_conflict")
    assert (await client.post("/internal/tasks/t_nobody/resume")).status_code == 404
    await work(echo)
    done = await client.post(APPLY, json={"userText": "x", "waitForResult": True})
    ended = await client.post(f"/internal/tasks/{done.json()['data']['taskId']}/resume")
    assert (ended.status_code, ended.json()["error"]["code"]) == (409, "state_conflict")


@pytest.mark.req("SUS-2")
async def test_many_are_resumed_by_reason_after_a_look_at_which(client: httpx.AsyncClient, work: Work) -> None:
    await work(failing)
    ids = await suspend_some(client, 3)
    ask = {"reason": "retries_exhausted", "channel": "http"}
    look = await client.post("/internal/tasks/resume", json=ask | {"dryRun": True})
    would = look.json()["data"]
    assert (would["count"], sorted(would["taskIds"]), would["dryRun"]) == (3, ids, True)
    assert len((await client.get(SUSPENDED)).json()["data"]) == 3
    done = await client.post("/internal/tasks/resume", json=ask | {"why": "again"})
    assert sorted(done.json()["data"]["taskIds"]) == ids
    [entry] = [
        entry for entry in (await client.get("/internal/operations")).json()["data"] if entry["action"] == "resume"
    ]
    assert entry["target"] == "suspended reason=retries_exhausted channel=http"
    long = await client.post("/internal/tasks/resume", json=ask | {"why": "x" * 501})
    assert (long.status_code, long.json()["error"]["field"]) == (422, "why")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "reason"),
        ({"reason": "nonsense"}, "reason"),
        ({"reason": 1}, "reason"),
        ({"taskIds": "t_1"}, "taskIds"),
        ({"taskIds": [1]}, "taskIds"),
        ({"channel": "http", "limit": 0}, "limit"),
        ({"chanel": "http"}, "chanel"),
    ],
)
async def test_resuming_everything_by_mistake_is_refused(
    client: httpx.AsyncClient, body: dict[str, Any], field: str
) -> None:
    response = await client.post("/internal/tasks/resume", json=body)
    assert (response.status_code, response.json()["error"]["field"]) == (422, field)


@pytest.mark.req("SUS-3", "QUE-2")
async def test_a_drop_is_final_recorded_and_lets_its_chat_go_on(
    client: httpx.AsyncClient, house: House, work: Work
) -> None:
    told: list[Any] = []
    house.bus.subscribe("task.settled", told.append)  # type: ignore[arg-type]
    first = await client.post(APPLY, json={"userText": "1", "metadata": {"chat_id": "c"}})
    task_id = first.json()["data"]["taskId"]
    dropped = await client.delete(f"/internal/tasks/{task_id}", params={"why": "spam"})
    assert dropped.json()["data"] == {"taskId": task_id, "status": "dropped", "by": "olga", "why": "spam"}
    assert await house.queue.get(TaskId(task_id)) is None
    assert [event["status"] for event in told] == ["dropped"]
    shown = (await client.get(f"/api/workflows/tasks/{task_id}")).json()["data"]
    assert (shown["status"], shown["droppedBy"], shown["droppedWhy"]) == ("dropped", "olga", "spam")
    again = await client.delete(f"/internal/tasks/{task_id}")
    assert (again.status_code, again.json()["data"]["why"]) == (200, "spam")
    [entry] = [
        entry for entry in (await client.get("/internal/operations")).json()["data"] if entry["action"] == "drop"
    ]
    assert (entry["who"], entry["why"]) == ("olga", "spam")
    await work(echo)
    following = {"userText": "2", "metadata": {"chat_id": "c"}, "waitForResult": True}
    assert (await client.post(APPLY, json=following)).json()["data"]["status"] == "completed"


@pytest.mark.req("SUS-3")
@pytest.mark.failure("H8", "E11")
async def test_what_is_dropped_while_it_runs_never_answers(client: httpx.AsyncClient, house: House) -> None:
    running, let_go = asyncio.Event(), asyncio.Event()

    async def slow(turn: rise.Turn) -> None:
        running.set()
        await let_go.wait()
        await turn.reply("too late")

    worker = InProcessWorker(house, {"wf_slow": WorkflowDefinition(name="slow", function=slow, channels=("http",))})
    await worker.start()
    task_id = (await client.post(APPLY, json={"userText": "x"})).json()["data"]["taskId"]
    await running.wait()
    assert (await client.delete(f"/internal/tasks/{task_id}")).status_code == 200
    let_go.set()
    await worker.stop()  # lets the run end
    shown = (await client.get(f"/api/workflows/tasks/{task_id}")).json()["data"]
    assert (shown["status"], shown["replies"]) == ("dropped", [])


@pytest.mark.failure("H8")
async def test_what_has_ended_cannot_be_dropped(client: httpx.AsyncClient, work: Work) -> None:
    await work(echo)
    done = (await client.post(APPLY, json={"userText": "x", "waitForResult": True})).json()["data"]
    response = await client.delete(f"/internal/tasks/{done['taskId']}")
    assert (response.status_code, response.json()["error"]["code"]) == (409, "state_conflict")
    assert (await client.delete("/internal/tasks/t_nobody")).status_code == 404


@pytest.mark.req("SUP-4")
async def test_stats_count_what_is_there(client: httpx.AsyncClient, house: House) -> None:
    for key in ("a", "a", "b"):
        await client.post(APPLY, json={"userText": "x"}, headers={"Idempotency-Key": key})
    stats = (await client.get("/internal/tasks/stats")).json()["data"]
    assert (stats["journalDepth"], stats["byStatus"], stats["byChannel"]) == (2, {"pending": 2}, {"http": 2})
    assert stats["duplicateRate"] == pytest.approx(1 / 3)
    assert stats["outOfOrderRate"] == 0
    assert stats["oldestWaitingSeconds"] >= 0
    assert {"retryDepth", "outbox", "channelPayload", "workflow_pending_total", "finished"} <= stats.keys()
    assert "raw_truncated_total" in stats["channelPayload"]


@pytest.mark.req("CAP-5")
async def test_a_capability_is_probed_on_demand(client: httpx.AsyncClient, house: House) -> None:
    house.capabilities.set("disk", CapabilityStatus.UNAVAILABLE, "gone")
    response = await client.post("/internal/capabilities/disk/probe")
    assert (response.status_code, response.json()["data"]["status"]) == (200, "available")
    assert (await client.post("/internal/capabilities/nonsense/probe")).status_code == 404


@pytest.mark.req("OPS-4", "SEC-1")
async def test_metrics_are_for_those_with_a_token(app: App, nobody: httpx.AsyncClient) -> None:
    assert (await nobody.get("/metrics")).status_code == 401
    async with client_of(app, **as_(VIEWER)) as viewer:
        response = await viewer.get("/metrics")
        assert "rise_capability_available" in response.text


# --- who may ----------------------------------------------------------------------------------------------

PROTECTED = [
    ("POST", APPLY),
    ("POST", "/api/messages"),
    ("GET", "/api/workflows/tasks/t_1"),
    ("GET", SUSPENDED),
    ("POST", "/internal/tasks/t_1/resume"),
    ("POST", "/internal/tasks/resume"),
    ("DELETE", "/internal/tasks/t_1"),
    ("GET", "/internal/tasks/stats"),
    ("GET", "/internal/operations"),
    ("POST", "/internal/capabilities/disk/probe"),
    ("GET", "/metrics"),
    ("GET", "/api/openapi.json"),
]


@pytest.mark.req("SEC-1")
@pytest.mark.parametrize(("method", "path"), PROTECTED)
async def test_without_a_valid_token_nothing_is_shown_or_done(
    nobody: httpx.AsyncClient, method: str, path: str
) -> None:
    for shown in (
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        f"Basic {ADMIN}",
        f"bearer-{ADMIN}",
        f"Bearer {ADMIN}x",
    ):
        headers = {} if shown is None else {"Authorization": shown}
        response = await nobody.request(method, path, headers=headers | {"X-Forwarded-For": "127.0.0.1"})
        assert response.status_code == 401, shown
        assert response.headers["WWW-Authenticate"] == "Bearer"
        assert response.json()["error"]["code"] == "credentials_missing"


@pytest.mark.req("SEC-1")
async def test_each_role_may_what_the_one_before_may(app: App) -> None:
    def allowed(statuses: list[int]) -> list[bool]:
        return [status not in (401, 403) for status in statuses]

    looks = [("GET", SUSPENDED), ("GET", "/internal/tasks/stats"), ("GET", "/metrics")]
    changes = [("POST", "/internal/tasks/t_1/resume"), ("DELETE", "/internal/tasks/t_1"), ("POST", APPLY)]
    for token, expected in ((VIEWER, [True] * 3 + [False] * 3), (OPERATOR, [True] * 6), (ADMIN, [True] * 6)):
        async with client_of(app, **as_(token)) as client:
            statuses = [(await client.request(method, path)).status_code for method, path in looks + changes]
            assert allowed(statuses) == expected


@pytest.mark.req("SEC-4")
async def test_guessing_tokens_is_slowed_down_and_the_right_one_still_works(tmp_path: Any) -> None:
    async with opened(tmp_path / "slow", clock=ManualClock(), rate_per_source=1.0) as house:
        app = build_app(house)
        async with client_of(app) as guesser:
            statuses = [
                (await guesser.get(SUSPENDED, headers=as_(f"guess-{n}-{'x' * 20}"))).status_code for n in range(12)
            ]
            assert statuses == [401] * 10 + [429] * 2
            assert (await guesser.get(SUSPENDED, headers=as_(VIEWER))).status_code == 200
            limited = await guesser.get(SUSPENDED)
            assert limited.status_code == 429
            assert int(limited.headers["Retry-After"]) >= 1
            assert (await guesser.get("/webchat")).status_code == 200, "that is another door"
        app.close()


@pytest.mark.req("SEC-4")
async def test_who_may_come_seldom_may_come_all_the_same(tmp_path: Any) -> None:
    async with opened(tmp_path / "seldom", rate_per_source=0.001) as house:
        app = build_app(house)
        async with client_of(app) as somebody:
            assert [(await somebody.get("/webchat")).status_code for _ in range(2)] == [200, 429]
        app.close()


@pytest.mark.req("CAP-6")
@pytest.mark.parametrize("path", ["/healthz", "/healthz/startup", "/healthz/readiness"])
async def test_a_crowd_behind_the_same_proxy_makes_nobody_believe_that_rise_is_not_well(
    tmp_path: Any, path: str
) -> None:
    async with opened(tmp_path / "crowd", clock=ManualClock(), rate_per_source=1.0) as house:
        app = build_app(house)
        async with client_of(app) as proxy:
            crowd = {(await proxy.post("/webchat/session")).status_code for _ in range(20)}
            assert 429 in crowd, "the crowd itself is slowed down"
            assert {(await proxy.get(path)).status_code for _ in range(20)} == {200}
        app.close()


@pytest.mark.req("CAP-6", "SEC-4")
async def test_who_asks_for_readiness_without_end_is_answered_as_last_known(tmp_path: Any) -> None:
    async with opened(tmp_path / "endless", rate_per_source=0.001) as house:
        app, asked = build_app(house), []

        async def disk() -> tuple[CapabilityStatus, str]:
            asked.append(1)
            return CapabilityStatus.AVAILABLE, "written and synced"

        house.capabilities.register_capability_probe("disk", disk, hard=True, good_in_a_row=1)
        async with client_of(app) as somebody:
            for _ in range(10):
                assert (await somebody.get("/healthz/readiness")).status_code == 200
            assert len(asked) == 1, "every answer that is not from memory is a sync of the disk"
            house.capabilities.set("disk", CapabilityStatus.UNAVAILABLE, "gone")
            assert (await somebody.get("/healthz/readiness")).status_code == 503
        app.close()


@pytest.mark.req("SEC-1")
async def test_the_description_of_the_api_is_for_those_who_may_use_it(app: App, nobody: httpx.AsyncClient) -> None:
    for path in ("/docs", "/redoc", "/openapi.json"):
        assert (await nobody.get(path)).status_code == 404
    async with client_of(app, **as_(VIEWER)) as viewer:
        paths = (await viewer.get("/api/openapi.json")).json()["paths"]
        assert APPLY in paths


async def test_what_the_framework_refuses_has_the_same_form(client: httpx.AsyncClient) -> None:
    missing = await client.get("/nowhere")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    assert missing.json()["meta"]["status"] == "not_found"
    wrong = await client.get("/api/messages")
    assert (wrong.status_code, wrong.headers["Allow"]) == (405, "POST")
    for path, methods in (("/api/channel-bindings/wf_a", "GET, PUT"), ("/api/prompts/pr_a", "DELETE, GET, PUT")):
        wrong = await client.patch(path)
        assert (wrong.status_code, wrong.headers["Allow"]) == (405, methods)


async def test_every_answer_has_its_security_headers(nobody: httpx.AsyncClient) -> None:
    for path in ("/healthz", "/nowhere", "/metrics", "/webchat", "/webchat/chat.js"):
        headers = (await nobody.get(path)).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["Referrer-Policy"] == "no-referrer"


# --- by hand, without HTTP --------------------------------------------------------------------------------


@pytest.fixture
def operations(house: House) -> Operations:
    return Operations(house.queue, house.ledger, house.bus, house.clock)


@pytest.mark.failure("M9")
async def test_running_again_says_first_what_it_would_do_and_then_answers_again(
    client: httpx.AsyncClient, house: House, work: Work, operations: Operations
) -> None:
    await work(echo)
    done = (await client.post(APPLY, json={"userText": "x", "waitForResult": True})).json()["data"]
    task_id = TaskId(done["taskId"])
    would = await operations.run_again(task_id, who="admin", dry_run=True)
    assert (would.generation, would.was) == (1, Status.COMPLETED)
    assert await house.queue.list_open(Selection(), limit=1) == []
    assert [entry.action for entry in await house.ledger.operations(limit=10) if entry.who == "admin"] == []
    await operations.run_again(task_id, who="admin", why="wanted twice")

    async def twice() -> bool:
        return len(await house.ledger.replies(task_id=task_id)) == 2

    await eventually(twice)
    run = await house.ledger.latest_run(task_id)
    assert run is not None
    assert run.generation == 1


async def test_running_again_what_is_on_its_way_is_a_conflict(
    client: httpx.AsyncClient, operations: Operations
) -> None:
    pending = (await client.post(APPLY, json={"userText": "x"})).json()["data"]["taskId"]
    with pytest.raises(StateConflict):
        await operations.run_again(TaskId(pending), who="admin")
    with pytest.raises(TaskUnknown):
        await operations.run_again(TaskId("t_nobody"), who="admin")


async def test_a_suspended_task_may_be_run_again_too(
    client: httpx.AsyncClient, work: Work, operations: Operations
) -> None:
    await work(failing)
    [task_id] = await suspend_some(client, 1)
    assert (await operations.run_again(TaskId(task_id), who="admin")).generation == 1


# --- closed doors -------------------------------------------------------------------------------------------------


@pytest.mark.req("CAP-3", "CAP-4")
@pytest.mark.failure("C28")
async def test_a_crowd_before_a_store_that_is_away_is_refused_in_the_form_of_a_closed_capability(
    client: httpx.AsyncClient, house: House
) -> None:
    tried, real = 0, house.stores.database.write

    async def refuse(apply: Any) -> Any:
        nonlocal tried
        tried += 1
        await asyncio.sleep(0)
        raise StoreUnavailable("the disk is read-only")

    house.stores.database.write = refuse  # type: ignore[method-assign]
    assert (await client.post(APPLY, json={"userText": "x"})).status_code == 503
    refused = await asyncio.gather(*(client.post(APPLY, json={"userText": "x"}) for _ in range(20)))
    assert tried < 10, "most were refused without trying"
    for response in refused:
        body = response.json()
        assert (response.status_code, body["capability"], body["status"]) == (503, "disk", "unavailable")
        assert body["detail"] == "the disk is read-only"
        assert body["error"] == {"code": "capability_unavailable"}
        assert int(response.headers["Retry-After"]) >= 1
    house.stores.database.write = real  # type: ignore[method-assign]
    assert (await client.post(APPLY, json={"userText": "x"})).status_code == 200


@pytest.mark.req("SUP-2", "CAP-6")
async def test_whoever_is_too_busy_says_so_at_the_door_and_in_all_that_is_asked_about_it(
    client: httpx.AsyncClient, house: House
) -> None:
    overload = Overload(
        OverloadLimits(backlog_max=10),
        admission=house.intake.admission,
        capabilities=house.capabilities,
        alerts=Alerts(house.clock),
    )
    for open_count, expected in ((11, 503), (0, 200)):
        overload.judge(Load(open_count, 0))
        for path in ("/healthz/startup", "/healthz/readiness"):
            assert (await client.get(path)).status_code == expected
        asked = await client.post(APPLY, json={"userText": "x"})
        assert asked.status_code == expected
        if expected == 503:
            assert (asked.json()["error"]["code"], asked.headers["Retry-After"]) == ("busy", "30")
            assert asked.json()["capability"] == "admission"
    assert (await client.get("/healthz")).status_code == 200


@pytest.mark.req("SEC-5", "SEC-1")
async def test_an_admin_forgets_a_chat_that_has_nothing_open(app: App, client: httpx.AsyncClient, work: Work) -> None:
    await work(failing)
    [waiting] = await suspend_some(client, 1)
    asked = {"channel": "http", "chatId": 0, "why": "asked for it"}
    assert (await client.post("/internal/forget", json=asked)).status_code == 403, "an operator may not"
    async with client_of(app, **as_(ADMIN)) as admin:
        refused = await admin.post("/internal/forget", json=asked)
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "state_conflict")
        foreseen = (await admin.post("/internal/forget", json=asked | {"dryRun": True})).json()["data"]
        assert (foreseen["dryRun"], foreseen["open"], foreseen["messages"]) == (True, 1, 0)
        forgotten = (await admin.post("/internal/forget", json=asked | {"dropOpen": True})).json()["data"]
        assert (forgotten["dryRun"], forgotten["dropped"], forgotten["messages"]) == (False, 1, 1)
        pieces = "pieces in unused space of rise.db and its log"
        for answered in (foreseen, forgotten):
            assert pieces in [trace["what"] for trace in answered["traces"]], "nobody is kept waiting for a file"
        shown = (await admin.get(f"/api/workflows/tasks/{waiting}")).json()["data"]
        assert (shown["status"], shown["payload"]["userText"], shown["attempts"]) == ("dropped", "", [])
        log = (await admin.get("/internal/operations")).json()["data"]
        assert [(entry["action"], entry["who"]) for entry in log[:2]] == [("drop", "admin"), ("forget", "admin")]
        for wrong, field in (
            ({"chatId": ""}, "chatId"),
            ({"why": "x" * 501}, "why"),
            ({"channel": "pigeon"}, "channel"),
            ({"chatId": None}, "chatId"),
        ):
            answered = await admin.post("/internal/forget", json=asked | wrong)
            assert (answered.status_code, answered.json()["error"]["field"]) == (422, field)


@pytest.mark.req("SEC-5", "TMP-1")
@pytest.mark.parametrize(
    ("settings", "until"),
    [
        ({"temporal_address": "127.0.0.1:7233"}, "Temporal removes it"),
        ({}, "it is forgotten again with RISE_TEMPORAL_ADDRESS set"),
    ],
)
async def test_what_temporal_has_of_a_chat_is_named_when_it_is_forgotten(
    tmp_path: Any, settings: dict[str, Any], until: str
) -> None:
    async with opened(tmp_path / "data", **settings) as house:
        conversing = BindingRecord(channel="webchat", account="default", workflow_id="wf_bot", engine="temporal")
        await house.editor.bind(conversing, by=CODE)
        async with client_of(build_app(house), **as_(ADMIN)) as admin:
            asked = {"channel": "webchat", "chatId": "s_1", "dryRun": True}
            answered = (await admin.post("/internal/forget", json=asked)).json()["data"]
    [said] = [trace["until"] for trace in answered["traces"] if "conversation, " in trace["what"]]
    assert said.startswith(until)


@pytest.mark.req("CAP-3", "CAP-6")
@pytest.mark.parametrize(("redis_url", "name"), [(None, "disk"), ("redis://127.0.0.1:1/0", "ledger")])
async def test_a_database_that_is_away_is_called_the_same_in_refusals_and_in_health(
    tmp_path: Any, redis_url: str | None, name: str
) -> None:
    async with opened(tmp_path / "data", redis_url=redis_url) as house:
        register_probes(house)
        await house.stores.database.close()
        await house.capabilities.probe(name)
        async with client_of(build_app(house), **as_(ADMIN)) as client:
            refused = await client.get("/api/workflows")
            health = (await client.get("/healthz")).json()["capabilities"]
    assert (refused.status_code, refused.json()["capability"]) == (503, name)
    assert health[name]["status"] == "unavailable"
