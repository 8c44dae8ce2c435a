"""Every corruption of the catalogue ends as its label says, and touches nothing else.

`test_corrupted.py` holds the same labels to recordings of a real kernel; here they are tried on
more handovers, and what no trace shows is looked at: memory, counts, what is asked twice.
"""

from __future__ import annotations

from functools import cache

import pytest

from kernelmodel.corruptions.catalogue import CORRUPTIONS
from kernelmodel.corruptions.corruption import Outcome
from kernelmodel.corruptions.handed_over import NotThere
from tests.conformance.corruption_judge import Seen, look
from tests.sim.spoilt_handovers import sound

KINDS = ("plain", "long", "huge")


@cache
def sane(kind: str) -> Seen:
    return look(kind, None)


@cache
def spoilt(kind: str, label: str) -> Seen:
    return look(kind, CORRUPTIONS[label])


def has_it(kind: str, label: str) -> bool:
    """Whether the handover has what is to be corrupted."""
    try:
        CORRUPTIONS[label].writes(sound(kind).handed_over)
    except NotThere:
        return False
    return True


def differing(one: Seen, other: Seen) -> set[tuple[str, int | None]]:
    keys = {*one.files, *other.files}
    return {key for key in keys if one.files.get(key) != other.files.get(key)}


CASES = [
    pytest.param(kind, label, id=f"{label}-{kind}")
    for label in CORRUPTIONS
    for kind in KINDS
    if has_it(kind, label)
]


def test_every_corruption_is_tried() -> None:
    tried = {case.values[1] for case in CASES}
    # these want more memory, and free memory between files: there are recordings of them
    assert set(CORRUPTIONS) - tried == {"key-of-gigabyte", "key-of-folio-larger"}


#: Hugetlb's shared state is an FLB: who takes that away takes away the files on huge pages.
OF_THE_PROPOSAL = {"flbs-none": "ENODATA", "flb-count-zero": "ENOENT", "flb-page-absent": "ENOENT"}


@pytest.mark.parametrize("label", OF_THE_PROPOSAL)
def test_files_on_huge_pages_do_not_come_back_without_their_shared_state(label: str) -> None:
    seen = spoilt("huge", label)
    assert seen.files["huge", 9] == OF_THE_PROPOSAL[label]


@pytest.mark.parametrize(("kind", "label"), CASES)
def test_it_ends_as_it_says(kind: str, label: str) -> None:
    corruption, seen, normal = CORRUPTIONS[label], spoilt(kind, label), sane(kind)
    changed = differing(seen, normal)
    outcome = corruption.outcome
    if kind == "huge" and label in OF_THE_PROPOSAL:
        assert changed == {("huge", 9)}
        return
    assert bool(seen.panic) == (outcome in {Outcome.PANIC, Outcome.FAULT, Outcome.HANG})
    assert ("page fault" in seen.panic) == (outcome is Outcome.FAULT)
    assert ("hang" in seen.panic) == (outcome is Outcome.HANG)
    if seen.panic:
        return
    assert seen.open == ("EIO" if outcome is Outcome.EIO_AT_OPEN else "ok")
    if outcome in {Outcome.ACCEPTED, Outcome.WRONG_MEMORY}:
        assert not changed
        assert (seen.lost_pages > normal.lost_pages) == (outcome is Outcome.WRONG_MEMORY)
    elif outcome is Outcome.FILE_REFUSED:
        (file,) = changed
        assert seen.files[file] == corruption.errno
    elif outcome is Outcome.CONTENT_CHANGED:
        (file,) = changed
        assert isinstance(seen.files[file], tuple)
    elif outcome is Outcome.LOST:
        assert {seen.files.get(key) for key in changed} <= {"ENOENT", None}
        assert changed
    elif outcome is Outcome.NOT_REVIVED:
        assert set(seen.files.values()) == {"ENOENT"}
        assert seen.number == seen.lost_pages == 0
        assert seen.kexec_count == 1


@pytest.mark.parametrize(("kind", "label"), CASES)
def test_whoever_asks_again_is_told_the_same(kind: str, label: str) -> None:
    seen = spoilt(kind, label)
    for file, answer in seen.again.items():
        assert answer == seen.files[file]


#: In which files of the handover `plain` something else is seen; by default all, or none.
_FIRST, _SECOND = ("session-0", 0), ("session-0", 1)
_OF_FIRST = {("session-0", token) for token in range(3)}
_OF_LAST = {("session-1", token) for token in range(3)}
TOUCHED = {
    "session-block-count-less": _OF_LAST | {("session-1", None)},
    "session-name-unterminated": _OF_FIRST | {("session-0", None)},
    "files-none": _OF_FIRST,
    "file-token-twice": {_SECOND},
    "memfd-seals-unknown": {_FIRST},
    "memfd-size-more": {_FIRST},
    "memfd-size-max": {_FIRST},
    **{
        label: {_SECOND}
        for label in CORRUPTIONS
        if label.startswith(("table-", "folio-", "key-missing", "memfd-folios", "memfd-entry"))
        or label == "memfd-size-zero"
    },
}


@pytest.mark.parametrize("label", [c.values[1] for c in CASES if c.values[0] == "plain"])
def test_only_what_was_corrupted_is_touched(label: str) -> None:
    seen, normal = spoilt("plain", label), sane("plain")
    changed = differing(seen, normal)
    if seen.panic or seen.open != "ok" or not changed:
        return
    everything = {*normal.files, ("session-0", None), ("session-1", None)}
    assert changed == TOUCHED.get(label, everything)


#: What a session of the handover `plain` takes: a block of files, and for each file its entry; for
#: the two with content (2 and 5 folios) a chunk and a table as well.
_FOLIOS, _TABLE, _CHUNK = 2, 1, 1
_SESSION = 1 + 1 + (1 + _FOLIOS + _TABLE + _CHUNK) + (1 + 5 + _TABLE + _CHUNK)
LOST_PAGES = {
    "luo-subtree-missing": 2 * _SESSION + 1 + 1,  # the block of sessions, LUO's blob
    "sessions-none": 2 * _SESSION + 1,
    "session-block-count-less": _SESSION,
    "session-name-unterminated": _SESSION,
    "session-name-twice": 2 * _SESSION,
    "files-none": _SESSION,
    # all blocks of the session that fails are given back
    **{
        label: 2 * _SESSION - 1
        for label, corruption in CORRUPTIONS.items()
        if corruption.outcome is Outcome.EIO_AT_OPEN and label.startswith("file")
    },
    "file-block-loop": 2 * _SESSION,  # but for those of a loop
    "key-of-spare-frame": 1,
    "key-in-scratch": 1,
    "key-of-tree-node": 1,
    "key-missing-table": _CHUNK + _FOLIOS,
    "memfd-entry-absent": _CHUNK + _TABLE + _FOLIOS,
    "memfd-folios-none": _CHUNK + _TABLE + _FOLIOS,
    "memfd-folios-fewer": 1,
    "table-first-zero": _CHUNK + _TABLE + _FOLIOS,
    "table-pages-more": _TABLE + _FOLIOS,
    "table-pages-fewer": _CHUNK + _TABLE + _FOLIOS,
    "table-order": _CHUNK + _TABLE + _FOLIOS,
    "table-chunk-loop": _TABLE + _FOLIOS,
    "table-chunk-absent": _TABLE + _FOLIOS,
    "table-page-absent": _FOLIOS,
    "folio-frame-zero": 1,
    "folio-not-preserved": 1,
    "folio-outside": 1,
    "folio-twice": 1,
}


@pytest.mark.parametrize("label", [c.values[1] for c in CASES if c.values[0] == "plain"])
def test_what_is_lost_is_lost_to_the_page(label: str) -> None:
    """Compared with an update that goes well: what stays reserved, or in use, for nobody."""
    seen, normal = spoilt("plain", label), sane("plain")
    if seen.panic or CORRUPTIONS[label].outcome is Outcome.NOT_REVIVED or label == "key-overlap":
        return
    assert seen.lost_pages - normal.lost_pages == LOST_PAGES.get(label, 0)


@pytest.mark.parametrize(
    ("label", "number", "kexec_count"),
    [
        ("luo-number-max", (1 << 64) - 1, 2),
        ("metadata-version", 1, 1),
        ("metadata-short", 1, 1),
        ("metadata-count-max", 1, 0),
        ("luo-subtree-missing", 0, 2),
        ("flb-data-wrong", 1, 2),
    ],
)
def test_counts_go_on_from_what_was_handed_over(label: str, number: int, kexec_count: int) -> None:
    seen = spoilt("plain", label)
    assert (seen.number, seen.kexec_count) == (number, kexec_count)


def test_a_position_that_no_file_can_have_is_not_taken() -> None:
    seen = spoilt("long", "memfd-position-negative")
    assert seen.files == sane("long").files  # that file was at its start anyway
    assert {answer[1] for answer in seen.files.values() if isinstance(answer, tuple)} >= {0, 77}


@pytest.mark.parametrize(
    ("label", "warning"),
    [
        ("files-none", "counts files but has no block"),
        ("flb-count-zero", "count drops below zero"),
        ("key-missing-table", "vmalloc page"),
        ("table-first-zero", ""),
    ],
)
def test_the_kernel_warns_of_what_it_notices(label: str, warning: str) -> None:
    seen = spoilt("plain", label)
    assert any(warning in text for text in seen.warnings) == bool(warning)


def test_labels_say_who_decides_and_how_it_ends() -> None:
    for label, corruption in CORRUPTIONS.items():
        function, file = corruption.source.split(", ", 1)
        assert function.endswith("()"), label
        assert file.endswith(".c"), label
        assert corruption.what.endswith("."), label
        assert bool(corruption.errno) == (corruption.outcome is Outcome.FILE_REFUSED), label
