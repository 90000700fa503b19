"""What every test may use."""

from __future__ import annotations

from collections.abc import Generator

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=15, help="how many times the kill proof kills")
    parser.addoption("--seed", type=int, default=20260101, help="decides when and what the kill proof kills")
    parser.addoption("--examples", type=int, default=100, help="random sequences per comparison of fake and backend")
    parser.addoption("--seeds", type=int, default=300, help="how many worlds are simulated")
    parser.addoption("--no-skips", action="store_true", help="a test that is skipped has failed")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _fail_if_skipped(report, item.config)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _fail_if_skipped(report, collector.config)
    return report


def _fail_if_skipped(report: pytest.TestReport | pytest.CollectReport, config: pytest.Config) -> None:
    """Where everything is there that tests need, a skip hides that something is not."""
    is_expected_to_fail = hasattr(report, "wasxfail")
    if report.skipped and not is_expected_to_fail and config.getoption("no_skips"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{reason}; with --no-skips that is a failure"
