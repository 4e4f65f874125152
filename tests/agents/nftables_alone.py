"""The tables of mode nftables without a node, in an empty network that this process is started in.

Ends at the first check that fails; run by test_readback.py.
"""

import re
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from agents import nftables, readback
from agents.nftables import Tables
from agents.pace import Pace
from agents.ruleset import FAMILIES, IPV4, Family
from agents.state import Change

LINKS = {"eth0", "a-long-name.100"}
# What an element is, command -> what is said. {t}: the table, {a}, {b}: an address of a Service, of an endpoint.
BY_HAND = {
    "delete element {t} frontends {{ {a} . tcp . 80 }}": "map frontends",
    "add element {t} frontends {{ {a} . udp . 81 : 5 }}": "map frontends",
    "delete element {t} nodeports {{ udp . 30000 }}": "map nodeports",
    "delete element {t} groups {{ 3 }}": "map groups",
    "delete element {t} slots {{ 1 . 0:1 }}": "map slots",
    "add element {t} slots {{ 1 . 0:9 : {b} . 80 }}": "map slots",
    "delete element {t} pick {{ 4 . none }}": "map pick",
    "delete element {t} hairpin {{ {b} . {b} }}": "set hairpin",
    "delete element {t} local_endpoints {{ {b} }}": "set local_endpoints",
    "flush set {t} pod_cidrs": "set pod_cidrs",
    "delete element {t} source_ranges {{ 0x60000001 . {n} }}": "set source_ranges",
    "delete element {t} same_link {{ eth0 . eth0 }}": "set same_link",
    "delete element {t} cluster_ips {{ {a} }}": "set cluster_ips",
    "flush set {t} generation": "table {t}",
    "flush chain {t} dispatch": "chain dispatch",
    "insert rule {t} services accept": "chain services",
    "replace rule {t} lb_2 handle {h} meta priority set numgen inc mod 2": "chain lb_2",
    "add chain {t} prerouting {{ type nat hook prerouting priority dstnat; policy drop; }}": "chain prerouting",
    "add chain {t} mine {{ type filter hook input priority 0; }}": "chain mine",
    "add chain {t} mine": "chain mine",
}


def held_in(family: Family) -> dict[str, str]:
    """Elements of every kind, and every number where its bytes may be read the wrong way round."""
    if family is IPV4:
        service, endpoints, networks = (
            "10.96.0.1",
            ("192.0.2.1", "192.0.2.129"),
            ("10.0.0.0/24", "10.0.1.0/24", "0.0.0.0/0"),
        )
        alone = "255.255.255.255/32"
    else:
        service, endpoints, networks = "fd00::1", ("2001:db8::1", "::1:0:0:1"), ("fd00::/64", "fd00:0:0:1::/64", "::/0")
        alone = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128"
    return {
        f"frontends {service} . tcp . 80": "0x60000001",
        f"frontends {service} . udp . 65535": "0x00000002",
        f"frontends {service} . sctp . 1": "0x0abcdef0",
        "nodeports udp . 30000": "0x40000002",
        "groups 0x00000001": "goto lb_2",
        "groups 0x00000002": "goto hash_2",
        "groups 0x00000003": "goto refuse",
        "groups 0x00000004": "goto aff_10800_1",
        "groups 0x00000005": "drop",
        "groups 0x0abcdef0": "goto lb_300",
        "slots 0x00000001 . 0": f"{endpoints[0]} . 80",
        "slots 0x00000001 . 1": f"{endpoints[1]} . 8080",
        "slots 0x00000001 . 65537": f"{endpoints[1]} . 1",
        "slots 0x00000004 . 4294967294": f"{endpoints[0]} . 443",
        "pick 0x00000004 . 0": "4294967294",
        "to_cluster 0x60000001": "0x00000002",
        f"local_endpoints {endpoints[0]}": "",
        f"cluster_ips {service}": "",
        **{f"pod_cidrs {network}": "" for network in networks[:2]},
        f"pod_cidrs {alone}": "",
        f"without_node_ports {networks[2]}": "",
        f"masquerade_all {networks[0]}": "",
        **{f"source_ranges 0x60000001 . {network}": "" for network in networks[:2]},
        f"source_ranges 0x20000002 . {networks[2]}": "",
        f"source_ranges 0x20000003 . {alone}": "",
    }


HELD = {driver: held_in(family) for driver, family in FAMILIES.items()}


def nft(*command: str) -> str:
    return subprocess.run(["nft", *command], capture_output=True, text=True, check=True).stdout


def everything() -> list[str]:
    """What nft lists, its words in no order: elements stand in the order in which they came."""
    return sorted(part.strip() for part in re.split(r"[,{}\n]", nft("list", "ruleset")))


def difference(tables: Tables) -> str:
    tables._looks = Pace()  # now, not when the next look is due
    return tables.difference(None)


def everything_is_read_back() -> None:
    for driver, family in FAMILIES.items():
        names = [name for name in family.sets if name not in ("hairpin", "same_link", "generation")]
        read = [element for name in names for element in readback.elements(family.ip, family.name, name)]
        assert sorted(read) == sorted(HELD[driver].items()), set(read) ^ set(HELD[driver].items())
        links = readback.elements(family.ip, family.name, "same_link")
        assert sorted(links) == [(f"same_link {name} . {name}", "") for name in sorted(LINKS)]


def changes_by_hand_are_found(tables: Tables) -> None:
    good = everything()
    for family in FAMILIES.values():
        first = family is IPV4
        words: dict[str, Any] = {
            "t": family.table,
            "a": "10.96.0.1" if first else "fd00::1",
            "b": "192.0.2.1" if first else "2001:db8::1",
            "n": "10.0.0.0/24" if first else "fd00::/64",
        }
        for command, said in BY_HAND.items():
            left = difference(tables)
            assert left == "", f"before {command}: {left}"
            listed = nft("-a", "list", "chain", *family.table.split(), "lb_2")
            handle = re.search(r"numgen random mod 2 # handle ([0-9]+)", listed)
            assert handle, listed
            nft(command.format(**words, h=handle[1]))
            found = difference(tables)
            assert said.format(**words) in found, f"{command}: {found!r}"
            assert family.table in found
            tables.refill(HELD, LINKS)
            assert everything() == good, command


def what_others_do_is_no_damage(tables: Tables) -> None:
    nft("add table ip other; add chain ip other x; add rule ip other x accept")
    for _ in range(2):
        assert difference(tables) == ""
    nft("delete table ip other")
    assert difference(tables) == ""


def a_look_has_a_pace(tables: Tables) -> None:
    """But is not forgotten, and its own commits are no reason for one."""
    assert difference(tables) == ""
    looks = tables._known["nft4"].differences
    took = []

    def slow(self: Any, links: Any) -> list[str]:
        took.append(1)
        time.sleep(0.1)
        return looks(links) if self.family is IPV4 else []

    kept, nftables._Known.differences = nftables._Known.differences, slow  # type: ignore[method-assign]
    try:
        tables.commit({"nft4": Change({}, {"cluster_ips 10.96.0.77": ""})})
        tables.commit({"nft4": Change({"cluster_ips 10.96.0.77": ""}, {})})
        assert tables.difference(None) == ""
        assert not took
        tables._looks = Pace()
        nft("add table ip other")
        assert tables.difference(None) == ""
        assert len(took) == 2  # both tables
        nft("flush map ip timonel slots")
        assert tables.difference(None) == ""
        assert len(took) == 2
        deadline = time.monotonic() + 20
        while not (said := tables.difference(None)):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert said == "somebody changed map slots of table ip timonel"
        assert len(took) == 4
    finally:
        nftables._Known.differences = kept  # type: ignore[method-assign]
    nft("delete table ip other")
    tables.refill(HELD, LINKS)


def another_process_goes_on(tables: Tables) -> None:
    other = Tables()
    assert other.difference(HELD) == ""
    assert other.difference({"nft4": {}, "nft6": HELD["nft6"]}) == "somebody changed table ip timonel"
    other.take_over(HELD, {"eth0"})
    assert difference(other) == ""
    assert "set same_link" in difference(tables)
    nft("flush chain ip6 timonel flagged")
    assert difference(other) == "somebody changed chain flagged of table ip6 timonel"


def handle_of(rule: str, chain: str) -> str:
    """The kernel's number for a rule; another one when it has been written anew."""
    listed = nft("-a", "list", "chain", "ip", "timonel", chain)
    found = re.search(rf"{rule}.* # handle ([0-9]+)", listed)
    assert found, listed
    return found[1]


def another_process_knows_the_chains(memory: Path) -> None:
    """What was changed while no process ran is found, and what was not is left alone."""
    Tables(timeout_s=60, memory=memory).refill(HELD, LINKS)
    nft(f"replace rule ip timonel lb_2 handle {handle_of('numgen', 'lb_2')} meta priority set numgen inc mod 2")
    other = Tables(timeout_s=60, memory=memory)
    assert other.difference(HELD) == ""
    other.take_over(HELD, LINKS)
    assert difference(other) == "somebody changed chain lb_2 of table ip timonel"
    kept, changed = handle_of("vmap @groups", "dispatch"), handle_of("numgen", "lb_2")
    third = Tables(timeout_s=60, memory=memory)
    third.refill(HELD, LINKS)
    assert handle_of("vmap @groups", "dispatch") == kept
    assert handle_of("numgen random mod 2", "lb_2") != changed
    assert difference(third) == ""
    for damage in ("", "{", "[]", '{"nft4": []}', '{"nft4": {"lb_2": ["x"]}}', '{"nft4": {"lb_2": ["x", "y"]}}'):
        memory.write_text(damage)
        other = Tables(timeout_s=60, memory=memory)
        other.refill(HELD, LINKS)
        assert difference(other) == "", damage
    assert handle_of("vmap @groups", "dispatch") != kept
    nft("delete table ip timonel")  # as by a boot
    other = Tables(timeout_s=60, memory=memory)
    other.refill(HELD, LINKS)
    assert difference(other) == ""


def main() -> None:
    tables = Tables(timeout_s=60)
    tables.refill(HELD, LINKS)
    everything_is_read_back()
    changes_by_hand_are_found(tables)
    what_others_do_is_no_damage(tables)
    a_look_has_a_pace(tables)
    another_process_goes_on(tables)
    with tempfile.TemporaryDirectory() as directory:
        another_process_knows_the_chains(Path(directory) / "chains.json")


if __name__ == "__main__":
    main()
