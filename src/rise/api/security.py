"""Who may: tokens with roles, compared in constant time, and rate limits for everybody without one.

Who somebody is comes from their token alone; no header a client or a proxy could write adds to it.

Refuses: no token or an unknown one (401), a role that may not (403), and a source that sends too many such
requests (429).
"""

from __future__ import annotations

import hmac
import ipaddress
import math
from collections.abc import Callable, Coroutine, Mapping
from enum import IntEnum, StrEnum
from typing import Any, Final

import msgspec
from fastapi import Request

from rise.clock import Clock
from rise.errors import CredentialsMissing, RateExceeded, RoleInsufficient
from rise.rates import Buckets
from rise.telemetry import credentials_refused_total, log
from rise.tokens import as_digest, digest_of

BURST_SECONDS: Final = 10
TOLD_EVERY_SECONDS: Final = 60.0
"""How often it is logged that a source shows credentials that are none."""

PAGE_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors *"
)
"""For the chat page, which is made to be shown inside other sites: nothing inline, nothing from elsewhere."""

HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}
"""For every answer that does not say otherwise."""


class Role(IntEnum):
    """Each may what the one before may."""

    VIEWER = 1
    OPERATOR = 2
    ADMIN = 3


class Door(StrEnum):
    """Where somebody without credentials knocks. Each is counted by itself: behind a proxy all come from one address,
    and a crowd in the web chat must not keep anybody from signing in."""

    WEBCHAT = "webchat"
    CONSOLE = "console"
    API = "api"
    WEBHOOK = "webhook"


class Principal(msgspec.Struct, frozen=True):
    """Somebody who has shown a token."""

    name: str
    role: Role


class Credentials:
    """The tokens of this installation. Only their digests are held."""

    def __init__(self, admin_token: str, others: Mapping[str, str]) -> None:
        """Each token, or its digest; `others` → `name:role`."""
        self._known = [(as_digest(admin_token), Principal("admin", Role.ADMIN))]
        for kept, named in others.items():
            name, _, role = named.rpartition(":")
            self._known.append((as_digest(kept), Principal(name, Role[role.upper()])))

    @property
    def known(self) -> tuple[tuple[str, Principal], ...]:
        """Digest and holder of each."""
        return tuple(self._known)

    @staticmethod
    def digest(token: str) -> str:
        """By which `known` names it."""
        return digest_of(token)

    def principal(self, token: str) -> Principal | None:
        """Whose token it is. Takes as long for a wrong one as for the first or the last."""
        shown = digest_of(token)
        found = None
        for digest, principal in self._known:
            if hmac.compare_digest(digest, shown):
                found = principal
        return found


class Gate:
    """Lets in who has a token, and slows down who has none or a wrong one.

    The right token is never slowed down: whoever guesses from an address could else keep its owner out. A token that is
    made cannot be guessed at any rate.
    """

    def __init__(self, credentials: Credentials, clock: Clock, *, rate_per_source: float) -> None:
        self.credentials = credentials
        self._clock = clock
        burst = max(1.0, rate_per_source * BURST_SECONDS)
        self._sources = {door: Buckets(rate_per_source, burst) for door in Door}
        self._looking = Buckets(rate_per_source, burst)
        self._told = Buckets(1 / TOLD_EVERY_SECONDS, 1.0)
        for door in (Door.API, Door.CONSOLE):
            credentials_refused_total.labels(door)  # none so far: the first is seen as one more

    def admit(self, scope: Mapping[str, Any], role: Role) -> Principal:
        """Raises `CredentialsMissing`, `RoleInsufficient`, or `RateExceeded` after too many failures."""
        token = bearer_of(scope)
        principal = self.credentials.principal(token) if token else None
        if principal is None:
            if any(name == b"authorization" for name, _ in scope["headers"]):
                self.note_refused(scope, Door.API)
            self.slow_down(scope, Door.API)
            raise CredentialsMissing("this needs a token: Authorization: Bearer …")
        if principal.role < role:
            raise RoleInsufficient(f"this needs the role {role.name.lower()}; {principal.name} has a lesser one")
        return principal

    def slow_down(self, scope: Mapping[str, Any], door: Door) -> None:
        """Count one request of this source. Raises `RateExceeded` if it makes too many."""
        source, now = source_of(scope), self._clock.monotonic()
        wait = self._sources[door].wait_seconds(source, now)
        if wait > 0:
            raise RateExceeded("too many requests from this address", retry_after_seconds=math.ceil(wait))
        self._sources[door].take(source, now)

    def note_refused(self, scope: Mapping[str, Any], door: Door) -> None:
        """Somebody showed credentials that are none: counted each time, logged once a minute and source."""
        credentials_refused_total.labels(door).inc()
        source, now = source_of(scope), self._clock.monotonic()
        if self._told.wait_seconds(source, now) <= 0:
            self._told.take(source, now)
            log.warning(
                "credentials.refused", door=door, source=source, consequence="more within a minute are only counted"
            )

    def may_look(self, scope: Mapping[str, Any]) -> bool:
        """Whether this source may have the stores asked now; refuses nobody. Counted apart from everything else:
        behind a proxy all come from one address, and who asks whether Rise is well must not wait behind a crowd."""
        source, now = source_of(scope), self._clock.monotonic()
        if self._looking.wait_seconds(source, now) > 0:
            return False
        self._looking.take(source, now)
        return True


def requires(role: Role) -> Callable[[Request], Coroutine[Any, Any, Principal]]:
    """A dependency: the caller, if the role is theirs."""

    # A coroutine: FastAPI would hand a plain function to a thread.
    async def admitted(request: Request) -> Principal:
        gate: Gate = request.app.state.gate
        return gate.admit(request.scope, role)

    admitted.role = role  # type: ignore[attr-defined]  # for whoever describes the routes
    return admitted


def role_asked(dependency: Callable[..., Any] | None) -> Role | None:
    """The role that a dependency made by `requires` asks for."""
    return getattr(dependency, "role", None)


async def anonymous(request: Request) -> None:
    """A dependency for the web chat's routes, which are without credentials: not too often from one source."""
    gate: Gate = request.app.state.gate
    gate.slow_down(request.scope, Door.WEBCHAT)


def bearer_of(scope: Mapping[str, Any]) -> str | None:
    """The token of `Authorization: Bearer …`, if there is exactly one such header."""
    shown = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(shown) != 1:
        return None
    scheme, _, token = shown[0].decode("latin-1").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def source_of(scope: Mapping[str, Any]) -> str:
    """Whom to count a request for: the peer's address. Of IPv6 the network, of which one person has a whole."""
    client = scope.get("client")
    host = str(client[0]) if client else ""
    if ":" not in host:
        return host
    try:
        address = ipaddress.IPv6Address(host.partition("%")[0])
    except ValueError:
        return host
    return str(address.ipv4_mapped or ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))
