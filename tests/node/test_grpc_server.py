"""Paging and starting, as every gRPC server of lufleet does it."""

from __future__ import annotations

import asyncio

import pytest

from node.grpc_server import AddressInUse, NotHere, check_free, page, start_server

NAMES = ("a", "b", "c", "d", "e")


@pytest.mark.parametrize(
    ("page_size", "page_token"),
    [(-1, ""), (2, "next"), (2, "-1"), (2, "1.5"), (0, "x"), (2, "9" * 5000)],
)
def test_what_is_no_page_is_refused(page_size: int, page_token: str) -> None:
    with pytest.raises(NotHere) as caught:
        page(NAMES, page_size, page_token)
    assert caught.value.reason == "NO_SUCH_PAGE"


@pytest.mark.parametrize(
    ("page_size", "page_token", "names", "next_token"),
    [
        (2, "", "ab", "2"),
        (2, "2", "cd", "4"),
        (2, "4", "e", ""),
        (5, "", "abcde", ""),
        (0, "", "abcde", ""),
        (2, "9", "", ""),
    ],
)
def test_a_list_is_cut_into_pages(
    page_size: int, page_token: str, names: str, next_token: str
) -> None:
    assert page(NAMES, page_size, page_token) == (tuple(names), next_token)


def test_two_servers_do_not_share_a_port() -> None:
    async def run() -> None:
        first, port = await start_server("127.0.0.1:0", {})
        try:
            with pytest.raises(AddressInUse, match=str(port)):
                await start_server(f"127.0.0.1:{port}", {})
            with pytest.raises(AddressInUse, match="Address already in use"):
                check_free(f"127.0.0.1:{port}", "127.0.0.1", port)
            check_free("127.0.0.1:0", "127.0.0.1", 0)
            check_free("nowhere.invalid:1", "nowhere.invalid", 1)  # for gRPC to tell
        finally:
            await first.stop(None)

    asyncio.run(run())
