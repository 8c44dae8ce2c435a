"""One boot of a script in a process of its own; `fleet.fresh` starts it.

On its command line are the number of the boot, the record of what it is given (empty: nothing,
power-on) and the record to leave (empty: none, it is the last boot); on standard input the rest of
the script, in which earlier boots are empty. It writes the trace to standard output.

Exit codes: 0 played, and the next boot may begin; 2 the script asks for what is not there; 3 the
kernel ended; 4 the model failed. Standard error says more. Imports are few: the process lives for
some tenths of a second.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from kernelmodel import handover
from kernelmodel.conform import Host, Script, ScriptError, how_it_ended
from kernelmodel.errors import KernelError, KernelPanic, ModelBug

__all__ = ["BAD_SCRIPT", "KERNEL_ENDED", "MODEL_FAILED", "main"]

BAD_SCRIPT: Final = 2
KERNEL_ENDED: Final = 3
MODEL_FAILED: Final = 4


def main(boot: int, given: str, leave: str) -> int:
    """Play one boot; the exit code."""
    host = Host(Script.parse(sys.stdin.read()))
    try:
        kernel = host.take_over(handover.Handover.load(Path(given))) if given else host.power_on()
        for line in host.run_boot(kernel, boot - 1):
            sys.stdout.write(line + "\n")
        if leave:
            _, firmware = host.kexec(kernel)
            handover.save(Path(leave), boot + 1, host.machine.memory, firmware)
    except (KernelPanic, KernelError) as ending:
        sys.stderr.write(how_it_ended(ending))
        return KERNEL_ENDED
    except ScriptError as wrong:
        sys.stderr.write("\n".join(what for _, what in wrong.faults))
        return BAD_SCRIPT
    except ModelBug as bug:
        sys.stderr.write(str(bug))
        return MODEL_FAILED
    return 0


if __name__ == "__main__":
    raise SystemExit(main(int(sys.argv[1]), *sys.argv[2:]))
