"""What a way of preserving hugetlb's shared state may do, and when it is asked. None is in 7.3.

Folios belong to files; pools, their counters and what the next boot allocates belong to all files
of huge pages together. A *design* is what happens to that shared part. Every design is a subclass
of `HugetlbDesign` in a file of its own, named in `kernelmodel.hugetlb_designs`; a release says
which one it carries. File handlers (memfds on huge pages, guest_memfd on huge pages) and boot call
the hooks below and do not know which design answers.

| moment | hook | called by |
|---|---|---|
| boot, nothing allocated yet | `early_boot` | boot, before gigantic pages |
| boot, pools are filled | `pools_ready` | boot, at hugetlb's initcall |
| boot, handlers exist | `register`; on v4 `bind` | boot, late; ties the design to its LUO |
| first file, last file; v4: PREPARE, FREEZE, CANCEL, FINISH | what LUO offers | LUO |
| a file's folios are preserved | `preserve_folios` | file handler, holes filled |
| … are given up: session closed, cancel, a later step failed | `unpreserve_folios` | file handler |
| the file is frozen for the jump; that is undone | `freeze_folios`, `unfreeze_folios` | handler |
| just before kexec, everything frozen: a sweep | the FLB's `freeze` | LUO, where it has it |
| a file of the previous kernel is looked at | `file_incoming` | handler: retrieve and finish |
| a folio returns to its file | `retrieve_folios` | handler |
| a folio that no file took, at its session's finish | `discard_folios` | handler |
| folios of files that nobody ever finished | nothing, or the subsystem's finish | LUO |
| a pool is to grow or shrink | `PoolKeeper`, while the design keeps `kernel.hugetlb.door` | mm |

The hooks of the base do what no design can do without: the folio itself is preserved by its file,
returns to its pool as used, or as free when nobody took it. A design adds what it shares.

A design whose FLB preserves more than the one page at its `data` lists them in `preserved_pages`
(`kernelmodel.owners.KeepsPages`), so that leaks are found.

Happy path: `preserve_folios` for each file, the jump, `early_boot`, `retrieve_folios`.

Unhappy paths: a hook of the outgoing side may raise any KernelError before it has changed
anything, and the preserve fails with it; `discard_folios` and `unpreserve_folios` cannot fail.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from kernelmodel.abi.folio_table import FolioRun
from kernelmodel.handlers.folio_table import PlainFolios
from kernelmodel.luo.handler import FileHandler, Flb
from kernelmodel.mm.hugetlb_vmemmap import vmemmap_frames

if TYPE_CHECKING:
    from kernelmodel.kernel import Kernel
    from kernelmodel.luo_v4 import handler as v4

__all__ = ["FlbDesign", "HugetlbDesign"]

_LOCK = "hugetlb_lock"


class HugetlbDesign:
    """One design on one kernel. The base shares nothing: pools come up as if no page came back."""

    #: As the command line and the catalogue of releases call it.
    name: ClassVar[str]
    #: Whose proposal it is, and where it was made.
    source: ClassVar[str]
    #: The LUO it stands on: "7.3" or "v4".
    luo: ClassVar[str] = "7.3"
    #: Callbacks that this LUO would have to offer beyond those that it has.
    callbacks: ClassVar[tuple[str, ...]] = ()
    #: On LUO v4: whether files do their work at PRESERVE_FD, as asked for on 7 Oct 2025, or as v4
    #: has it at PREPARE. On that of 7.3 they always do it when they are preserved.
    at_preserve_fd: ClassVar[bool] = False
    #: Whether guest_memfds on huge pages can share the state with memfds.
    takes_guest_memfd: ClassVar[bool] = True

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.folios = PlainFolios(kernel)

    @property
    def shared_bytes(self) -> int:
        """Bytes of shared state written for the next kernel so far, whatever pages they take."""
        return 0

    def register(self, handlers: Iterable[FileHandler]) -> None:
        """Tie the design to the handlers that share it, by whatever the LUO of 7.3 offers."""

    def bind(self, handlers: Sequence[v4.FileHandler]) -> None:
        """The same on LUO v4, before they are registered: LUO looks at them then."""

    # Outgoing, for one file. `runs` are its folios of `order`, in file order.

    def preserve_folios(self, order: int, runs: list[FolioRun]) -> None:
        """A file's folios are to survive; its table is allocated, nothing else is done yet.

        Raises what preserving raises; nothing stays preserved then.
        """
        self.folios.preserve_folios(order, runs)

    def unpreserve_folios(self, order: int, runs: list[FolioRun]) -> None:
        """Undo `preserve_folios`."""
        self.folios.unpreserve_folios(order, runs)

    def freeze_folios(self, order: int, runs: list[FolioRun]) -> None:
        """The file is frozen for the jump. What it raises fails the reboot."""

    def unfreeze_folios(self, order: int, runs: list[FolioRun]) -> None:
        """Undo `freeze_folios`."""

    # Incoming.

    def early_boot(self) -> Mapping[int, int]:
        """Pages by order that boot need not allocate, because they come back.

        Asked before anything is allocated: memory can be read, KHO restores nothing yet.
        """
        return {}

    def pools_ready(self) -> None:
        """Pools are filled and KHO can restore: whatever is to return at once may do so."""

    def file_incoming(self) -> None:
        """A file of the previous kernel is about to be retrieved or finished.

        What it raises fails a retrieve; at finish it is a warning.
        """

    def retrieve_folios(self, order: int, pfn: int, nr: int) -> int:
        """Adjacent folios return to their file, as used pages of their pool.

        Returns how many, from the first on, were preserved; their file takes all of them or, if
        some are missing, none: those that came back are lost on purpose.
        """
        kernel = self.kernel
        restored = kernel.kho.restore_folios(pfn, order, nr)
        if restored == nr:
            self._add_to_pool(order, pfn, nr)
        return restored

    def discard_folios(self, order: int, pfn: int, nr: int) -> int:
        """Adjacent folios that no file took go to their pool as free pages; returns how many."""
        kernel = self.kernel
        restored = kernel.kho.restore_folios(pfn, order, nr)
        if restored:
            self._add_to_pool(order, pfn, restored)
            with kernel.clock.lock(_LOCK):
                kernel.hugetlb.hstate(order).free_folios([(pfn, restored)])
                kernel.charge("hugetlb_free_folio", restored)
        return restored

    def _add_to_pool(self, order: int, pfn: int, nr: int) -> None:
        """Folios enter the books of their pool, in use; with HVO their struct pages go again."""
        kernel = self.kernel
        kernel.hugetlb.hstates[order].add_preserved([(pfn, nr)])
        if kernel.hugetlb.vmemmap.enabled:
            kernel.charge("kho_unpreserve_free", nr * vmemmap_frames(order))


class FlbDesign(HugetlbDesign):
    """A design whose shared state is one FLB, bound to every handler. LUO of 7.3.

    LUO calls the four operations; `preserve` is the first file's, `unpreserve` the last one's.
    """

    def __init__(self, kernel: Kernel, compatible: str) -> None:
        super().__init__(kernel)
        self.flb = Flb(compatible, self)

    def register(self, handlers: Iterable[FileHandler]) -> None:
        """Link the FLB to each handler."""
        for handler in handlers:
            self.kernel.luo.flbs.register(handler, self.flb)

    def preserve(self) -> tuple[int, object]:
        """The first file is preserved: returns (data, object)."""
        raise NotImplementedError

    def unpreserve(self, data: int, obj: object) -> None:
        """Nobody preserves huge pages any more."""
        raise NotImplementedError

    def retrieve(self, data: int) -> object:
        """First look at what came over."""
        raise NotImplementedError

    def finish(self, data: int, obj: object) -> None:
        """The last file of the previous kernel is done."""
        raise NotImplementedError

    def file_incoming(self) -> None:
        """Make LUO load the FLB's count before a file of it is finished.

        Without a look at it, LUO of 7.3 decrements a count of 0 and never calls finish.
        """
        flb = self.flb
        if flb.incoming_retrieved and flb.incoming_count > 0 and not flb.incoming_finished:
            return  # looked at before: taking a reference and dropping it changes nothing
        self.kernel.luo.flbs.get_incoming(flb)
        self.kernel.luo.flbs.put_incoming(flb)
