"""What holds for every input, tried with many: so many in CI, more with `--examples`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import properties_trying
import pytest


def pytest_configure(config: pytest.Config) -> None:
    properties_trying.scale_with(config.getoption("examples"))


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.slow)
