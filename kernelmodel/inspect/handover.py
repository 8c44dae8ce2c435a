"""Reading a whole image: KHO's FDT, the tree of preserved memory, LUO, metadata.

Reads what 7.2 and 7.3 hand over (`kho-v4`, `luo-v5`, `memfd-v2`) and what the hugetlb proposal
adds. It shares the layouts of `kernelmodel.abi` with the model and none of its kernel: no boot,
no allocation, nothing that could panic. Whatever is in the image, there is an answer; what is
wrong with it stands under `faults`, in sentences with physical addresses.
"""

from __future__ import annotations

from typing import Any, Final

from kernelmodel.abi.kexec_handover import (
    KEXEC_METADATA_NODE,
    KEXEC_METADATA_VERSION,
    KHO_PROP_MEMORY_MAP,
    KHO_PROP_SUBTREE_DATA,
    KHO_PROP_SUBTREE_SIZE,
    KhoKexecMetadata,
)
from kernelmodel.abi.luo import LUO_SUBTREE, LuoSer
from kernelmodel.image.frames import Image
from kernelmodel.inspect.folios import check_preserved
from kernelmodel.inspect.luo import LUO_COMPATIBLE, read_luo, text_of
from kernelmodel.inspect.preserved import Preserved, read_tree
from kernelmodel.inspect.reader import Faults, Reader, span_text
from kernelmodel.kho.fdt import Fdt, FdtError, FdtNode
from kernelmodel.memory import PAGE_SIZE

__all__ = ["KHO_COMPATIBLE", "inspect_image", "preserved_frames"]

KHO_COMPATIBLE: Final = "kho-v4"
#: Their data are no addresses, or of pages that are read.
_KNOWN_FLBS: Final = {*(f"liveupdate-test-flb-v{index}" for index in range(3)), "hugetlb-v1"}


def inspect_image(image: Image, *, hashes: bool = True) -> dict[str, Any]:
    """What an image hands over, ready for JSON. Without `hashes` no content is looked at.

    Keys are always the same but for `hugetlb` (pages by order that the proposal's FLB counts),
    `faults` and `notes`, which are there if there are any.
    """
    faults, notes = Faults(), Faults()
    for remark in image.remarks:
        faults.add(remark)
    said: dict[str, Any] = {
        "fdt_pa": image.fdt_pa,
        "compatible": "",
        "subtrees": {},
        "luo": None,
        "liveupdate_num": None,
        "sessions": [],
        "preserved_entries": 0,
        "preserved_pages": 0,
        "orders": {},
        "flbs": [],
        "kexec_metadata": None,
    }
    _read(Reader(image.frames, faults, notes), image.fdt_pa, said, hashes=hashes)
    for key, found in (("faults", faults), ("notes", notes)):
        if sentences := found.sentences():
            said[key] = sentences
    return said


def preserved_frames(image: Image) -> tuple[list[tuple[int, int]], list[int]]:
    """What belongs to the handover: preserved frames as (first, end), and pages of the tree."""
    reader = Reader(image.frames, Faults())
    root = _root(reader, image.fdt_pa)
    tree_pa = root.u64(KHO_PROP_MEMORY_MAP) if root is not None else None
    if not tree_pa:
        return [], reader.owned_pages()
    return read_tree(reader, tree_pa).runs(), reader.owned_pages()


def _root(reader: Reader, fdt_pa: int) -> FdtNode | None:
    page = reader.claim(fdt_pa, "the FDT")
    if page is None:
        return None
    try:
        tree = Fdt.follow(page)
    except FdtError as error:
        reader.faults.add(f"the FDT at {fdt_pa:#x} cannot be read: {error}")
        return None
    if tree.total_size > PAGE_SIZE:
        reader.faults.add(f"the FDT at {fdt_pa:#x} is said to have {tree.total_size} bytes")
    if tree.broken:
        reader.faults.add(f"the FDT at {fdt_pa:#x} cannot be read to its end: {tree.broken}")
    return tree.root


def _read(reader: Reader, fdt_pa: int, said: dict[str, Any], *, hashes: bool) -> None:
    root = _root(reader, fdt_pa)
    if root is None:
        return
    said["compatible"] = text_of(root.props.get("compatible", b""))
    blobs = _subtrees(reader, root)
    said["subtrees"] = {name: size for name, (_, size) in blobs.items()}
    if said["compatible"] != KHO_COMPATIBLE:
        reader.faults.add(
            f"the FDT at {fdt_pa:#x} is {said['compatible']!r}, not {KHO_COMPATIBLE!r}: the rest "
            "is not read"
        )
        return
    tree_pa = root.u64(KHO_PROP_MEMORY_MAP)
    if not tree_pa:
        reader.faults.add(f"the FDT at {fdt_pa:#x} has no {KHO_PROP_MEMORY_MAP}")
        preserved = Preserved([], reader)
    else:
        preserved = read_tree(reader, tree_pa)
        check_preserved(reader, preserved, fdt_pa, 0, "the FDT")
    said["preserved_entries"] = preserved.nr_entries
    said["preserved_pages"] = preserved.nr_pages
    said["orders"] = {str(order): preserved.orders[order] for order in sorted(preserved.orders)}
    for name, (pa, size) in blobs.items():
        page = reader.claim(pa, f"subtree {name!r}")
        if page is None:
            continue
        check_preserved(reader, preserved, pa, 0, f"subtree {name!r}")
        if name == LUO_SUBTREE:
            _read_luo(reader, preserved, page, size, said, hashes=hashes)
        elif name == KEXEC_METADATA_NODE:
            _read_metadata(reader, page, size, said)
    reader.check_claims()
    if _is_all_known(said):
        _note_unclaimed(reader, preserved)


def _is_all_known(said: dict[str, Any]) -> bool:
    """Whether everything that may have preserved something was read: whatever is left is lost."""
    return (
        set(said["subtrees"]) <= {LUO_SUBTREE, KEXEC_METADATA_NODE}
        and (LUO_SUBTREE not in said["subtrees"] or said["luo"] == LUO_COMPATIBLE)
        and {name for name, _ in said["flbs"]} <= _KNOWN_FLBS
        and all("size" in file for session in said["sessions"] for file in session["files"])
    )


def _note_unclaimed(reader: Reader, preserved: Preserved) -> None:
    claimed = reader.claimed()
    left = [part for first, end in preserved.runs() for part in claimed.gaps(first, end)]
    if left:
        total = sum(end - first for first, end in left)
        reader.faults.add(
            f"{total} of {preserved.nr_pages} preserved pages belong to nothing that can be found: "
            f"{span_text(*left[0])}{', …' if len(left) > 1 else ''}"
        )


def _subtrees(reader: Reader, root: FdtNode) -> dict[str, tuple[int, int]]:
    """(address, size) of each blob by name."""
    blobs: dict[str, tuple[int, int]] = {}
    for node in root.subnodes:
        pa, size = node.u64(KHO_PROP_SUBTREE_DATA), node.u64(KHO_PROP_SUBTREE_SIZE)
        if pa is None or size is None:
            reader.faults.add(f"subtree {node.name!r} lacks its address or its size")
        elif node.name in blobs:
            reader.faults.add(f"there are two subtrees of the name {node.name!r}")
        else:
            blobs[node.name] = pa, size
    return blobs


def _read_luo(
    reader: Reader,
    preserved: Preserved,
    page: bytes,
    size: int,
    said: dict[str, Any],
    *,
    hashes: bool,
) -> None:
    if size < LuoSer.SIZE:
        reader.faults.add(f"subtree {LUO_SUBTREE!r} has {size} bytes, too few for its structure")
        return
    ser = LuoSer.unpack(page)
    said["luo"] = text_of(ser.compatible)
    said["liveupdate_num"] = ser.liveupdate_num
    if said["luo"] != LUO_COMPATIBLE:
        reader.faults.add(
            f"LUO's data are {said['luo']!r}, not {LUO_COMPATIBLE!r}: they are not read"
        )
        return
    said["sessions"], said["flbs"], hugetlb = read_luo(reader, preserved, ser, hashes=hashes)
    if hugetlb:
        said["hugetlb"] = hugetlb


def _read_metadata(reader: Reader, page: bytes, size: int, said: dict[str, Any]) -> None:
    if size < KhoKexecMetadata.SIZE:
        reader.faults.add(
            f"subtree {KEXEC_METADATA_NODE!r} has {size} bytes, too few for its structure"
        )
        return
    found = KhoKexecMetadata.unpack(page)
    if found.version != KEXEC_METADATA_VERSION:
        reader.faults.add(f"{KEXEC_METADATA_NODE} has version {found.version}, not 1")
    said["kexec_metadata"] = [found.version, text_of(found.previous_release), found.kexec_count]
