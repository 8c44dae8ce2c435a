"""Nothing crosses the jump but memory: the next kernel boots in a process that is given a file."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from kernelmodel import kexec
from kernelmodel.boot import boot
from kernelmodel.handover import Handover, save
from kernelmodel.machine import Machine, MachineSpec
from kernelmodel.memory import MIB
from kernelmodel.sim.clock import Clock
from kernelmodel.sim.cost import CostModel
from tests.kernelmodel.kernels import CONFIG
from tests.kernelmodel.luo_v4.hosts import (
    FINISH,
    PREPARE,
    UPDATED,
    Agent,
    freeze,
    luo_of,
    power_on,
    with_subsystems,
)

ROOT = Path(__file__).parents[3]
CONTENT = bytes(range(256)) * 100


def main(record: Path) -> None:
    """The other process."""
    handover = Handover.load(record)
    machine = Machine(MachineSpec((256 * MIB,), 2))
    machine.memory = handover.memory_of()
    assert handover.firmware.kernel is not None
    release = kexec.release_at(machine, handover.firmware.kernel[0])
    clock = Clock(CostModel.load(), 2, 0)
    kernel = boot(machine, release, handover.firmware, clock, config=CONFIG)
    log, _ = with_subsystems(kernel, "s")
    agent = Agent(kernel)
    assert agent.state() is UPDATED
    fd = agent.restore_fd(agent.retrieve_session("vm"), 7)
    data = agent.task.pread(fd, len(CONTENT), 0)
    agent.set_event(FINISH)
    found = {
        "content": hashlib.sha256(data).hexdigest(),
        "sessions": [session.name.decode() for session in luo_of(kernel).sessions.sessions],
        "subsystem": log,
        "release": release.name,
    }
    sys.stdout.write(json.dumps(found))


def test_the_next_kernel_needs_memory_and_firmware_and_nothing_else() -> None:
    kernel = power_on()
    with_subsystems(kernel, "s")
    agent = Agent(kernel)
    agent.preserve_fd(agent.create_session("vm"), agent.memfd(len(CONTENT), CONTENT), 7)
    agent.create_session("nobody's")
    agent.set_event(PREPARE)
    freeze(kernel)
    assert kernel.kexec_image is not None
    _, firmware = kexec.jump(kernel, kernel.kexec_image)
    with TemporaryDirectory() as folder:  # pytest would keep files as long as memory for days
        record = Path(folder) / "boot2.json"
        save(record, 2, kernel.memory, firmware)
        code = f"from pathlib import Path\nfrom {__name__} import main\nmain(Path({str(record)!r}))"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    data = 100 + ord("s") + 1000
    assert json.loads(done.stdout) == {
        "content": hashlib.sha256(CONTENT).hexdigest(),
        "sessions": ["vm"],
        "subsystem": [["boot", "s", data], ["finish", "s", data]],
        "release": "6.18+luo-v4",
    }
