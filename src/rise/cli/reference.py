"""Makes the reference pages from the code: `python -m rise.cli.reference`; with `--check` only compares.

Refuses: to know anything that the code does not say. A page is changed by changing what it is made from.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import SecretStr
from pydantic_core import PydanticUndefined

from rise import errors
from rise.cli import cli_page, http_page, telemetry_page
from rise.errors import Rejected, RiseError
from rise.settings import Settings

PAGES = Path("docs")
_MADE = "<!-- Made from the code by `python -m rise.cli.reference`. Change the code, not this page. -->"


def settings_page() -> str:
    rows = "\n".join(_setting(name, field) for name, field in Settings.model_fields.items())
    return f"""# Settings

{_MADE}

Read once at start, from the environment or a file `.env` in the working directory. All problems are reported at
once, each with its remedy, and nothing is started then (exit code 2). A name with `RISE_` that is none of these changes
nothing; the log says so at the start, and so does `rise doctor`, with the name that may be meant.

| Setting | Default | Meaning |
|---|---|---|
{rows}
"""


def errors_page() -> str:
    rows = "\n".join(_error(error) for error in _error_classes(RiseError))
    return f"""# Errors

{_MADE}

`code` is stable: programs may depend on it. *Retry* says whether the same request may succeed later.
Where HTTP says one *as* another, the log and the metrics have its own.

| Code | HTTP | Retry | Meaning |
|---|---|---|---|
{rows}
"""


def main() -> None:
    pages = {
        PAGES / "settings.md": settings_page(),
        PAGES / "errors.md": errors_page(),
        PAGES / "http.md": http_page.page(_MADE),
        PAGES / "cli.md": cli_page.page(_MADE),
        PAGES / "telemetry.md": telemetry_page.page(_MADE),
    }
    stale = [path for path, text in pages.items() if not path.exists() or path.read_text() != text]
    if "--check" not in sys.argv:
        for path, text in pages.items():
            path.write_text(text)
    elif stale:
        print(f"not up to date: {', '.join(map(str, stale))}; run python -m rise.cli.reference", file=sys.stderr)
        sys.exit(1)


def _setting(name: str, field: Any) -> str:
    default = field.get_default(call_default_factory=True)
    if default is None or default is PydanticUndefined or default in ({}, ()):
        shown = "–"
    elif isinstance(default, tuple):
        shown = f"`{','.join(f'{item:g}' for item in default)}`"
    else:
        shown = f"`{default}`"
    choices = [choice for choice in _literals(field.annotation) if isinstance(choice, str)]
    meaning = field.description + (f" One of {', '.join(f'`{choice}`' for choice in choices)}." if choices else "")
    if SecretStr in (field.annotation, *get_args(field.annotation)):
        meaning += " Secret."
    return f"| `RISE_{name.upper()}` | {shown} | {meaning} |"


def _literals(annotation: Any) -> list[Any]:
    found: list[Any] = []
    for part in get_args(annotation):
        found += _literals(part) if get_args(part) else [part]
    return found


def _error(error: type[RiseError]) -> str:
    if issubclass(error, Rejected):
        status = str(error.http_status)
    elif issubclass(error, errors.Unavailable):
        status = f"503, as `{errors.CapabilityClosed.code}`" if error.is_closed else "503"
    else:
        status = "–"
    meaning = (error.__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")
    return f"| `{error.code}` | {status} | {'yes' if error.retryable else 'no'} | {meaning} |"


def _error_classes(parent: type[RiseError]) -> Iterator[type[RiseError]]:
    for child in parent.__subclasses__():
        yield child
        yield from _error_classes(child)


if __name__ == "__main__":
    main()
