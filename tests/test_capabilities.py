"""What Rise can do now is said when it changes, and only a loss is a warning."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from rise.capabilities import CONSEQUENCES, CapabilityRegistry, CapabilityStatus
from rise.testing.clock import ManualClock


@pytest.mark.req("CAP-5", "CAP-7")
def test_a_change_is_logged_once_and_a_recovery_is_no_warning() -> None:
    capabilities = CapabilityRegistry(ManualClock())
    with capture_logs() as logged:
        for status in ("degraded", "available", "available", "unavailable"):
            capabilities.set("disk", CapabilityStatus(status), "said")
    assert [(entry["event"], entry["status"], entry["log_level"]) for entry in logged] == [
        ("startup.capability", "degraded", "info"),
        ("capability.state_changed", "available", "info"),
        ("capability.state_changed", "unavailable", "warning"),
    ]
    assert logged[-1]["consequence"] == CONSEQUENCES["disk"]
