"""For every design: whatever is done in whatever order, no page is counted twice and none is lost.

`LUFLEET_POOL_EXAMPLES` sets how many sequences are tried, each another one then; without it it is
a few, always the same.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

from kernelmodel.hugetlb_designs import DESIGNS
from kernelmodel.releases import CATALOGUE
from tests.kernelmodel.hugetlb_designs.pool_books import PoolBooks
from tests.kernelmodel.hugetlb_designs.v4_books import V4Books

EXAMPLES = os.environ.get("LUFLEET_POOL_EXAMPLES")


def a_few(number: int) -> settings:
    return settings(
        max_examples=int(EXAMPLES or number),
        stateful_step_count=60,
        deadline=None,
        derandomize=EXAMPLES is None,
        suppress_health_check=list(HealthCheck),
    )


class FlbCountsBooks(PoolBooks):
    release = "7.3.4+guest-memfd"


class FrozenPoolBooks(PoolBooks):
    release = "7.3.4+frozen-pool"


class OursBooks(PoolBooks):
    release = "7.3.4+ours"


class SubsystemPrepareBooks(V4Books):
    release = "7.3.4+luo-v4+subsystem-prepare"


class GlobalStateBooks(V4Books):
    release = "7.3.4+luo-v4+global-state"


class FilesThenSubsystemBooks(V4Books):
    release = "7.3.4+luo-v4+files-then-subsystem"


class HandlerSubsystemBooks(V4Books):
    release = "7.3.4+luo-v4+handler-subsystem"


TestFlbCounts = FlbCountsBooks.TestCase
TestFlbCounts.settings = a_few(40)
TestFrozenPool = FrozenPoolBooks.TestCase
TestFrozenPool.settings = a_few(15)
TestOurs = OursBooks.TestCase
TestOurs.settings = a_few(15)
TestSubsystemPrepare = SubsystemPrepareBooks.TestCase
TestSubsystemPrepare.settings = a_few(12)
TestGlobalState = GlobalStateBooks.TestCase
TestGlobalState.settings = a_few(12)
TestFilesThenSubsystem = FilesThenSubsystemBooks.TestCase
TestFilesThenSubsystem.settings = a_few(12)
TestHandlerSubsystem = HandlerSubsystemBooks.TestCase
TestHandlerSubsystem.settings = a_few(12)


def test_every_design_has_its_books_held() -> None:
    books = (
        FlbCountsBooks,
        FrozenPoolBooks,
        OursBooks,
        SubsystemPrepareBooks,
        GlobalStateBooks,
        FilesThenSubsystemBooks,
        HandlerSubsystemBooks,
    )
    assert {CATALOGUE[one.release].hugetlb_design for one in books} == set(DESIGNS)
