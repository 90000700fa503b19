"""The mirror in RabbitMQ: every promise, and what only RabbitMQ can do wrong."""

from __future__ import annotations

import pytest
from rabbit_stage import RabbitStage

from rise.testing.conformance.mirror import MirrorConformance


@pytest.mark.req("TST-3", "CPY-1")
class TestRabbitMirror(MirrorConformance):
    @pytest.fixture
    def stage(self, rabbit: RabbitStage) -> RabbitStage:
        return rabbit
