"""What every test shares: the switch that turns skips into failures, and a Ray."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Generator, Iterator

import pytest

# A server that is stopped under its watchers is nothing to write home about.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    """One small Ray for the tests of a module: backends that find it running leave it running."""
    from fleet.launcher import RayBackend

    owner = RayBackend()
    yield
    asyncio.run(owner.close())


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fail-on-skip",
        action="store_true",
        help="a test that is skipped for want of a program counts as failed",
    )


def _skip_counts_as_failure(config: pytest.Config) -> bool:
    return bool(config.getoption("--fail-on-skip"))


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.outcome == "skipped" and not hasattr(report, "wasxfail"):
        why = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"skipped, which --fail-on-skip forbids: {why}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if _skip_counts_as_failure(item.config):
        _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if _skip_counts_as_failure(collector.config):
        _refuse_skip(report)
    return report
