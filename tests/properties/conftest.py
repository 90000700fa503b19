"""What holds for every input, tried with many: so many in CI, more with `--examples`."""

from __future__ import annotations

import properties_trying
import pytest


def pytest_configure(config: pytest.Config) -> None:
    properties_trying.scale_with(config.getoption("examples"))
