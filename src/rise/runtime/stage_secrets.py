"""Secrets that stages put into their requests: set, listed by name, removed.

A stage names one, `{{ secrets.NAME }}`, and it is put in when the request is made. A new value holds at once, in all
workflows. What a secret was stays among its versions, sealed as well.

Refuses: to show one; to remove what a published workflow asks for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from rise.definitions.port import Definition, Definitions, Kind
from rise.definitions.records import SecretRecord, body_of, secret_of, workflow_of
from rise.errors import PayloadInvalid, SecretUnknown, StateConflict
from rise.runtime.sealing import Seal
from rise.runtime.versions import Versions

CHARS_MIN: Final = 8
"""A shorter one could be any word of an answer or a log, from which it is taken out."""
CHARS_MAX: Final = 4096

_NAME: Final = re.compile("[A-Za-z_][A-Za-z0-9_]{0,63}")

AskedFor = Callable[[Any], Sequence[tuple[str, str]]]
"""The secrets that stages name, each after its field. Raises `PayloadInvalid` where they are none."""


class StageSecrets:
    """List, set, remove, seal anew."""

    def __init__(self, definitions: Definitions, versions: Versions, seal: Seal, asked_for: AskedFor) -> None:
        self._definitions = definitions
        self._versions = versions
        self._seal = seal
        self._asked_for = asked_for

    async def list(self) -> list[SecretRecord]:
        """All there are, in the order of their names, sealed."""
        return [secret_of(one) for one in (await self._definitions.latest([Kind.SECRET])).definitions]

    async def used_by(self) -> dict[str, Sequence[str]]:
        """Of each secret that is asked for, the workflows that run with it."""
        used: dict[str, dict[str, None]] = {}
        for one in (await self._definitions.latest([Kind.PUBLISHED])).definitions:
            for name in self._named(workflow_of(one).stages):
                used.setdefault(name, {})[one.name] = None
        return {name: [*workflow_ids] for name, workflow_ids in used.items()}

    def opens(self, secret: SecretRecord) -> bool:
        """Whether it was sealed with a key that is here."""
        return self._seal.open(secret.sealed) is not None

    async def set(self, name: str, value: str, *, by: str) -> SecretRecord:
        """Make one, or give it another value. Raises `PayloadInvalid`."""
        if not _NAME.fullmatch(name):
            raise PayloadInvalid("a secret's name is letters, digits and _, and begins with no digit", field="name")
        if not CHARS_MIN <= len(value) <= CHARS_MAX or not (value.isascii() and value.isprintable()):
            wrong = f"a secret is {CHARS_MIN} to {CHARS_MAX} characters of ASCII, without line breaks"
            raise PayloadInvalid(wrong, field="value")

        def change(last: Definition | None) -> bytes:
            if last is not None and last.body is not None and self._seal.open(secret_of(last).sealed) == value:
                return last.body  # sealed anew it would look like a change
            return body_of(SecretRecord(name=name, sealed=self._seal.close(value)))

        return secret_of(await self._versions.change(Kind.SECRET, name, change, by=by, action="set secret"))

    async def remove(self, name: str, *, by: str) -> Sequence[str]:
        """Returns the workflows that were published with it meanwhile.

        Raises `SecretUnknown`, or `StateConflict` that names the workflows that run with it."""
        if users := (await self.used_by()).get(name):
            raise StateConflict(f"{name} is used by {', '.join(users)}: publish them without it first")

        def change(last: Definition | None) -> None:
            if last is None or last.body is None:
                raise SecretUnknown(f"there is no secret {ascii(name)[1:-1][:80]}", field="name")

        await self._versions.change(Kind.SECRET, name, change, by=by, action="remove secret")
        return (await self.used_by()).get(name, [])

    async def seal_anew(self, *, by: str) -> tuple[int, Sequence[str]]:
        """Each under the key that is in force: how many were under the former one, and which under neither."""
        sealed, unreadable = 0, []
        for one in await self.list():
            if not self.opens(one):
                unreadable.append(one.name)
            elif self._seal.anew(one.sealed) is not None:
                await self._versions.change(Kind.SECRET, one.name, self._anew, by=by, action="seal anew")
                sealed += 1
        return sealed, unreadable

    # --- details ---

    def _anew(self, last: Definition | None) -> bytes | None:
        if last is None or last.body is None:
            return None  # it has been removed meanwhile
        secret = secret_of(last)
        anew = self._seal.anew(secret.sealed)
        return last.body if anew is None else body_of(msgspec.structs.replace(secret, sealed=anew))

    def _named(self, stages: Any) -> Sequence[str]:
        try:
            return [name for _, name in self._asked_for(stages)] if stages else []
        except PayloadInvalid:
            return []  # a newer version's, which runs nowhere here
