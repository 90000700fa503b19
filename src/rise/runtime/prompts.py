"""Prompts: texts for a language model that several workflows may ask with, kept with all their versions.

A prompt says which placeholders it has beside what every template has a value for; the stage that uses it fills them. A
change holds at once, in every workflow that uses it. What is published at the same moment is looked for once more, when
it is written: `lacking`, and what `remove` returns.

Refuses: a placeholder that is not declared; a change that would leave a published workflow without a value for one; to
remove what a published workflow uses.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

import msgspec

from rise.definitions.port import Definition, Definitions, Kind
from rise.definitions.records import NEWER, PromptRecord, body_of, prompt_of, workflow_of
from rise.envelope import definition_id_of
from rise.errors import PayloadInvalid, PromptUnknown, StateConflict, VersionStale, VersionUnknown
from rise.runtime.differences import Difference, differences
from rise.runtime.publishing import StagesNamed, not_before, prompt_used, unfilled
from rise.runtime.versions import Since, Versions, since

Placeholders = Callable[[str], Collection[str]]
"""The names that a template needs values for. Raises `PayloadInvalid` where it is none."""

PLACEHOLDERS_MAX: Final = 100
MODEL_CHARS_MAX: Final = 200
TEMPERATURE_MAX: Final = 2
TOKENS_MAX: Final = 1_000_000
TEMPLATES: Final = ("template", "system")


class Prompts:
    """Look, write, remove."""

    def __init__(
        self,
        definitions: Definitions,
        versions: Versions,
        placeholders: Placeholders,
        given: Collection[str],
        stages_named: StagesNamed = lambda text: (),
    ) -> None:
        """`given`: what every template has a value for."""
        self._stages_named = stages_named
        self._definitions = definitions
        self._versions = versions
        self._placeholders = placeholders
        self._given = frozenset(given)

    # --- looking ---

    async def list(self) -> list[PromptRecord]:
        """All there are, in the order of their ids."""
        return [prompt_of(one) for one in (await self._definitions.latest([Kind.PROMPT])).definitions]

    async def get(self, prompt_id: str) -> PromptRecord:
        """Raises `PromptUnknown`."""
        return _known(prompt_id, await self._versions.last(Kind.PROMPT, prompt_id))

    async def history(self, prompt_id: str, *, limit: int) -> Sequence[Definition]:
        """Newest first. Raises `PromptUnknown`."""
        await self.get(prompt_id)
        return await self._definitions.versions(Kind.PROMPT, prompt_id, limit=limit)

    async def used_by(self) -> dict[str, Sequence[str]]:
        """Of each prompt that is used, the workflows that run with it."""
        used: dict[str, dict[str, None]] = {}
        for workflow_id, stage, _ in await self._running():
            if prompt_id := prompt_used(stage):
                used.setdefault(prompt_id, {})[workflow_id] = None
        return {prompt_id: [*workflow_ids] for prompt_id, workflow_ids in used.items()}

    async def version(self, prompt_id: str, version: int) -> PromptRecord:
        """As it was then. Raises `PromptUnknown`, and `VersionUnknown` for one that is not kept."""
        await self.get(prompt_id)
        found = await self._definitions.version(Kind.PROMPT, prompt_id, version)
        if found is None or found.body is None:
            raise VersionUnknown(f"{prompt_id} has no version {version} that is kept", field="version")
        return prompt_of(found)

    async def since(self, prompt_id: str, version: int) -> Since | None:
        """What others have made of it since that version; None: nothing."""
        former, later = await self._versions.after(Kind.PROMPT, prompt_id, version)
        if not later:
            return None
        found = None
        if former is not None and later[0].body is not None:
            found = self.difference(prompt_of(former), prompt_of(later[0]))
        return since(later, found)

    def difference(self, old: PromptRecord, new: PromptRecord) -> Sequence[Difference]:
        return differences(_as_written(old), _as_written(new))

    def unused(self, prompt: PromptRecord) -> Sequence[str]:
        """What it declares and does not use."""
        return sorted(set(prompt.placeholders) - {name for used in self._used(prompt).values() for name in used})

    async def lacking(self, prompt: PromptRecord) -> Sequence[tuple[str, str]]:
        """What it asks for and the workflows that run with it do not have, each after the field that does."""
        found = []
        for workflow_id, stage, earlier in await self._users(prompt.prompt_id):
            if absent := not_before(stage, earlier, prompt, self._stages_named):
                found.append(("template", f"{workflow_id} uses it and has no stage {', '.join(absent)} before that"))
            if missing := unfilled(stage, prompt):
                found.append(("placeholders", f"{workflow_id} uses it and gives no value for {', '.join(missing)}"))
        return found

    # --- changing ---

    async def create(self, prompt: PromptRecord, *, by: str) -> PromptRecord:
        """Under the id that its name gives. Raises `PayloadInvalid`, or `StateConflict` where another has it."""
        self._check(prompt)
        prompt_id = definition_id_of("pr", prompt.name)
        prompt = msgspec.structs.replace(prompt, prompt_id=prompt_id)

        def change(last: Definition | None) -> bytes:
            if last is not None and last.body is not None:
                raise StateConflict(f"there is a prompt {prompt_id} already: take another name", field="name")
            return body_of(prompt)

        return prompt_of(await self._versions.change(Kind.PROMPT, prompt_id, change, by=by, action="create"))

    async def edit(
        self,
        prompt_id: str,
        edit: Callable[[PromptRecord], PromptRecord],
        *,
        by: str,
        comment: str = "",
        version: int | None = None,
    ) -> PromptRecord:
        """Written as `edit` makes it of what it was. `version`: the one that was changed.

        Raises `PromptUnknown`, `PayloadInvalid`, `VersionStale`, or `StateConflict` if what uses it could not go on.
        """
        await self.examine(edit(await self.get(prompt_id)))

        def change(last: Definition | None) -> bytes:
            known = _known(prompt_id, last)
            if known.updated_by == NEWER:
                raise StateConflict(f"{prompt_id} was written by {NEWER}: change it with that")
            changed = edit(known)  # somebody else may have changed the rest of it since
            self._check(changed)
            return body_of(changed)

        return prompt_of(
            await self._versions.change(
                Kind.PROMPT, prompt_id, change, by=by, action="edit", why=comment, expected=version
            )
        )

    async def examine(self, prompt: PromptRecord) -> None:
        """Whether it could be kept as it stands. Raises `PayloadInvalid`, or `StateConflict` if what uses it could not
        go on."""
        self._check(prompt)
        for field, lacking in await self.lacking(prompt):
            raise StateConflict(f"{lacking}: publish that with one first", field=field)

    async def roll_back(self, prompt_id: str, version: int, *, by: str, comment: str = "") -> PromptRecord:
        """As it was in that version, as the next one. Raises as `edit`, and `VersionUnknown`."""
        former = await self.version(prompt_id, version)
        if former.updated_by == NEWER:
            raise StateConflict(f"version {version} of {prompt_id} was written by {NEWER}")
        why = comment or f"back to version {version}"
        return await self.edit(prompt_id, lambda _: former, by=by, comment=why)

    async def remove(self, prompt_id: str, *, by: str, version: int | None = None) -> Sequence[str]:
        """Returns the workflows that were published with it meanwhile.

        Raises `PromptUnknown`, `VersionStale`, or `StateConflict` that names the workflows that run with it."""
        known = await self.get(prompt_id)
        if version is not None and version != known.version:
            raise VersionStale.of(prompt_id, known.version)
        if users := (await self.used_by()).get(prompt_id):
            raise StateConflict(f"{prompt_id} is used by {', '.join(users)}: publish them without it first")
        await self._versions.change(Kind.PROMPT, prompt_id, lambda _: None, by=by, action="remove", expected=version)
        return (await self.used_by()).get(prompt_id, [])

    # --- details ---

    def _check(self, prompt: PromptRecord) -> None:
        """Raises `PayloadInvalid` with the field for what is no template, or names what nothing has a value for."""
        if taken := sorted(self._given & set(prompt.placeholders)):
            there = f"placeholders has {', '.join(taken)}, which every template has a value for anyway"
            raise PayloadInvalid(there, field="placeholders")
        for field, used in self._used(prompt).items():
            if unknown := sorted(set(used) - self._given - set(prompt.placeholders)):
                given = ", ".join(sorted(self._given))
                wrong = f"{field} names {', '.join(unknown)}: declare it in placeholders, or use one of {given}"
                raise PayloadInvalid(wrong, field=field)

    def _used(self, prompt: PromptRecord) -> dict[str, Collection[str]]:
        return {field: self._placeholders_of(field, getattr(prompt, field) or "") for field in TEMPLATES}

    def _placeholders_of(self, field: str, text: str) -> Collection[str]:
        try:
            return self._placeholders(text)
        except PayloadInvalid as error:
            raise PayloadInvalid(f"{field}: {error.public_message}", field=field) from error

    async def _users(self, prompt_id: str) -> Sequence[tuple[str, Any, Sequence[Any]]]:
        """The workflows that run and use it, each with the stage, and those before it."""
        return [one for one in await self._running() if prompt_used(one[1]) == prompt_id]

    async def _running(self) -> Sequence[tuple[str, Any, Sequence[Any]]]:
        """Every stage of what is published, with its workflow, and the stages before it."""
        published = [workflow_of(one) for one in (await self._definitions.latest([Kind.PUBLISHED])).definitions]
        return [
            (one.workflow_id, stage, (one.stages or ())[:at])
            for one in published
            for at, stage in enumerate(one.stages or ())
        ]


def _as_written(prompt: PromptRecord) -> dict[str, Any]:
    """As it is asked for over HTTP; what is not there is not said."""
    written = {
        "name": prompt.name,
        "template": prompt.template,
        "system": prompt.system,
        "placeholders": list(prompt.placeholders),
        "model": prompt.model,
        "temperature": prompt.temperature,
        "maxTokens": prompt.max_tokens,
    }
    return {name: value for name, value in written.items() if value is not None}


def _known(prompt_id: str, last: Definition | None) -> PromptRecord:
    if last is None or last.body is None:
        raise PromptUnknown(f"there is no prompt {ascii(prompt_id)[1:-1][:80]}", field="promptId")
    return prompt_of(last)
