"""Tables with mistakes of several kinds: all that can be known is said at once, and no more."""

from __future__ import annotations

from pathlib import Path

import duckdb

from fleet.bad_input import Faults
from fleet.columns import ColumnMap
from fleet.inventory import Inventory, read_vms
from fleet.tables import read_table
from node.api import Backing, VmSpec
from tests.fleet.test_inventory import HOST, RELEASE, VM, read, save
from tests.fleet.test_scenario import GOOD, faults, write


def test_a_row_that_cannot_be_read_hides_no_other_mistake(tmp_path: Path) -> None:
    path = tmp_path / "hosts.csv"
    path.write_text(f"host,rack,memory,cores,release\nh1,r1,8GiB,4\nh2,r1,8Gi B,4,{RELEASE}\n")
    inventory, found = read(path)
    assert [(fault.line, fault.what) for fault in found][:2] == [
        (1, 'no column "cpus"'),
        (2, "has 4 cells, the header 5 columns"),
    ]
    assert (found[2].line, found[2].what.partition(":")[0]) == (3, "memory")
    assert len(found) == 3
    assert not inventory.hosts
    assert not inventory.all_named


def test_what_comes_before_broken_csv_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "hosts.csv"
    path.write_text(f'host,rack,memory,cpus,release\nh1,r1,8GiB,x,{RELEASE}\nh2,"r1\n')
    assert [fault.line for fault in read(path)[1]] == [2, 3]


def test_vms_without_a_column_for_their_backing_are_checked_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "vms.csv"
    path.write_text("vm,host,memory,vcpus\nv1,h1,1GiB,x\n")
    assert [fault.line for fault in read(path)[1]] == [1, 2]


def test_a_table_of_hosts_in_place_of_vms_is_called_that(tmp_path: Path) -> None:
    table = read_table(save(tmp_path / "hosts.csv", [HOST]), ("s.toml", 4), Faults())
    assert table is not None
    collected = Faults()
    read_vms(table, ColumnMap(), Inventory(), collected)
    (fault,) = collected.all()
    assert (fault.line, fault.what) == (1, "is a table of hosts")
    assert fault.right == "one with vm, host, memory, vcpus"


def test_json_in_parquet_is_read_as_what_it_says(tmp_path: Path) -> None:
    path, source = tmp_path / "vms.parquet", save(tmp_path / "vms.jsonl", [VM])
    columns = "* REPLACE (to_json(memory) AS memory, to_json(vcpus) AS vcpus)"
    duckdb.sql(f"COPY (SELECT {columns} FROM read_json('{source}')) TO '{path}' (FORMAT parquet)")
    inventory, found = read(path)
    assert not found
    assert inventory.vms == {"v1": VmSpec("v1", "h1", 1 << 30, Backing.MEMFD, 2)}


def test_a_row_that_cannot_be_read_is_not_blamed_on_those_who_name_it(tmp_path: Path) -> None:
    path = write(tmp_path, hosts="4096,16, -> 4096,16", vms="v3,h2,8GiB -> v3,h2,8GB!")
    assert [(Path(f.file).name, f.line) for f in faults(path)] == [("hosts.csv", 2), ("vms.csv", 4)]


def test_a_table_without_rows_is_what_is_wrong(tmp_path: Path) -> None:
    path = write(tmp_path)
    (tmp_path / "hosts.csv").write_text(GOOD["hosts.csv"].splitlines()[0] + "\n")
    (fault,) = faults(path)
    assert str(fault).endswith("hosts.csv:1: has no rows, one for each host")
