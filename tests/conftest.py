"""What every test shares: the switch that turns skips into failures, and a Ray."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterator

import pytest

# A server that is stopped under its watchers is nothing to write home about.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")


def _stop_ray() -> None:
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        ray.shutdown()


@pytest.fixture(scope="session")
def ray_of_the_session() -> Iterator[None]:
    """Sees to it that no Ray outlives the tests."""
    yield
    _stop_ray()


@pytest.fixture
def ray_cluster(ray_of_the_session: None) -> None:
    """A small Ray on this machine. Backends that find it running leave it running, so that the
    tests of a session start it once: it takes three seconds and, on a busy machine, luck.
    """
    from fleet.launcher import RayBackend

    if not ("ray" in sys.modules and sys.modules["ray"].is_initialized()):
        RayBackend()


@pytest.fixture
def no_ray(ray_of_the_session: None) -> Iterator[None]:
    """For a test that wants a cluster of its own."""
    _stop_ray()
    yield
    _stop_ray()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fail-on-skip",
        action="store_true",
        help="a test that is skipped for want of a program counts as failed",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that start a Ray come first.

    In a process that has run a thousand tests a server of Ray now and then never came up, and Ray
    waits half a minute for it; in a young process that was not seen. Nobody knows why.
    """
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)


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
