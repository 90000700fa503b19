"""What nobody can say while the worker loads the workflows: asked then, it is not "no" but "ask again".

Refuses: to say that there is no such thing before the worker has said what there is.
"""

from __future__ import annotations

from typing import Final

from rise.capabilities import CapabilityRegistry, CapabilityStatus
from rise.errors import CapabilityClosed

STARTING_SECONDS: Final = 1
"""When it is worth asking again while the workflows are loaded."""


def refuse_while_starting(capabilities: CapabilityRegistry, unknown: str) -> None:
    """Raises `CapabilityClosed`, with what its workflows would say, while the worker is not available."""
    worker = capabilities.get("worker")
    if worker is not None and worker.status is not CapabilityStatus.AVAILABLE:
        why = f"{worker.detail}; its workflows say {unknown}"
        raise CapabilityClosed("worker", worker.status, why, retry_after_seconds=STARTING_SECONDS)
