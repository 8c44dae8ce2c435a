"""Device trees: a real kernel's bytes, round trips, and what a reader refuses."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelmodel.kho.fdt import Fdt, FdtError, FdtNode
from tests.conformance.image_host import image_named
from tests.conformance.kho_reader import PAGE, fdt_nodes

NAMES = st.text("abcdefghij-,", min_size=1, max_size=12)
PROPS = st.dictionaries(NAMES, st.binary(max_size=20), max_size=4)


def u64(value: int) -> bytes:
    return value.to_bytes(8, "little")


def test_the_tree_of_a_real_kernel_comes_out_byte_for_byte() -> None:
    image, _ = image_named("img1")
    page = image.read(image.fdt_pa, PAGE)
    nodes = fdt_nodes(page)
    tree = Fdt()
    tree.append_prop(tree.root, "compatible", b"kho-v4\0")
    tree.append_prop(tree.root, "preserved-memory-map", nodes[""]["preserved-memory-map"])
    for name in ("kexec-metadata", "LUO"):  # in the order in which a boot adds them
        node = tree.add_subnode(tree.root, name)
        tree.set_prop(node, "preserved-data", nodes[name]["preserved-data"])
        tree.set_prop(node, "blob-size", nodes[name]["blob-size"])
    packed = tree.pack()
    assert len(packed) == 285
    assert packed == page[:285]
    assert Fdt.parse(page).pack() == packed


def test_a_tree_without_subnodes_has_144_bytes() -> None:
    tree = Fdt()
    tree.append_prop(tree.root, "compatible", b"kho-v4\0")
    tree.append_prop(tree.root, "preserved-memory-map", u64(0x4AE000))
    assert len(tree.pack()) == 144


@settings(deadline=None)
@given(PROPS, st.lists(st.tuples(NAMES, PROPS), max_size=4, unique_by=lambda node: node[0]))
def test_what_was_written_is_read_back(
    root: dict[str, bytes], nodes: list[tuple[str, dict[str, bytes]]]
) -> None:
    tree = Fdt()
    for name, value in root.items():
        tree.append_prop(tree.root, name, value)
    for name, props in nodes:
        node = tree.add_subnode(tree.root, name)
        for prop, value in props.items():
            tree.set_prop(node, prop, value)
    read = Fdt.parse(tree.pack().ljust(8192, b"\0"))
    assert read.root == tree.root
    assert [node.name for node in read.root.subnodes] == [name for name, _ in reversed(nodes)]
    for name, props in nodes:
        found = read.root.subnode(name)
        assert found is not None
        assert found.props == props
    assert fdt_nodes(tree.pack()) == {
        "": root,
        **{node.name: node.props for node in tree.root.subnodes},
    }


def test_setting_a_property_twice_keeps_its_place() -> None:
    tree = Fdt()
    node = tree.add_subnode(tree.root, "n")
    for name in ("a", "b", "a"):
        tree.set_prop(node, name, name.encode() * 2)
    assert list(node.props) == ["b", "a"]
    assert FdtNode("x", {"p": b"1234567"}).u64("p") is None


SAMPLE = Fdt()
SAMPLE.append_prop(SAMPLE.root, "compatible", b"kho-v4\0")
SAMPLE.set_prop(SAMPLE.add_subnode(SAMPLE.root, "LUO"), "blob-size", u64(32))
GOOD = SAMPLE.pack()


@pytest.mark.parametrize(
    ("at", "value", "why"),
    [
        (0, b"\0", "magic"),
        (4, b"\xff", "beyond"),
        (9, b"\xff", "beyond"),
        (11, b"\x39", "not aligned"),
        (23, b"\x0f", "version"),
        (27, b"\x12", "version"),
        (59, b"\x07", "no root node"),
        (67, b"\x09", "unknown token"),
        (71, b"\xf0", "cut off"),
        (75, b"\xf0", "unterminated"),
    ],
)
def test_a_broken_tree_is_refused(at: int, value: bytes, why: str) -> None:
    broken = bytearray(GOOD)
    broken[at : at + 1] = value
    with pytest.raises(FdtError, match=why):
        Fdt.parse(bytes(broken))


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_do_more_than_be_refused(data: bytes) -> None:
    for text in (data, GOOD[: len(data)], GOOD[:56] + data + GOOD[56:], GOOD[:40] + data):
        try:
            Fdt.parse(text)
        except FdtError:
            continue


def test_nodes_nested_without_end_are_refused() -> None:
    deep = b"\0\0\0\1x\0\0\0" * 50
    header = bytearray(GOOD[:56])
    header[4:8] = (56 + len(deep)).to_bytes(4, "big")
    header[12:16] = (56).to_bytes(4, "big")
    header[32:36] = (0).to_bytes(4, "big")
    header[36:40] = len(deep).to_bytes(4, "big")
    with pytest.raises(FdtError, match="too deeply"):
        Fdt.parse(bytes(header) + deep)
