"""Promise: a stream depends on the seed and its path alone, and on all of either."""

from __future__ import annotations

import pytest

from kernelmodel.sim.rng import draw, stream, stream_key

PATHS: list[tuple[int, tuple[str | int, ...]]] = [
    (7, ()),
    (7, ("host",)),
    (7, ("host", 17, "boot")),
    (7, ("host", "17", "boot")),
    (7, ("host", 17, "boo", "t")),
    (7, ("host", 17, "")),
    (7, ("host17", "boot")),
    (-7, ("host",)),
    (8, ("host",)),
    (7 + 2**64, ("host",)),
]


def test_different_paths_are_different_streams() -> None:
    assert len({stream_key(seed, *path) for seed, path in PATHS}) == len(PATHS)
    assert len({stream(seed, *path).getrandbits(64) for seed, path in PATHS}) == len(PATHS)


def test_the_same_path_is_the_same_stream_whatever_else_was_drawn() -> None:
    first = stream(7, "host", 17, "boot")
    stream(7, "host", 17, "fault").getrandbits(64)
    first.getrandbits(5)
    second = stream(7, "host", 17, "boot")
    second.getrandbits(5)
    assert first.getrandbits(64) == second.getrandbits(64)


def test_known_values_stay() -> None:
    """Digests of runs depend on them: a change here is a change of every run."""
    rng = stream(7, "host", 17, "boot")
    assert [rng.randrange(1000) for _ in range(5)] == [294, 261, 237, 49, 334]
    key = stream_key(7, "host", 17, "cost")
    assert [draw(key, "initcalls", index, 1000) for index in range(5)] == [597, 183, 632, 590, 417]


@pytest.mark.parametrize("bound", [1, 2, 1000, 1_000_000])
def test_draws_stay_within_their_bound_and_fill_it(bound: int) -> None:
    key = stream_key(1)
    drawn = [draw(key, "op", index, bound) for index in range(1000)]
    assert min(drawn) >= 0
    assert max(drawn) < bound
    assert max(drawn) >= bound * 98 // 100 or bound == 1


def test_draws_of_names_and_indices_do_not_meet() -> None:
    key = stream_key(1)
    names = [("a", 1), ("1 a", 1), ("a", 11), ("1a", 1), (" a", 1)]
    assert len({draw(key, name, index, 2**63) for name, index in names}) == len(names)
