"""What every open file answers alike."""

from __future__ import annotations

import pytest

from kernelmodel.errors import BadAddress
from kernelmodel.mm.memfd import MFD_HUGETLB
from tests.kernelmodel.kernels import Agent, power_on

FIGETBSZ = 2


def test_what_a_file_says_of_its_blocks() -> None:
    agent = Agent(power_on())
    small, huge = agent.task.memfd_create(), agent.task.memfd_create(MFD_HUGETLB)
    sizes = {agent.device: 4096, agent.session("s"): 4096, small: 4096, huge: 2 << 20}
    for fd, wanted in sizes.items():
        arg = bytearray(4)
        assert agent.task.ioctl(fd, FIGETBSZ, arg) == 0
        assert int.from_bytes(arg, "little") == wanted
        with pytest.raises(BadAddress):
            agent.task.ioctl(fd, FIGETBSZ, bytes(4))
