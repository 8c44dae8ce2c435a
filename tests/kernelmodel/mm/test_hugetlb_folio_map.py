"""The folio map of a huge page file: runs tell what a dict of pages would."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kernelmodel.mm.hugetlb_folio_map import HugetlbFolioMap

ORDER = 9
END = 24
RANGES = st.tuples(st.integers(0, END), st.integers(0, END))
STEPS = st.lists(st.tuples(st.booleans(), RANGES), max_size=12)


def pages(runs: list[tuple[int, int, int]]) -> list[tuple[int, int]]:
    return [(index + k, pfn + (k << ORDER)) for index, pfn, n in runs for k in range(n)]


@given(STEPS, RANGES)
def test_a_folio_map_holds_what_a_dict_would(
    steps: list[tuple[bool, tuple[int, int]]], window: tuple[int, int]
) -> None:
    folios, model, fresh = HugetlbFolioMap(ORDER), dict[int, int](), 1
    for fill, (start, end) in steps:
        if fill:
            for low, high in folios.gaps(start, end):
                folios.put(low, [(fresh << ORDER, high - low)])
                model |= {low + k: fresh + k << ORDER for k in range(high - low)}
                fresh += 2 * (high - low)
        else:
            runs, indices = folios.take(start, end)
            gone = [index for index in sorted(model) if start <= index < end]
            assert [index for low, high in indices for index in range(low, high)] == gone
            assert [pfn + (k << ORDER) for pfn, n in runs for k in range(n)] == [
                model.pop(index) for index in gone
            ]
    assert pages(folios.runs()) == sorted(model.items())
    assert folios.total == len(model)
    inside = [index for index in range(*window) if index in model]
    assert pages(folios.within(*window)) == [(index, model[index]) for index in inside]
    missing = [index for index in range(*window) if index not in model]
    assert [at for low, high in folios.gaps(*window) for at in range(low, high)] == missing
