"""The hugetlb boot parameters, wrong ones first."""

from __future__ import annotations

import pytest

from kernelmodel.mm.hugetlb_cmdline import parse_cmdline

ROWS = [
    # command line, pages by order in the order of registration, default order, warnings
    ("hugepagesz=3M hugepages=5", {18: 0, 9: 0}, 9, 2),
    ("hugepagesz=x hugepages=5 hugepages=7", {18: 0, 9: 7}, 9, 2),
    ("hugepages=5 hugepages=7", {18: 0, 9: 5}, 9, 1),
    ("hugepagesz=1G hugepages=5 hugepages=7", {18: 5, 9: 0}, 9, 1),
    ("hugepagesz=1G hugepages=5 hugepagesz=1G hugepages=7", {18: 5, 9: 0}, 9, 2),
    ("hugepagesz=1G hugepages=five", {18: 0, 9: 0}, 9, 1),
    ("hugepagesz=1G hugepages=0:5,7:1", {18: 0, 9: 0}, 9, 1),
    ("hugepagesz=1G hugepages=0:5,", {18: 5, 9: 0}, 9, 0),
    ("hugepagesz=1G hugepages=0:5,x", {18: 0, 9: 0}, 9, 1),
    ("hugepagesz=1G hugepages=0:5x", {18: 5, 9: 0}, 9, 0),
    ("hugepagesz=1G hugepages=5,0:2", {18: 5, 9: 0}, 9, 0),
    ("hugepagesz=1G hugepages=0:2,5", {18: 0, 9: 0}, 9, 1),
    ("hugepagesz=1G hugepages=1K", {18: 1, 9: 0}, 9, 0),
    ("hugepagesz=1G hugepages=x hugepages=6", {18: 6, 9: 0}, 9, 1),
    ("default_hugepagesz=2G", {18: 0, 9: 0}, 9, 1),
    ("default_hugepagesz=1G default_hugepagesz=2M hugepages=3", {18: 0, 9: 0}, 18, 2),
    ("hugepages=5 hugepagesz=2M hugepages=7", {9: 5, 18: 0}, 9, 1),
    ("", {18: 0, 9: 0}, 9, 0),
    ("quiet liveupdate=on hugepages=5", {18: 0, 9: 5}, 9, 0),
    ("hugepages=5 default_hugepagesz=1G", {18: 5, 9: 0}, 18, 0),
    ("default_hugepagesz=1G hugepages=4", {18: 4, 9: 0}, 18, 0),
    ("default_hugepagesz=1G hugepagesz=1G hugepages=4", {18: 4, 9: 0}, 18, 0),
    ("default_hugepagesz=1G hugepages=4 hugepagesz=1G hugepages=5", {18: 4, 9: 0}, 18, 2),
    ("hugepagesz=1g hugepages=4 hugepagesz=2048K hugepages=6", {18: 4, 9: 6}, 9, 0),
    ("hugepagesz=0x40000000 hugepages=4", {18: 4, 9: 0}, 9, 0),
    ("hugepagesz=02M hugepages=4", {9: 4, 18: 0}, 9, 0),
    ("hugepagesz=010000000 hugepages=3", {9: 3, 18: 0}, 9, 0),  # octal
    ("hugepagesz=09M hugepages=3", {18: 0, 9: 0}, 9, 2),
    ("hugepages=010", {18: 0, 9: 10}, 9, 0),  # and this is decimal
    ('"hugepages=3"', {18: 0, 9: 3}, 9, 0),
    ('hugepages="4"', {18: 0, 9: 4}, 9, 0),
    ("default-hugepagesz=1G hugepages=1", {18: 1, 9: 0}, 18, 0),
    ("hugepages=4 -- hugepagesz=1G hugepages=7", {18: 0, 9: 4}, 9, 0),
]


@pytest.mark.parametrize(("cmdline", "pages", "default", "warnings"), ROWS)
def test_a_command_line_is_read_as_the_kernel_reads_it(
    cmdline: str, pages: dict[int, int], default: int, warnings: int
) -> None:
    request = parse_cmdline(cmdline, frozenset({0, 1}))
    assert [(size.order, size.nr) for size in request.sizes] == list(pages.items())
    assert request.default_order == default
    assert len(request.warnings) == warnings, request.warnings


def test_counts_by_node_add_up() -> None:
    size = parse_cmdline("hugepagesz=1G hugepages=0:2,1:5", frozenset({0, 1})).sizes[0]
    assert (size.nr, size.by_node) == (7, {0: 2, 1: 5})
