"""Where alerts go beside log and metrics: a signed webhook, a Telegram chat.

Nothing waits for them, and they need neither store nor worker: an alert must not depend on what it warns of. Each
is tried for about a minute, then given up and counted; what waits is bounded.

Refuses: to follow redirects with a signed body; to say an alert a second time where the first may have arrived.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from rise.channels.port import AccountDown, Moved, NotSent, Paused, Refused, Succeeded, Uncertain, Unreadable
from rise.channels.telegram import TelegramChannel
from rise.clock import Clock
from rise.envelope import Call, encode_json
from rise.errors import ChannelUnavailable, Rejected, Unavailable
from rise.runtime.alerts import AlertMessage
from rise.service import Loop, Signal
from rise.signing import signed_headers
from rise.telemetry import alert_posts_total, clean, log
from rise.unreached import why_unreached

if TYPE_CHECKING:
    import httpx

WAITING_MAX: Final = 100
POST_SECONDS_MAX: Final = 10.0
PAUSES_SECONDS: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
TELEGRAM_CHARS_MAX: Final = 4000


class Post(Protocol):
    """One place to tell."""

    name: str

    async def send(self, message: AlertMessage) -> None:
        """Raises `Unavailable` if trying again may help, `Rejected` if not."""
        ...

    async def close(self) -> None: ...


class AlertPosts:
    """Tells every post, in order, each at its own pace."""

    name = "alert posts"

    def __init__(self, posts: Sequence[Post], clock: Clock) -> None:
        self._boxes = [_Box(post, clock) for post in posts]

    def tell(self, message: AlertMessage) -> None:
        """Later, and by others."""
        for box in self._boxes:
            box.put(message)

    async def start(self) -> None:
        for box in self._boxes:
            await box.loop.start()

    async def stop(self) -> None:
        for box in self._boxes:
            await box.loop.stop()
            await box.post.close()


class _Box:
    """What waits for one post."""

    def __init__(self, post: Post, clock: Clock) -> None:
        self.post = post
        # From the start: Prometheus takes the first value that it sees for what always was.
        alert_posts_total.labels(post.name, "given up")
        self.loop = Loop(f"alerts to {post.name}", self._send_next, sleep=clock.sleep, on_error=self._report)
        self._clock = clock
        self._waiting: deque[AlertMessage] = deque()
        self._put = Signal()

    def put(self, message: AlertMessage) -> None:
        if len(self._waiting) >= WAITING_MAX:
            self._give_up(self._waiting.popleft(), "too many wait")
        self._waiting.append(message)
        self._put.set()

    async def _send_next(self) -> None:
        if not self._waiting:
            await self._put.wait()
            return
        # Taken out first: what cannot be told, for whatever reason, must not keep the others from it.
        message = self._waiting.popleft()
        for pause in (*PAUSES_SECONDS, None):
            try:
                await self.post.send(message)
            except Unavailable as error:
                if pause is None:
                    self._give_up(message, error)
                    return
                await self._clock.sleep(max(pause, float(error.retry_after_seconds or 0)))
            except Rejected as error:
                self._give_up(message, error)
                return
            else:
                alert_posts_total.labels(self.post.name, "told").inc()
                return

    def _give_up(self, message: AlertMessage, why: object) -> None:
        alert_posts_total.labels(self.post.name, "given up").inc()
        log.error("alert.untold", alert=message.alert, state=message.state, post=self.post.name, why=clean(why))

    def _report(self, name: str, error: BaseException) -> None:
        log.error("alert.untold", post=self.post.name, error=error, consequence="the next one is tried")


class SignedWebhook:
    """A POST of JSON, signed as `rise.signing` says."""

    name = "webhook"

    def __init__(self, url: str, secret: str, clock: Clock) -> None:
        self._url = url
        self._secret = secret
        self._clock = clock
        self._client: httpx.AsyncClient | None = None

    async def send(self, message: AlertMessage) -> None:
        import httpx  # here, because most processes never tell anybody anything, and start sooner without

        if self._client is None:
            self._client = httpx.AsyncClient(timeout=POST_SECONDS_MAX, follow_redirects=False, trust_env=False)
        body = encode_json(msgspec.to_builtins(message))
        headers = signed_headers(self._secret, body, self._clock.now())
        try:
            response = await self._client.post(self._url, content=body, headers=headers)
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise ChannelUnavailable(f"the webhook does not answer: {why_unreached(error)}") from error
        if not response.is_success:
            raise ChannelUnavailable(f"the webhook answered {response.status_code}")

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()


class TelegramChat:
    """A message in a chat, past worker and outbox: those may be what the alert is about."""

    name = "telegram"

    def __init__(self, telegram: TelegramChannel, account: str, chat_id: str) -> None:
        self._telegram = telegram
        self._account = account
        self._chat_id = chat_id

    async def send(self, message: AlertMessage) -> None:
        outcome = await self._telegram.send(self._account, self._chat_id, Call("sendMessage", {"text": words(message)}))
        match outcome:
            case Succeeded() | Uncertain():
                return
            case Refused(error) | Unreadable(error):
                raise Rejected(error)
            case Paused(seconds, error):
                raise ChannelUnavailable(error, retry_after_seconds=int(seconds) + 1)
            case NotSent(error) | AccountDown(error):
                raise ChannelUnavailable(error)
            case Moved(chat_id):
                raise Rejected(f"the chat is {chat_id} now: set RISE_ALERT_TELEGRAM_CHAT")

    async def close(self) -> None:
        """The channel is the house's."""


def words(message: AlertMessage) -> str:
    """For a person."""
    if message.state == "resolved":
        return f"Resolved: {message.alert}"
    details = "".join(f"\n{name}: {value}" for name, value in message.details.items())
    untold = f"\n(raised {message.untold} times more since the last message)" if message.untold else ""
    return f"Alert: {message.summary}{details}{untold}"[:TELEGRAM_CHARS_MAX]
