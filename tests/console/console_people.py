"""What people at the console do, as the tests say it."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

import httpx

SignIn = Callable[[str], Awaitable[httpx.AsyncClient]]
"""Shows a token, and is the browser that has its cookie."""
Keep = Callable[..., Awaitable[str]]
"""Has a message accepted, suspended if that is said, and is its task's id."""


def form_key(page: httpx.Response) -> str:
    """What the forms of the page's session bring back."""
    found = re.search(r'name="form_key" value="([0-9a-f]+)"', page.text)
    assert found is not None, page.text
    return found[1]
