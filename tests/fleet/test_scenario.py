"""Scenarios: what a good one becomes, and where each mistake in a bad one is found."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from fleet.scenario import BadInput, InputFault, Scenario, load_scenario, read_scenario
from node.api import Backing, FaultSpec, HugepagePool, UpdatePolicy

EXAMPLES = Path(__file__).parents[2] / "examples"

GOOD = {
    "s.toml": """\
name = "good"
seed = 3
[fleet]
hosts = "hosts.csv"
vms = "vms.csv"
[update]
target = "7.3.4+hugetlb"
[rollout]
wave_size = "50%"
max_unavailable = { rack = 1, zone = 2 }
[rollout.gate]
max_failed_hosts = 1
[[faults]]
kind = "slow-boot"
host = "h1"
factor = 4
""",
    "hosts.csv": """\
host,rack,zone,numa_nodes,memory,cpus,release,hugepages_2M,hugepages_1G,cmdline
h1,r1,z1,2,64GiB,16,7.3.2+hugetlb,4096,16,
h2,r1,z1,2,64GiB,16,7.3.2+hugetlb,4096,16,
h3,r2,z1,2,64GiB,16,7.3.2+hugetlb,4096,16,
""",
    "vms.csv": """\
vm,host,memory,backing,vcpus
v1,h1,2GiB,memfd,1
v2,h1,4GiB,hugetlb-2M,2
v3,h2,8GiB,hugetlb-1G,4
""",
}


def write(folder: Path, **changed: str) -> Path:
    """The good scenario with `old -> new` in some files; keys are file names without suffix."""
    for name, text in GOOD.items():
        old, arrow, new = changed.get(name.partition(".")[0], "").partition(" -> ")
        assert not arrow or old in text
        folder.joinpath(name).write_text(text.replace(old, new, 1) if arrow else text)
    return folder / "s.toml"


def faults(path: Path, *overrides: str) -> tuple[InputFault, ...]:
    with pytest.raises(BadInput) as caught:
        load_scenario(path, overrides)
    return caught.value.faults


def test_a_good_scenario_is_read_as_written(tmp_path: Path) -> None:
    scenario = load_scenario(write(tmp_path))
    host = scenario.hosts[0]
    assert (scenario.name, scenario.seed, len(scenario.hosts), len(scenario.vms)) == (
        "good",
        3,
        3,
        3,
    )
    assert host.domains == {"rack": "r1", "zone": "z1"}
    assert host.node_bytes == (32 << 30, 32 << 30)
    assert host.hugepages == (HugepagePool(1 << 30, 16), HugepagePool(2 << 20, 4096))
    assert [vm.backing for vm in scenario.vms] == list(Backing)
    assert scenario.rollout.wave_size == 1, "half of three hosts, rounded down"
    assert scenario.rollout.max_unavailable == {"rack": 1, "zone": 2}
    assert scenario.faults == (FaultSpec("h1", "slow-boot", factor=4.0),)
    assert scenario.update == UpdatePolicy()
    assert scenario.target_release == "7.3.4+hugetlb"


def test_the_examples_can_be_run() -> None:
    rolling = load_scenario(EXAMPLES / "rolling-update.toml")
    assert (len(rolling.hosts), len(rolling.vms)) == (24, 192)
    assert {host.domains["rack"] for host in rolling.hosts} == {"r1", "r2", "r3"}
    assert {host.node_bytes for host in rolling.hosts} == {(256 << 30, 256 << 30)}
    assert {fault.kind for fault in rolling.faults} == {
        "slow-boot",
        "freeze-fails",
        "next-kernel-panics",
    }
    for host in rolling.hosts:
        vms = [vm for vm in rolling.vms if vm.host == host.name]
        assert len(vms) == 8
        assert {vm.backing for vm in vms} == set(Backing)
    small = load_scenario(EXAMPLES / "small.toml")
    assert [host.name for host in small.hosts] == ["node-1", "node-2", "node-3"]
    assert [host.domains["rack"] for host in small.hosts] == ["rack-1", "rack-2", "rack-3"]
    assert [vm.name for vm in small.vms[:3]] == [
        "node-1-plain-1",
        "node-2-plain-1",
        "node-3-plain-1",
    ]


MISTAKES = [
    # edit of the scenario, line, what is said
    ('name = "good" -> nam = "good"', 1, 'unknown key, did you mean "name"?'),
    ("seed = 3 -> seed = true", 2, "true is not a whole number"),
    ("seed = 3 -> seed = -3", 2, "too small"),
    ('hosts = "hosts.csv" -> hosts = "host.csv"', 4, "cannot read"),
    ('hosts = "hosts.csv" -> hosts = "hosts.xls"', 4, "unknown kind of table"),
    ("7.3.4+hugetlb -> 7.3.5+hugetlb", 7, 'did you mean "7.3.4+hugetlb"?'),
    ("7.3.4+hugetlb -> 7.3.4", 7, "with 3 VMs, v1 first: EIO, hugetlb memfds want"),
    ("7.3.4+hugetlb -> 6.19", 7, "hugetlb hands over kho-v4, 6.19 reads kho-v1"),
    ("7.3.4+hugetlb -> 6.16", 7, "boots as from cold, possible: 7.3.4+hugetlb"),
    ("target -> traget", 6, "update.target: missing"),
    ('wave_size = "50%" -> wave_size = 0', 9, "0 is too small, 1 or more"),
    ('wave_size = "50%" -> wave_size = "10%"', 9, '"10%" of 3 is 0, 1 or more'),
    ('wave_size = "50%" -> wave_size = "half"', 9, "is no share"),
    ('wave_size = "50%" -> wave_size = "150%"', 9, "more than all"),
    ("rack = 1 -> rack = 0", 10, "rollout.max_unavailable.rack: 0 is too small"),
    ("rack = 1 -> rak = 1", 10, 'no failure domain of the hosts, did you mean "rack"?'),
    ('wave_size = "50%" -> soak = "5 minutes"', 9, "unknown unit of time"),
    ('wave_size = "50%" -> soak = 300', 9, "300 has no unit"),
    ('wave_size = "50%" -> downtime_budget = "0s"', 9, "zero leaves no time"),
    ('wave_size = "50%" -> spread = "row"', 9, "is no failure domain of the hosts"),
    ("max_failed_hosts = 1 -> max_failed_hosts = -1", 12, "too small"),
    ("max_failed_hosts = 1 -> max_downtime = '0s'", 12, "zero leaves no time"),
    ("[rollout.gate] -> gate = 3", 11, "3 is no table"),
    ("slow-boot -> slow-boots", 14, 'did you mean "slow-boot"?'),
    ('host = "h1" -> host = "h9"', 15, 'there is no host "h9"'),
    ("factor = 4 -> errno = 'EIO'", 16, "a slow-boot fault has none"),
    ("factor = 4 -> times = 2", 13, "factor: missing"),
    ("factor = 4 -> factor = nan", 16, "out of range"),
    ("factor = 4 -> [costs.kho_extend_scratc]", 16, "did you mean kho_extend_scratch?"),
    ("factor = 4 -> factor = 4\n[costs.kexec_file_load]\nbase_ns = -1", 18, "base_ns"),
    ('slow-boot" -> drop-preserved-page"\nvm = "v9"', 15, 'there is no VM "v9"'),
    ('slow-boot" -> drop-preserved-page"\nvm = "v3"', 16, "VM v3 is not on h1"),
    ('slow-boot" -> freeze-fails"\nerrno = "EWHAT"', 15, "is not known"),
    ("factor = 4 -> factor = 4\nrate = 0.5", 15, "a fault with a rate strikes any host"),
    ('host = "h1" -> rate = 1.5', 15, "faults.0.rate: 1.5 is no probability"),
    ('host = "h1" -> rate = nan', 15, "nan is no probability"),
    ("seed = 3 -> seed = ", 2, "not valid TOML: invalid value"),
    ("[update] -> [update", 6, "not valid TOML"),
]


@pytest.mark.parametrize(("edit", "line", "said"), MISTAKES)
def test_a_mistake_is_found_on_its_line(tmp_path: Path, edit: str, line: int, said: str) -> None:
    found = faults(write(tmp_path, s=edit))
    hits = [f for f in found if said in str(f)]
    assert hits, [str(f) for f in found]
    assert (Path(hits[0].file).name, hits[0].line) == ("s.toml", line), str(hits[0])


INVENTORY_MISTAKES = [
    # file, edit, line, what is said
    ("hosts", "host,rack -> name,rack", 1, 'no column "host"'),
    ("hosts", "cpus -> cores", 1, 'map it: cpus = "their name for it"'),
    ("hosts", "hugepages_1G -> hugepage_1G", 1, "looks like hugepages_1G misspelt"),
    ("hosts", "cpus -> rack", 1, 'column "rack" is there twice'),
    ("hosts", "h2,r1 -> h1,r1", 3, 'host "h1" is there twice, first at'),
    ("hosts", "h2,r1 -> h 2,r1", 3, "is no name"),
    ("hosts", "h2,r1 -> h2,", 3, "rack: empty"),
    ("hosts", "64GiB -> 64GB", 2, "write 64GiB or bytes"),
    ("hosts", "64GiB -> 0", 2, "is no memory of a host"),
    ("hosts", "64GiB -> 32GiB+16GiB+16GiB", 2, "memory names 3 nodes, numa_nodes 2"),
    ("hosts", "2,64GiB,16 -> 2,64GiB,0", 2, "cpus: 0 is too small"),
    ("hosts", "2,64GiB -> 65,64GiB", 2, "numa_nodes: 65 is too large"),
    ("hosts", "7.3.2+hugetlb -> 7.3.2-hugetlb", 2, 'did you mean "7.3.2+hugetlb"?'),
    ("hosts", "7.3.2+hugetlb -> 7.3.2", 3, "7.3.2 has no handler for hugetlb memfds"),
    ("hosts", "4096,16, -> 65536,16,", 2, "its kernel gets 21789 of 65536 pages of 2MiB"),
    ("hosts", "4096,16, -> 0,64,", 2, "its kernel gets 61 of 64 pages of 1GiB"),
    ("hosts", "4096,16, -> 1024,16,", 3, "needs 2048 pages of 2MiB, the pool of host h1 has 1024"),
    ("hosts", "4096,16, -> 0,16,", 3, "host h1 has none"),
    ("hosts", "4096,16, -> 29500,0,", 2, "its 1 plain memfd VMs need 2060MiB with their tables"),
    ("hosts", "4096,16, -> 4096,16,kho_scratch=1Z", 2, "not understood by the kernel"),
    ("hosts", '4096,16, -> 4096,16,"kho_scratch=1M,1M,1M"', 2, "load the next one: EADDRNOTAVAIL"),
    ("hosts", '4096,16, -> 4096,16,"kho_scratch=0,1G,1M"', 2, "leaves an area empty"),
    ("hosts", "4096,16, -> 4096,16,kho=off", 2, "switches live update off"),
    ("hosts", "4096,16, -> 4096,16,hugepages=4", 2, "a second time"),
    ("hosts", "4096,16, -> 4096,16", 2, "has 9 cells, the header 10 columns"),
    ("vms", "vm,host -> vm,hots", 1, 'no column "host"'),
    ("vms", "backing,vcpus -> kind,vcpus", 1, 'no column "backing" or "page_size"'),
    ("vms", "v2,h1 -> v1,h1", 3, 'VM "v1" is there twice'),
    ("vms", "v2,h1 -> v2,h7", 3, 'there is no host "h7"'),
    ("vms", "v2,h1 -> " + "v" * 64 + ",h1", 3, "at most 63"),
    ("vms", "4GiB,hugetlb-2M -> 4GiB,hugetlb", 3, "does not say how large its pages are"),
    ("vms", "4GiB,hugetlb-2M -> 4GiB,hugetlb-2G", 3, 'did you mean "hugetlb-2M"?'),
    (
        "vms",
        "4GiB,hugetlb-2M -> 4097MiB,hugetlb-2M",
        3,
        "not a multiple of its 2MiB pages, 4098MiB",
    ),
    ("vms", "8GiB,hugetlb-1G -> 17GiB,hugetlb-1G", 4, "needs 17 pages of 1GiB"),
    ("vms", "2GiB,memfd -> 60GiB,memfd", 2, "its 1 plain memfd VMs need"),
    ("vms", "2GiB,memfd -> 1TiB,memfd", 2, "LUO preserves no memfd of 1TiB: ENOMEM"),
    ("vms", "memfd,1 -> memfd,one", 2, "vcpus"),
    ("vms", "2GiB -> -2GiB", 2, "is not a size"),
]


@pytest.mark.parametrize(("file", "edit", "line", "said"), INVENTORY_MISTAKES)
def test_a_mistake_in_a_table_is_found_on_its_line(
    tmp_path: Path, file: str, edit: str, line: int, said: str
) -> None:
    found = faults(write(tmp_path, **{file: edit}))
    hits = [f for f in found if said in str(f)]
    assert hits, [str(f) for f in found]
    assert hits[0].line == line, str(hits[0])


def test_two_vms_may_exceed_a_pool_that_each_fits(tmp_path: Path) -> None:
    path = write(tmp_path, vms="v2,h1,4GiB -> v0,h1,6GiB,hugetlb-2M,1\nv2,h1,4GiB")
    (fault,) = faults(path)
    assert "its VMs need 5120 pages of 2MiB, the pool has 4096" in str(fault)
    assert (Path(fault.file).name, fault.line) == ("hosts.csv", 2)


def test_all_mistakes_of_all_files_come_at_once(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        s='seed = 3 -> seed = "3"',
        hosts="h1,r1,z1,2,64GiB,16 -> h1,r1,z1,2,64GB,x",
        vms="v3,h2,8GiB -> v3,h4,8GiB",
    )
    found = faults(path, "rollout.soak=5", "rollout.sok='5s'")
    places = [(Path(f.file).name, f.line) for f in found]
    assert sorted(places) == [
        ("--set rollout.soak", 0),
        ("--set rollout.sok", 0),
        ("hosts.csv", 2),
        ("hosts.csv", 2),
        ("s.toml", 2),
        ("vms.csv", 4),
    ]


def test_a_cost_row_from_outside_is_blamed_by_name(tmp_path: Path) -> None:
    (fault,) = faults(write(tmp_path), "costs.kho_bogus.base_ns=1")
    assert (fault.file, fault.line) == ("--set costs.kho_bogus.base_ns", 0)
    assert "no such row; did you mean kho_" in fault.what


def test_several_syntax_errors_are_found_and_the_rest_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, s='seed = 3 -> seed = \n"oops\nnothing')
    found = faults(path, "update.target=7.3.9")
    assert [f.line for f in found] == [2, 3, 4, 0]
    assert not any("missing" in f.what for f in found), "a blanked line proves nothing"


def test_a_column_that_is_wrong_everywhere_is_not_said_everywhere(tmp_path: Path) -> None:
    path = write(tmp_path)
    rows = "".join(f"w{nr},h1,1 GB,memfd,1\n" for nr in range(100))
    (tmp_path / "vms.csv").write_text("vm,host,memory,backing,vcpus\n" + rows)
    found = faults(path)
    assert len(found) == 21
    assert found[-1].what.endswith("80 more like those above, from here on")


def test_overrides_replace_values_and_are_blamed_by_name(tmp_path: Path) -> None:
    path = write(tmp_path)
    scenario = load_scenario(
        path, ["rollout.wave_size=2", "faults.0.factor=8", "update.target=7.3.4+hugetlb"]
    )
    assert scenario.rollout.wave_size == 2
    assert scenario.faults[0].factor == 8.0
    for override, said in {
        "rollout.wave_size=0": "--set rollout.wave_size: 0 is too small",
        "rollout.wave_sice=1": 'unknown key, did you mean "wave_size"?',
        "faults.1.factor=2": "faults has no item 1",
        "seed": "--set seed: has no value",
        "=3": "not a key",
        "seed.x=3": "seed is a value, not a table",
        "update.target=6.19": "hands over kho-v4",
    }.items():
        assert any(said in str(f) for f in faults(path, override)), override


def test_a_seed_from_outside_replaces_that_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert load_scenario(path, seed=9).seed == 9
    with pytest.raises(BadInput, match="--seed: -1 is no seed"):
        load_scenario(path, seed=-1)


DIGEST_EDITS = [
    ("s", "seed = 3 -> seed = 4"),
    ("s", "factor = 4 -> factor = 5"),
    ("s", "factor = 4 -> factor = 4\n[costs.kexec_file_load]\nbase_ns = 1"),
    ("hosts", "h1,r1,z1,2,64GiB -> h1,r1,z1,2,65GiB"),
    ("vms", "v1,h1,2GiB -> v1,h1,3GiB"),
]


@pytest.mark.parametrize(("file", "edit"), DIGEST_EDITS)
def test_the_digest_changes_with_the_content(tmp_path: Path, file: str, edit: str) -> None:
    before = load_scenario(write(tmp_path)).digest
    assert load_scenario(write(tmp_path, **{file: edit})).digest != before


def test_the_digest_does_not_depend_on_place_or_spelling(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    here = load_scenario(write(tmp_path))
    there = load_scenario(write(tmp_path / "elsewhere", vms="2GiB -> 2097152KiB"))
    assert here.digest == there.digest
    assert here.source != there.source


def test_cost_rows_come_from_a_file_and_from_the_scenario(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        "[kexec_file_load]\nbase_ns = 5\nkind = 'measured'\nsource = 'here'\n"
        "[vm_pause]\nbase_ns = 7\n"
    )
    costs = '[costs]\nprofile = "mine.toml"\n[costs.kexec_file_load]\nper_unit_ps = 6'
    path = write(tmp_path, s=f"factor = 4 -> factor = 4\n{costs}")
    profile = load_scenario(path).cost_profile
    assert '"base_ns" = 5' in profile
    assert '"base_ns" = 7' in profile
    assert '"per_unit_ps" = 6' in profile
    assert "measured" not in profile, "nobody measured the mixture"
    (tmp_path / "mine.toml").write_text("[kexec_file_load]\nbase_ns = 5\nsource = 'x'\n")
    (fault,) = faults(path)
    assert "kind and source are given together" in str(fault)


def test_a_fault_that_names_a_vm_need_not_name_its_host(tmp_path: Path) -> None:
    path = write(
        tmp_path, s='slow-boot"\nhost = "h1"\nfactor = 4 -> drop-preserved-page"\nvm = "v3"'
    )
    assert load_scenario(path).faults == (FaultSpec("h2", "drop-preserved-page", vm="v3"),)


def test_a_reading_tells_which_columns_were_not_used(tmp_path: Path) -> None:
    path = write(tmp_path, vms="backing,vcpus -> backing,vcpus,owner")
    text = (tmp_path / "vms.csv").read_text().replace("\nv", "\nv").splitlines()
    rows = [text[0], *(f"{line},me" for line in text[1:])]
    (tmp_path / "vms.csv").write_text("\n".join(rows))
    assert read_scenario(path).inventory.unused[str(tmp_path / "vms.csv")] == ("owner",)


def test_a_scenario_survives_serialisation(tmp_path: Path) -> None:
    scenario = load_scenario(write(tmp_path))
    text = msgspec.json.encode(scenario, enc_hook=str)
    assert msgspec.json.decode(text, type=Scenario, dec_hook=lambda t, v: t(v)) == scenario
