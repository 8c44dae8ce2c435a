"""Failure domains: a full one takes nobody, and whoever waits is tried again when it has room."""

from __future__ import annotations

from fleet.domains import Domains

R1, R2, P1 = ("rack", "r1"), ("rack", "r2"), ("power", "p1")
WHERE = {"a": (P1, R1), "b": (P1, R1), "c": (P1, R2), "d": (P1, R2)}


def test_a_host_takes_room_in_all_its_domains_or_in_none() -> None:
    books = Domains({"rack": 1, "power": 2})
    assert books.take("a", WHERE["a"])
    assert not books.take("b", WHERE["b"])
    assert books.unavailable == {P1: 1, R1: 1}
    assert books.take("c", WHERE["c"])
    assert books.is_full(P1)
    assert books.is_full(R2)


def test_who_waits_is_tried_again_in_order_when_there_is_room() -> None:
    books = Domains({"rack": 1, "power": 2})
    assert [books.take(host, WHERE[host]) for host in "acbd"] == [True, True, False, False]
    books.give_back(WHERE["c"])
    # b waits for power first, finds its rack full and waits there; d gets the room.
    assert books.take_parked(WHERE) == ["d"]
    books.give_back(WHERE["a"])
    assert books.take_parked(WHERE) == ["b"]
    assert books.take_parked(WHERE) == []


def test_who_waits_in_vain_is_named() -> None:
    books = Domains({"rack": 1, "power": 9})
    books.take("a", WHERE["a"])
    books.take("b", WHERE["b"])
    assert books.first_full_with_waiters() == ("rack", "r1", 1)


def test_a_host_without_limited_domains_always_fits() -> None:
    assert Domains({}).take("a", ())
