"""How the Bot API says no: the codes and words of the real server, once.

Clients are expected to decide by `error_code` and `parameters`; the words are here because people read them.
"""

from __future__ import annotations

from typing import Any


class CallRefused(Exception):
    """A Bot API call was refused. Nothing was committed."""

    def __init__(self, error_code: int, description: str, **parameters: int) -> None:
        super().__init__(description)
        self.error_code = error_code
        self.description = description
        self.parameters = parameters

    def body(self) -> dict[str, Any]:
        body: dict[str, Any] = {
            "ok": False,
            "error_code": self.error_code,
            "description": self.description,
        }
        if self.parameters:
            body["parameters"] = self.parameters
        return body


def bad_request(why: str) -> CallRefused:
    return CallRefused(400, f"Bad Request: {why}")


def unauthorized() -> CallRefused:
    return CallRefused(401, "Unauthorized")


def forbidden(why: str) -> CallRefused:
    return CallRefused(403, f"Forbidden: {why}")


def blocked_by_user() -> CallRefused:
    return forbidden("bot was blocked by the user")


def not_found() -> CallRefused:
    return CallRefused(404, "Not Found")


def conflict(why: str) -> CallRefused:
    return CallRefused(409, f"Conflict: {why}")


def too_many_requests(retry_after_seconds: int) -> CallRefused:
    return CallRefused(429, f"Too Many Requests: retry after {retry_after_seconds}", retry_after=retry_after_seconds)


def migrated(new_chat_id: int) -> CallRefused:
    return CallRefused(
        400,
        "Bad Request: group chat was upgraded to a supergroup chat",
        migrate_to_chat_id=new_chat_id,
    )
