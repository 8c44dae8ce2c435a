"""Preserving VMs and their guest_memfds. None of it is in Linux 7.3.

`KvmVmHandler` and `GuestMemfdHandler` follow the proposal of T. Sahu (v4, 28 Jul 2026,
20260728121138.1103610): memory on 4 KiB pages that is shared with the host in full. It keeps
{size, flags, number of folios, token of the VM, folio table}, and the VM's type with the VM.
`GuestHugetlbHandler` is our proposal for the case that was left for later: the same on huge pages,
a handler of its own that shares hugetlb's state with the memfd handler through one design. The
compatible strings are ours throughout.

Happy path: the VM is preserved in the same session as its memory, before or after it; preserve
freezes the file and preserves the folios that are there; freeze writes down the VM's token;
retrieve makes VM and file again.

Unhappy paths: private memory has no handler (ENOENT). A VM that is not preserved in the session is
ENOENT at freeze, and the reboot fails. Pages of a 4 KiB file that were never touched are not
filled, unlike a memfd's, and cannot be touched until the next kernel has the file back; on huge
pages they are promised, and filled. A failed retrieve leaks the folios on purpose.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernelmodel.abi.folio_table import FolioRun
from kernelmodel.abi.guest_memfd import GuestHugetlbSer, GuestMemfdSer, KvmVmSer
from kernelmodel.abi.kexec_handover import KhoVmalloc
from kernelmodel.errors import (
    Exists,
    InvalidArgument,
    IoError,
    KernelError,
    KernelPanic,
    NoEntry,
)
from kernelmodel.fs import File
from kernelmodel.handlers.folio_table import (
    PlainFolios,
    PreservedFolios,
    folio_heads,
    preserve_folios,
    restore_folio_table,
)
from kernelmodel.handlers.hugetlb_folios import HugetlbFolios
from kernelmodel.luo.handler import FileHandler, LuoFile
from kernelmodel.luo_v4.merged import MergedFileSet
from kernelmodel.mm.guest_memfd import (
    GuestHugetlbInode,
    GuestMemfdInode,
    KvmVm,
    KvmVmInode,
    guest_hugetlb_file,
    guest_memfd_file,
    kvm_vm_file,
)

if TYPE_CHECKING:
    from kernelmodel.hugetlb_designs import HugetlbDesign
    from kernelmodel.kernel import Kernel
    from kernelmodel.luo.file import LuoFileSet

__all__ = ["GuestHugetlbHandler", "GuestMemfdHandler", "KvmVmHandler"]

#: Where both structures have the VM's token.
_VM_TOKEN_AT = 24


class KvmVmHandler(FileHandler):
    """A VM: its type and nothing else."""

    def __init__(self, kernel: Kernel, compatible: str) -> None:
        super().__init__(compatible)
        self.kernel = kernel

    def can_preserve(self, file: File) -> bool:
        """A VM's descriptor."""
        return isinstance(file.inode, KvmVmInode)

    def get_id(self, file: File) -> int:
        """The VM."""
        return file.inode.ino

    def preserve(self, luo_file: LuoFile) -> None:
        """Write down the type."""
        assert luo_file.file is not None
        inode = luo_file.file.inode
        assert isinstance(inode, KvmVmInode)
        luo_file.data = self.kernel.kho.alloc_preserve(KvmVmSer.SIZE)
        self.kernel.memory.write(luo_file.data, KvmVmSer(inode.kvm.vm_type).pack())

    def unpreserve(self, luo_file: LuoFile) -> None:
        """Undo preserve."""
        self.kernel.kho.unpreserve_free(luo_file.data)

    def retrieve(self, luo_file: LuoFile) -> File:
        """A VM of the same type, without vCPUs or memory."""
        ser = KvmVmSer.unpack(self.kernel.memory.read(luo_file.data, KvmVmSer.SIZE))
        self.kernel.kho.restore_free(luo_file.data)
        return kvm_vm_file(self.kernel, ser.vm_type)

    def finish(self, luo_file: LuoFile) -> None:
        """Free what was not retrieved."""
        if not luo_file.retrieve_status:
            self.kernel.kho.restore_free(luo_file.data)


class _GuestHandler(FileHandler):
    """What both kinds of guest memory have in common: the VM."""

    def __init__(self, kernel: Kernel, compatible: str) -> None:
        super().__init__(compatible)
        self.kernel = kernel
        #: Files that are being retrieved, and whose VM is looked for.
        self._waiting: list[LuoFile] = []

    def get_id(self, file: File) -> int:
        """The inode."""
        return file.inode.ino

    def _file_set(self, luo_file: LuoFile) -> LuoFileSet | MergedFileSet:
        if self.kernel.luo_v4 is not None:
            return MergedFileSet.of(self.kernel.luo_v4, luo_file)
        sessions = self.kernel.luo.sessions
        return next(
            session.file_set
            for session in (*sessions.outgoing, *sessions.incoming)
            if any(luo_file is other for other in session.file_set.files)
        )

    def freeze(self, luo_file: LuoFile) -> None:
        """Write down under which token the VM is. Raises: NoEntry, under none."""
        kvm = _inode(luo_file).kvm
        for other in self._file_set(luo_file).files:
            inode = other.file.inode if other.file is not None else None
            if isinstance(inode, KvmVmInode) and inode.kvm is kvm:
                self.kernel.memory.write_u64(luo_file.data + _VM_TOKEN_AT, other.token)
                return
        raise NoEntry("the VM is not preserved with its memory", token=luo_file.token)

    def _retrieve_vm(self, luo_file: LuoFile, token: int) -> KvmVm:
        """The VM, retrieved if it was not yet.

        Raises:
            NoEntry: there is no such token. InvalidArgument: it is no VM's. Others: what
            retrieving it raised. KernelPanic: retrieving it leads back to this file, whose mutex
            is held, so that the call never ends.
        """
        if any(luo_file is other for other in self._waiting):
            raise KernelPanic(f"hang: token {luo_file.token:#x} waits for itself to be retrieved")
        self._waiting.append(luo_file)
        try:
            file = self._file_set(luo_file).retrieve_file(token)
        finally:
            self._waiting.pop()
        inode = file.inode
        file.put()
        if not isinstance(inode, KvmVmInode):
            raise InvalidArgument("not a VM", token=token)
        return inode.kvm


class GuestMemfdHandler(_GuestHandler):
    """Guest memory on 4 KiB pages."""

    def can_preserve(self, file: File) -> bool:
        """Memory that host and guest share in full."""
        return isinstance(file.inode, GuestMemfdInode) and file.inode.is_shared

    def preserve(self, luo_file: LuoFile) -> None:
        """Freeze, write down, preserve what is there."""
        kernel, inode = self.kernel, _small(luo_file)
        inode.frozen = True
        ser_pa = 0
        try:
            ser_pa = kernel.kho.alloc_preserve(GuestMemfdSer.SIZE)
            runs = [
                FolioRun(pfn, index, nr, 1, 1)
                for index, pfn, nr in inode.extents(0, inode.size // inode.page_size)
            ]
            kernel.charge("memfd_luo_folio_ser", sum(run.nr for run in runs))
            private = preserve_folios(kernel, runs, 0, PlainFolios(kernel))
        except KernelError:
            if ser_pa:
                kernel.kho.unpreserve_free(ser_pa)
            inode.frozen = False
            raise
        area = private.vmalloc
        table = (area.first, area.total_pages, area.flags, area.order)
        ser = GuestMemfdSer(inode.size, inode.flags, private.nr_folios, 0, *table)
        kernel.memory.write(ser_pa, ser.pack())
        luo_file.data, luo_file.private = ser_pa, private

    def unpreserve(self, luo_file: LuoFile) -> None:
        """Undo preserve."""
        _small(luo_file).frozen = False
        _private(luo_file).unpreserve(self.kernel)
        self.kernel.kho.unpreserve_free(luo_file.data)

    def _ser(self, luo_file: LuoFile) -> GuestMemfdSer:
        return GuestMemfdSer.unpack(self.kernel.memory.read(luo_file.data, GuestMemfdSer.SIZE))

    def retrieve(self, luo_file: LuoFile) -> File:
        """Make the file again on its VM; on any error the folios stay reserved."""
        kernel, ser = self.kernel, self._ser(luo_file)
        kvm = self._retrieve_vm(luo_file, ser.vm_token)
        file = guest_memfd_file(kernel, kvm, ser.size, ser.flags)
        inode = file.inode
        if not isinstance(inode, GuestMemfdInode):
            file.put()
            raise InvalidArgument("flags of huge pages", flags=ser.flags)
        if ser.nr_folios:
            runs = restore_folio_table(kernel, _vmalloc_of(ser), ser.nr_folios)
            if runs is None:
                raise InvalidArgument("cannot restore the folio table")
            for run in folio_heads(runs, 1):
                self._add_run(inode, run)
            kernel.charge("shmem_add_to_page_cache", ser.nr_folios)
        kernel.kho.restore_free(luo_file.data)
        return file

    def _add_run(self, inode: GuestMemfdInode, run: FolioRun) -> None:
        """Put folios in; on an error all that came back so far is nobody's."""
        leaked = self.kernel.kho.leaked
        taken = inode.extents(run.index, run.index + run.nr)
        restored = 0 if taken else self.kernel.kho.restore_folios(run.pfn, 0, run.nr)
        if restored == run.nr:
            inode.add_pages(run.index, run.pfn, run.nr)
            return
        leaked.add(run.pfn, run.pfn + restored)
        for low, high, delta in inode.pages:
            leaked.add(low + delta, high + delta)
        if taken:
            raise Exists("two folios at one index", index=run.index)
        raise IoError("folio is not preserved", pfn=run.pfn)

    def finish(self, luo_file: LuoFile) -> None:
        """Free what nobody retrieved."""
        if luo_file.retrieve_status:
            return
        kernel, ser = self.kernel, self._ser(luo_file)
        if ser.nr_folios:
            runs = restore_folio_table(kernel, _vmalloc_of(ser), ser.nr_folios)
            for run in folio_heads(runs or [], 1):
                restored = kernel.kho.restore_folios(run.pfn, 0, run.nr)
                kernel.page_alloc.free_run(run.pfn, restored)
                kernel.charge("kho_unpreserve_free", restored)
        kernel.kho.restore_free(luo_file.data)


class GuestHugetlbHandler(_GuestHandler):
    """Guest memory on huge pages: ours. Folios are the design's, as a memfd's are."""

    def __init__(self, kernel: Kernel, compatible: str, design: HugetlbDesign) -> None:
        super().__init__(kernel, compatible)
        self.folios = HugetlbFolios(kernel, design)

    def can_preserve(self, file: File) -> bool:
        """Memory that host and guest share in full."""
        return isinstance(file.inode, GuestHugetlbInode) and file.inode.is_shared

    def preserve(self, luo_file: LuoFile) -> None:
        """Freeze, fill, write down, preserve."""
        inode = _huge(luo_file)
        ser_pa, private = self.folios.preserve(inode, GuestHugetlbSer.SIZE)
        area = private.vmalloc
        table = (area.first, area.total_pages, area.flags, area.order)
        ser = GuestHugetlbSer(inode.size, inode.flags, private.nr_folios, 0, *table, private.order)
        self.kernel.memory.write(ser_pa, ser.pack())
        luo_file.data, luo_file.private = ser_pa, private

    def unpreserve(self, luo_file: LuoFile) -> None:
        """Undo preserve."""
        self.folios.unpreserve(_huge(luo_file), luo_file.data, _private(luo_file))

    def freeze(self, luo_file: LuoFile) -> None:
        """The VM's token, then whatever the design does. Raises: NoEntry, and as the design."""
        super().freeze(luo_file)
        self.folios.freeze(_private(luo_file))

    def unfreeze(self, luo_file: LuoFile) -> None:
        """Undo what the design did."""
        self.folios.unfreeze(_private(luo_file))

    def _ser(self, luo_file: LuoFile) -> GuestHugetlbSer:
        return GuestHugetlbSer.unpack(self.kernel.memory.read(luo_file.data, GuestHugetlbSer.SIZE))

    def retrieve(self, luo_file: LuoFile) -> File:
        """Make the file again on its VM; on any error the folios stay reserved."""
        self.folios.design.file_incoming()
        ser = self._ser(luo_file)
        kvm = self._retrieve_vm(luo_file, ser.vm_token)
        file, inode = guest_hugetlb_file(self.kernel, kvm, ser.order, ser.size, ser.flags)
        self.folios.retrieve(inode.hugetlb, _vmalloc_of(ser), ser.nr_folios)
        self.kernel.kho.restore_free(luo_file.data)
        return file

    def finish(self, luo_file: LuoFile) -> None:
        """Give folios that nobody retrieved to their pool."""
        self.folios.look_at_incoming()
        if luo_file.retrieve_status:
            return
        ser = self._ser(luo_file)
        self.folios.discard(ser.order, _vmalloc_of(ser), ser.nr_folios)
        self.kernel.kho.restore_free(luo_file.data)


def _inode(luo_file: LuoFile) -> GuestMemfdInode | GuestHugetlbInode:
    assert luo_file.file is not None
    inode = luo_file.file.inode
    assert isinstance(inode, GuestMemfdInode | GuestHugetlbInode)
    return inode


def _small(luo_file: LuoFile) -> GuestMemfdInode:
    inode = _inode(luo_file)
    assert isinstance(inode, GuestMemfdInode)
    return inode


def _huge(luo_file: LuoFile) -> GuestHugetlbInode:
    inode = _inode(luo_file)
    assert isinstance(inode, GuestHugetlbInode)
    return inode


def _private(luo_file: LuoFile) -> PreservedFolios:
    assert isinstance(luo_file.private, PreservedFolios)
    return luo_file.private


def _vmalloc_of(ser: GuestMemfdSer | GuestHugetlbSer) -> KhoVmalloc:
    return KhoVmalloc(ser.folios_first, ser.folios_total_pages, ser.folios_flags, ser.folios_order)
