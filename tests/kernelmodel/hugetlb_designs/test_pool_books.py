"""For every design: whatever is done in whatever order, no page is counted twice and none is lost.

`LUFLEET_POOL_EXAMPLES` sets how many sequences are tried, each another one then; without it it is
a few, always the same.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

from tests.kernelmodel.hugetlb_designs.pool_books import PoolBooks

EXAMPLES = os.environ.get("LUFLEET_POOL_EXAMPLES")
SETTINGS = settings(
    max_examples=int(EXAMPLES or "80"),
    stateful_step_count=60,
    deadline=None,
    derandomize=EXAMPLES is None,
    suppress_health_check=list(HealthCheck),
)


class FlbCountsBooks(PoolBooks):
    release = "7.3.4+guest-memfd"


TestFlbCounts = FlbCountsBooks.TestCase
TestFlbCounts.settings = SETTINGS
