"""Plain memfds that no host can preserve, as a running 7.3.4 with 2 GiB refused them."""

from __future__ import annotations

import pytest

from kernelmodel.errors import NoMemory
from kernelmodel.memory import PAGE_SIZE
from tests.kernelmodel.kernels import Agent, power_on

TIB = 1 << 40


@pytest.mark.parametrize("size", [TIB, TIB - PAGE_SIZE])
def test_a_file_with_too_many_pages_for_one_array_is_refused_before_a_page_is_filled(
    size: int,
) -> None:
    """The first is too large for kvmalloc(), the array of the second for this host's memory."""
    kernel = power_on()
    agent = Agent(kernel)
    session, fd = agent.session("s"), agent.memfd(size)
    free = kernel.page_alloc.nr_free_pages()
    with pytest.raises(NoMemory):
        agent.task.preserve_fd(session, fd, 1)
    assert kernel.page_alloc.nr_free_pages() == free
    agent.task.preserve_fd(session, agent.memfd(2 * PAGE_SIZE), 1)
