"""What every test may use."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=15, help="how many times the kill proof kills")
    parser.addoption("--seed", type=int, default=20260101, help="decides when and what the kill proof kills")
