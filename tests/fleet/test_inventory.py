"""Inventories: three kinds of tables, columns by any name, failure domains, classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import pytest

from fleet.bad_input import Faults, InputFault
from fleet.columns import ColumnMap
from fleet.inventory import Inventory, read_hosts, read_vms
from fleet.scenario import BadInput, Scenario, load_scenario
from fleet.tables import Table, read_table
from node.api import Backing, HostSpec, VmSpec

RELEASE = "7.3.2+hugetlb"
HOST = {"host": "h1", "rack": "r1", "memory": "8GiB", "cpus": 4, "release": RELEASE}
VM = {"vm": "v1", "host": "h1", "memory": "1GiB", "backing": "memfd", "vcpus": 2}


def save(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows in the format that the name asks for."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    elif path.suffix == ".parquet":
        source = save(path.with_suffix(".jsonl"), rows)
        duckdb.sql(f"COPY (FROM read_json('{source}')) TO '{path}' (FORMAT parquet)")
    else:
        delimiter = {".csv": ",", ".tsv": "\t"}[path.suffix]
        lines = [list(rows[0]), *(["" if v is None else str(v) for v in r.values()] for r in rows)]
        path.write_text("".join(delimiter.join(line) + "\n" for line in lines), "utf-8")
    return path


def read(path: Path, mapping: ColumnMap | None = None) -> tuple[Inventory, tuple[InputFault, ...]]:
    """The inventory of one table, and the mistakes in it."""
    faults, inventory = Faults(), Inventory()
    table = read_table(path, ("s.toml", 4), faults)
    if table is not None:
        reader = read_vms if "vm" in table.columns else read_hosts
        reader(table, mapping or ColumnMap(), inventory, faults)
    return inventory, faults.all()


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_format_gives_the_same_hosts_and_vms(tmp_path: Path, suffix: str) -> None:
    full = HOST | {"numa_nodes": 2, "hugepages_2M": 1024, "hugepages_1G": 0, "zone": "z1"}
    hosts, faults = read(save(tmp_path / f"hosts{suffix}", [full, full | {"host": "h2"}]))
    vms, more = read(save(tmp_path / f"vms{suffix}", [VM, VM | {"vm": "v2", "backing": None}]))
    assert not faults
    assert list(hosts.hosts) == ["h1", "h2"]
    assert hosts.hosts["h1"].domains == {"rack": "r1", "zone": "z1"}
    assert hosts.hosts["h1"].node_bytes == (4 << 30, 4 << 30)
    assert [pool.count for pool in hosts.hosts["h1"].hugepages] == [1024]
    assert vms.vms == {"v1": VmSpec("v1", "h1", 1 << 30, Backing.MEMFD, 2)}
    (fault,) = more
    assert "neither a backing nor a page size" in fault.what
    assert fault.line == {".csv": 3, ".tsv": 3, ".jsonl": 2, ".parquet": 2}[suffix]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_numbers_of_a_library_count_the_unit_of_their_column(tmp_path: Path, suffix: str) -> None:
    """Whole ones are written as 8192.0 where a column has gaps, or holds a fraction."""
    mapping = ColumnMap(memory_unit=1 << 20)
    host = HOST | {"memory": 16384.0, "cpus": 4.0, "hugepages_2M": 512.0}
    hosts, faults = read(save(tmp_path / f"hosts{suffix}", [host]), mapping)
    vms = [VM | {"memory": 8192.0}, VM | {"vm": "v2", "memory": 0.5}]
    guests, more = read(save(tmp_path / f"vms{suffix}", vms), mapping)
    assert not faults + more
    assert hosts.hosts["h1"].node_bytes == (16 << 30,)
    assert hosts.hosts["h1"].cpus == 4
    assert hosts.hosts["h1"].hugepages[0].count == 512
    assert [vm.memory_bytes for vm in guests.vms.values()] == [8 << 30, 512 << 10]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_mistakes_name_their_line_or_row(tmp_path: Path, suffix: str) -> None:
    rows = [HOST, HOST | {"host": "h2", "cpus": 0}, HOST | {"host": "h1"}]
    _, faults = read(save(tmp_path / f"hosts{suffix}", rows))
    header = 1 if suffix == ".csv" else 0
    assert [(f.line - header, f.what[:20]) for f in faults] == [
        (2, "cpus: 0 is too small"),
        (3, 'host "h1" is there t'),
    ]


def test_lines_are_right_after_comments_blanks_and_cells_of_several_lines(tmp_path: Path) -> None:
    path = tmp_path / "hosts.csv"
    path.write_text(
        "\ufeff# comment\n\nhost;rack;memory;cpus;release;note\n"
        f'h1;r1;8GiB;4;{RELEASE};"two\nlines; quoted"\n'
        "# comment\r\n"
        f"h2;r1;8GiB;none;{RELEASE};\n",
        "utf-8",
    )
    inventory, faults = read(path)
    assert list(inventory.hosts) == ["h1"]
    assert [(f.line, f.what) for f in faults] == [(7, 'cpus: "none" is not a whole number')]
    assert inventory.unused == {str(path): ("note",)}


def test_columns_can_have_any_name(tmp_path: Path) -> None:
    row = {"Name": "h1", "Loc": "r1", "ram": 8, "feed": "A", "cores": 4, "uname": RELEASE}
    (tmp_path / "s.toml").write_text(
        """
[fleet]
hosts = "hosts.parquet"
[fleet.columns.hosts]
host = "Name"
rack = "Loc"
memory = "ram"
memory_unit = "GiB"
cpus = "cores"
release = "uname"
domains = { power-feed = "feed" }
[update]
target = "7.3.4+hugetlb"
[rollout]
max_unavailable = { power-feed = 1 }
""",
        "utf-8",
    )
    save(tmp_path / "hosts.parquet", [row])
    scenario = load_scenario(tmp_path / "s.toml")
    assert scenario.hosts == (
        HostSpec("h1", {"rack": "r1", "power-feed": "A"}, (8 << 30,), 4, RELEASE),
    )


MAPPING_MISTAKES = [
    ('host = "Nmae"', 'has no column "Nmae", did you mean "Name"?'),
    ('hots = "Name"', 'unknown key, did you mean "host"?'),
    ("host = 3", "3 is not text"),
    ('memory_unit = "GB"', "is no unit, B, KiB, MiB or GiB"),
    ('ignore = "x"', "is no list of column names"),
    ("ignore = []", 'column "cmdlin" looks like cmdline misspelt'),
    ('domains = { rack = "Name" }', "cannot be the name of a further failure domain"),
    ('domains = { feed = "Feed" }', 'has no column "Feed"'),
]


@pytest.mark.parametrize(("line", "said"), MAPPING_MISTAKES)
def test_a_mapping_that_does_not_fit_is_refused(tmp_path: Path, line: str, said: str) -> None:
    row = {"Name": "h1", **HOST, "cmdlin": "x"}
    save(tmp_path / "hosts.csv", [row])
    text = f"[fleet]\nhosts = 'hosts.csv'\n[fleet.columns.hosts]\n{line}\n"
    rest = "[update]\ntarget = '7.3.4+hugetlb'\n[rollout]\n"
    (tmp_path / "s.toml").write_text(text + rest, "utf-8")
    with pytest.raises(BadInput) as caught:
        load_scenario(tmp_path / "s.toml")
    assert any(said in str(f) for f in caught.value.faults), str(caught.value)
    ignoring = text.replace(line, 'ignore = ["cmdlin"]') + rest
    (tmp_path / "s.toml").write_text(ignoring, "utf-8")
    assert load_scenario(tmp_path / "s.toml").hosts[0].cmdline == ""


MEMORY = [
    ("8GiB", None, (8 << 30,)),
    ("8192 MiB", None, (8 << 30,)),
    (8 << 30, None, (8 << 30,)),
    (str(8 << 30), None, (8 << 30,)),
    ("8G", 2, (4 << 30, 4 << 30)),
    ("3GiB+5GiB", None, (3 << 30, 5 << 30)),
    (["3GiB", 5 << 30], 2, (3 << 30, 5 << 30)),
    ("8191.5MiB", 1, (8191 << 20,)),
]


@pytest.mark.parametrize(("memory", "nodes", "expected"), MEMORY)
def test_memory_is_read_however_it_is_written(
    tmp_path: Path, memory: object, nodes: int | None, expected: tuple[int, ...]
) -> None:
    row = HOST | {"memory": memory, "numa_nodes": nodes}
    inventory, faults = read(save(tmp_path / "hosts.jsonl", [row]))
    assert not faults
    assert inventory.hosts["h1"].node_bytes == expected


BACKINGS = [
    ("memfd", None, Backing.MEMFD),
    (None, "4K", Backing.MEMFD),
    (None, 2 << 20, Backing.HUGETLB_2M),
    ("hugetlb", "1GiB", Backing.HUGETLB_1G),
    ("hugetlb-2M", "2MiB", Backing.HUGETLB_2M),
    ("Hugetlb-1g", None, Backing.HUGETLB_1G),
]


@pytest.mark.parametrize(("backing", "page_size", "expected"), BACKINGS)
def test_backing_follows_from_its_name_or_its_pages(
    tmp_path: Path, backing: str | None, page_size: object, expected: Backing
) -> None:
    row = VM | {"backing": backing, "page_size": page_size}
    inventory, faults = read(save(tmp_path / "vms.jsonl", [row]))
    assert not faults
    assert inventory.vms["v1"].backing is expected


UNFIT = [
    ("vms", {"backing": "memfd", "page_size": "2MiB"}, "page_size says 2MiB"),
    ("vms", {"backing": "hugetlb", "page_size": "4KiB"}, "does not say how large"),
    ("vms", {"vcpus": True}, "vcpus: true is not a whole number"),
    ("vms", {"memory": {"GiB": 1}}, "memory: a table is not a size"),
    ("vms", {"memory": 1e300}, "is not a size"),
    ("hosts", {"rack": ["r1"]}, "rack: a list is no name"),
    ("hosts", {"host": "a/b"}, "no spaces, no slashes"),
    ("hosts", {"host": "h" * 254}, "at most 253"),
    ("hosts", {"memory": "65TiB"}, "is no memory of a host"),
    ("hosts", {"memory": "1MiB"}, "at least 256MiB"),
    ("hosts", {"cpus": 3.5}, "is not a whole number"),
    ("hosts", {"cmdline": 3}, "cmdline: 3 is not text"),
    ("hosts", {"zone": None}, "failure domain zone: empty"),
]


@pytest.mark.parametrize(("kind", "change", "said"), UNFIT)
def test_an_unfit_cell_is_refused(
    tmp_path: Path, kind: str, change: dict[str, object], said: str
) -> None:
    good = VM if kind == "vms" else HOST
    _, faults = read(save(tmp_path / "t.jsonl", [good | change]))
    assert any(said in str(f) for f in faults), [str(f) for f in faults]


FILES = [
    ("t.csv", b"", "t.csv:1: has no header"),
    ("t.csv", b"# only a comment\n", "has no header"),
    ("t.csv", b"vm,host\n\xff\n", "t.csv:2: is not UTF-8 text"),
    ("t.csv", b'vm,host\n"open\n', "t.csv:2: not valid CSV from here on"),
    ("t.csv", b"vm,,host\n", "t.csv:1: a column has no name, give it one, or leave it out"),
    ("t.jsonl", b'{"vm": 1}\n{"vm"\n[1]\n', "t.jsonl:2: not valid JSON"),
    ("t.jsonl", b'{"vm": 1}\n{"vm"\n[1]\n', "t.jsonl:3: is no JSON object"),
    ("t.jsonl", b'{"vm": "\\ud800"}\n', "t.jsonl"),
    ("t.parquet", b"PAR1", "t.parquet: not readable as Parquet"),
]


@pytest.mark.parametrize(("name", "data", "said"), FILES)
def test_a_file_that_is_no_table_is_refused(
    tmp_path: Path, name: str, data: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(data)
    _, faults = read(tmp_path / name)
    assert any(said in str(f) for f in faults), [str(f) for f in faults]


def test_a_missing_file_is_blamed_on_where_it_was_named(tmp_path: Path) -> None:
    for name in ("no.csv", "no.jsonl", "no.parquet", "no.xlsx"):
        _, (fault,) = read(tmp_path / name)
        assert (fault.file, fault.line) == ("s.toml", 4)


def classes(folder: Path, hosts: str, vms: str = "") -> Scenario:
    """A fleet by class."""
    (folder / "s.toml").write_text(
        f"[[fleet.host_class]]\ncpus = 4\nrelease = '{RELEASE}'\nmemory = '8GiB'\n{hosts}\n"
        f"{vms}\n[update]\ntarget = '7.3.4+hugetlb'\n[rollout]\n",
        "utf-8",
    )
    return load_scenario(folder / "s.toml")


def test_hosts_of_a_class_are_dealt_over_racks_and_domains(tmp_path: Path) -> None:
    scenario = classes(tmp_path, "name='n'\ncount=8\nracks=4\ndomains={zone=2}")
    assert [(h.name, h.domains["rack"], h.domains["zone"]) for h in scenario.hosts] == [
        ("n-1", "rack-1", "zone-1"),
        ("n-2", "rack-1", "zone-1"),
        ("n-3", "rack-2", "zone-1"),
        ("n-4", "rack-2", "zone-1"),
        ("n-5", "rack-3", "zone-2"),
        ("n-6", "rack-3", "zone-2"),
        ("n-7", "rack-4", "zone-2"),
        ("n-8", "rack-4", "zone-2"),
    ]


VM_CLASS = "[[fleet.vm_class]]\nname='v'\nmemory='64MiB'\nvcpus=1\nbacking='memfd'\nper_host=2"


def test_vms_of_a_class_are_on_every_host(tmp_path: Path) -> None:
    scenario = classes(tmp_path, "name='n'\ncount=2", VM_CLASS)
    assert [vm.name for vm in scenario.vms] == ["n-1-v-1", "n-1-v-2", "n-2-v-1", "n-2-v-2"]


def test_a_count_that_is_none_does_not_make_the_racks_too_many(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        classes(tmp_path, "name='n'\ncount=0\nracks=3\ndomains={zone=2}")
    assert [fault.line for fault in caught.value.faults] == [6]


CLASS_MISTAKES = [
    ("name='n'\ncount=0", "", 6, "0 is too small"),
    ("name='n'\ncount=2\nracks=3", "", 7, "3 is too large, 2 or less"),
    ("name='n'\ncount=2\nhugepages={'4KiB'=1}", "", 7, "no hugepages"),
    ("name='n'\ncount=2\nhugepages={'1MiB'=1}", "", 7, "is no page size"),
    ("name='a b'\ncount=2", "", 5, "is no name"),
    ("name='n'\ncount=2", VM_CLASS + "\nhosts='m'", 13, "is no host class"),
    ("name='n'\ncount=2", VM_CLASS.replace("64MiB", "9GiB"), 1, "plain memfd VMs need"),
    ("name='n'\ncount=2", VM_CLASS.replace("'v'", f"'{'v' * 60}'"), 8, "makes VM names like"),
    ("name='n'\ncount=2", VM_CLASS + "\n" + VM_CLASS, 14, "is there twice"),
    ("name='n'\ncount=20000", VM_CLASS.replace("=2", "=501"), 12, "more than 10000000 VMs"),
]


@pytest.mark.parametrize(("hosts", "vms", "line", "said"), CLASS_MISTAKES)
def test_a_mistake_in_a_class_is_found_once(
    tmp_path: Path, hosts: str, vms: str, line: int, said: str
) -> None:
    with pytest.raises(BadInput) as caught:
        classes(tmp_path, hosts, vms)
    hits = [f for f in caught.value.faults if said in str(f)]
    assert [f.line for f in hits] == [line], [str(f) for f in caught.value.faults]


def test_a_long_table_is_read_in_a_moment() -> None:
    """Not timed: a quadratic reader would run into the time limit of a test."""
    rows = tuple((nr, ["h1", f"v{nr}", "1GiB", "memfd", "2"]) for nr in range(100_000))
    table = Table("t", 1, ("host", "vm", "memory", "backing", "vcpus"), rows)
    faults, inventory = Faults(), Inventory()
    read_vms(table, ColumnMap(), inventory, faults)
    assert len(inventory.vms) == 100_000
    assert len(faults) == 0
