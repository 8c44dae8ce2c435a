"""Three FLBs that a test build ties to every file handler. C: lib/tests/liveupdate.c, 7.3.

With CONFIG_LIVEUPDATE_TEST the first handler that registers makes each of them look at what came
over, which loads their counts; further handlers only link them. They carry a magic number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kernelmodel.errors import InvalidArgument, KernelError
from kernelmodel.luo.handler import FileHandler, Flb

if TYPE_CHECKING:
    from kernelmodel.luo.flb import LuoFlbs

__all__ = ["TEST_FLB_MAGIC", "TEST_FLB_NAMES", "LiveupdateTest"]

TEST_FLB_NAMES: Final = tuple(f"liveupdate-test-flb-v{index}" for index in range(3))
TEST_FLB_MAGIC: Final = 0xFEEDF00DCAFEBEE0


class _TestFlbOps:
    """Operations of the FLB with this index."""

    def __init__(self, index: int) -> None:
        self.magic = TEST_FLB_MAGIC + index

    def preserve(self) -> tuple[int, object]:
        """The magic number, and no object."""
        return self.magic, None

    def unpreserve(self, data: int, obj: object) -> None:
        """Nothing to undo."""

    def retrieve(self, data: int) -> object:
        """Raises: InvalidArgument unless the number came over."""
        if data != self.magic:
            raise InvalidArgument("not what was preserved", data=data)
        return data

    def finish(self, data: int, obj: object) -> None:
        """Nothing to free."""


class LiveupdateTest:
    """The test FLBs of one kernel."""

    __slots__ = ("_flbs", "_started", "flbs")

    def __init__(self, flbs: LuoFlbs) -> None:
        self._flbs = flbs
        self._started = False
        self.flbs = tuple(
            Flb(name, _TestFlbOps(index)) for index, name in enumerate(TEST_FLB_NAMES)
        )

    def register(self, handler: FileHandler) -> None:
        """Tie all of them to a handler. C: liveupdate_test_register()."""
        log = self._flbs.luo.kernel.printk
        if not self._started:
            self._started = True
            for flb in self.flbs:
                self._look_at(flb)
        for flb in self.flbs:
            try:
                self._flbs.register(handler, flb)
            except KernelError as error:
                log(f"liveupdate test: cannot register {flb.name}: {error}")

    def _look_at(self, flb: Flb) -> None:
        log = self._flbs.luo.kernel.printk
        try:
            self._flbs.get_incoming(flb)
        except KernelError as error:
            log(f"liveupdate test: nothing came over for {flb.name}: {error}")
            return
        self._flbs.put_incoming(flb)
