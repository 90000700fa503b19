"""The HTTP face that bots talk to: `/bot<token>/<method>` and `/file/bot<token>/<path>`.

Promises: JSON, forms, multipart bodies and query strings mean the same; a scripted fault strikes on the side
of the commit that it names; a call goes on after its client left, as on the real server.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from aiohttp import web

from rise.testing.telegram.faults import Fault
from rise.testing.telegram.records import Call
from rise.testing.telegram.rules import Answer, Bot, CallParams, CallRefused, UploadedFile, refusals
from rise.testing.telegram.state import StandInState, is_token


class BotApi:
    def __init__(self, state: StandInState) -> None:
        self._state = state

    def add_routes(self, app: web.Application) -> None:
        app.router.add_route("*", "/bot{token:[^/]+}/{method}", self._handle_call)
        app.router.add_get("/file/bot{token:[^/]+}/{path:.+}", self._handle_download)

    async def _handle_call(self, request: web.Request) -> web.Response:
        if self._state.script.is_unreachable:
            return _closed(request)
        if self._state.script.latency_seconds:
            await self._state.time.sleep(self._state.script.latency_seconds)
        try:
            bot = self._bot_of(request)
            params = await _read_params(request)
        except CallRefused as refusal:
            return _response(Answer.refusing(refusal))
        call = self._state.open_call(bot, request.match_info["method"], params)
        fault = self._state.script.for_call(call)
        try:
            if fault is not None:
                return await self._answer_with_fault(request, bot, call, params, fault)
            return _answered(call, _response(await self._commit(bot, call, params)))
        finally:
            self._state.close_call(call)

    async def _handle_download(self, request: web.Request) -> web.Response:
        if self._state.script.is_unreachable:
            return _closed(request)
        try:
            bot = self._bot_of(request)
        except CallRefused as refusal:
            return _response(Answer.refusing(refusal))
        stored = bot.files.at_path(request.match_info["path"])
        if stored is None:
            return _response(Answer.refusing(refusals.not_found()))
        return web.Response(body=stored.content, content_type="application/octet-stream")

    async def _answer_with_fault(
        self, request: web.Request, bot: Bot, call: Call, params: CallParams, fault: Fault
    ) -> web.Response:
        call.fault = fault.name
        time = self._state.time
        await time.sleep(fault.stall_before_seconds)
        answer = await self._commit(bot, call, params) if fault.commits else None
        await time.sleep(fault.stall_after_seconds)
        if fault.closes:
            return _closed(request)
        answer = fault.answer or answer
        assert answer is not None, "a fault without an answer of its own has to commit"
        if fault.truncates:
            answer = replace(answer, body=answer.body[: len(answer.body) // 2])
        return _answered(call, _response(answer))

    async def _commit(self, bot: Bot, call: Call, params: CallParams) -> Answer:
        if call.method.lower() == "getupdates":
            return await self._poll(bot, call, params)
        return self._state.commit(bot, call, params)

    async def _poll(self, bot: Bot, call: Call, params: CallParams) -> Answer:
        """Wait until there are updates, the poll's time is over, or somebody else polls."""
        time = self._state.time
        try:
            poll = bot.begin_poll(params, time.now())
        except CallRefused as refusal:
            return Answer.refusing(refusal)
        self._state.changes.notify()
        while (answer := bot.answer_poll(poll, time.now())) is None:
            await time.wait(self._state.changes, until=poll.ends_at)
        call.is_committed = answer.is_ok
        return answer

    def _bot_of(self, request: web.Request) -> Bot:
        token = request.match_info["token"]
        if not is_token(token):
            raise refusals.not_found()
        bot = self._state.find_bot(token)
        if bot is None:
            raise refusals.unauthorized()
        return bot


def _answered(call: Call, response: web.Response) -> web.Response:
    call.status = response.status
    return response


def _response(answer: Answer) -> web.Response:
    headers = {}
    if answer.retry_after_seconds is not None:
        headers["Retry-After"] = str(answer.retry_after_seconds)
    return web.Response(status=answer.status, body=answer.body, content_type=answer.content_type, headers=headers)


def _closed(request: web.Request) -> web.Response:
    """End the connection here and now; the response that the framework wants goes nowhere."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


async def _read_params(request: web.Request) -> CallParams:
    values: dict[str, Any] = dict(request.query)
    if request.content_type == "application/json" and request.can_read_body:
        try:
            body = await request.json()
        except ValueError as error:
            raise refusals.bad_request("can't parse JSON object") from error
        if not isinstance(body, dict):
            raise refusals.bad_request("expected an Object")
        values |= body
    elif request.content_type in {"application/x-www-form-urlencoded", "multipart/form-data"}:
        for name, value in (await request.post()).items():
            values[name] = _uploaded(value) if isinstance(value, web.FileField) else value
    return CallParams(values)


def _uploaded(field: web.FileField) -> UploadedFile:
    return UploadedFile(field.filename, field.file.read(), field.content_type)
