"""Mode iptables below the packets: what its chains are, how they follow changes, and which backend they go to."""

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from agents import iptables
from agents.chains import FAMILIES, IPV4, IPV6, Chains, Family, whole
from agents.iptables import Backend, Listing
from agents.state import Change

GOLDEN = Path(__file__).with_name("golden")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
GROUPS = [f"0x{number:08x}" for number in range(1, 6)]

ADDRESSES = {
    IPV4: {
        "vip": "10.96.0.10",
        "external": "203.0.113.7",
        "balancer": "203.0.113.99",
        "a": "192.0.2.11",
        "b": "192.0.2.12",
    },
    IPV6: {"vip": "fd00::a", "external": "2001:db8::7", "balancer": "2001:db8::99", "a": "fd74::11", "b": "fd74::12"},
}


def elements(family: Family) -> dict[str, str]:
    """Services of each kind: shared, with affinity, without endpoints, with a Local policy and with source ranges."""
    to = ADDRESSES[family]
    whole = 32 if family is IPV4 else 128
    return {
        f"frontends {to['vip']} . tcp . 80": GROUPS[0],
        f"frontends {to['vip']} . udp . 53": GROUPS[1],
        f"frontends {to['external']} . tcp . 80": "0x40000003",
        f"frontends {to['balancer']} . tcp . 80": "0x60000003",
        "nodeports tcp . 30007": "0x40000003",
        "nodeports udp . 30500": GROUPS[3],
        f"cluster_ips {to['vip']}": "",
        f"groups {GROUPS[0]}": "goto lb_2",
        f"slots {GROUPS[0]} . 0": f"{to['a']} . 8080",
        f"slots {GROUPS[0]} . 1": f"{to['b']} . 8080",
        f"groups {GROUPS[1]}": "goto aff_600_2",
        f"slots {GROUPS[1]} . 17": f"{to['a']} . 53",
        f"slots {GROUPS[1]} . 23": f"{to['b']} . 53",
        f"pick {GROUPS[1]} . 0": "17",
        f"pick {GROUPS[1]} . 1": "23",
        f"groups {GROUPS[2]}": "drop",
        f"groups {GROUPS[3]}": "goto refuse",
        "to_cluster 0x40000003": GROUPS[0],
        "to_cluster 0x60000003": GROUPS[0],
        f"source_ranges 0x60000003 . {to['a']}/{whole}": "",
        f"local_endpoints {to['a']}": "",
        f"pod_cidrs {to['b']}/{whole}": "",
        f"without_node_ports {to['external']}/{whole}": "",
        f"masquerade_all {to['vip']}/{whole}": "",
    }


def in_an_empty_network(*command: str, text: str = "") -> str:
    done = subprocess.run(["unshare", "--net", *command], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_root
@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("kind", ["nft", "legacy"])
def test_what_iptables_save_lists(kind: str, family: Family, request: pytest.FixtureRequest) -> None:
    """The way from an address to an endpoint, by rules and chains; the same in both backends."""
    backend = Backend(kind, f"-{kind}", "")
    load, save = backend.tool(family, "-restore"), backend.tool(family, "-save")
    script = whole(Chains(family, elements(family), {"eth0"}))
    listed = in_an_empty_network("sh", "-c", f"{load} && {save} -t filter && {save} -t nat", text=script)
    lines = [re.sub(r" \[0:0\]$", "", line) for line in listed.splitlines() if not line.startswith("#")]
    text = "".join(f"{line}\n" for line in lines)
    path = GOLDEN / f"{family.ip}tables.txt"
    if request.config.getoption("--update-golden"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()


def random_element(choice: random.Random, family: Family) -> tuple[str, str]:
    address = choice.choice(list(ADDRESSES[family].values()))
    group, port = choice.choice(GROUPS), choice.choice([80, 300, 30007])
    mark = f"0x{choice.choice('0246')}{group[3:]}"
    protocol = choice.choice(["tcp", "udp", "sctp"])
    network = f"{address}/{32 if family is IPV4 else 128}"
    return choice.choice(
        [
            (f"frontends {address} . {protocol} . {port}", mark),
            (f"nodeports {protocol} . {port}", mark),
            (f"cluster_ips {address}", ""),
            (f"groups {group}", choice.choice(["goto lb_2", "goto aff_10_2", "goto refuse", "drop"])),
            (f"slots {group} . {choice.randrange(3)}", f"{address} . 80"),
            (f"pick {group} . {choice.randrange(2)}", str(choice.randrange(1, 3))),
            (f"masquerade_all {network}", ""),
            (f"to_cluster {mark}", choice.choice(GROUPS)),
            (f"source_ranges {mark} . {network}", ""),
            (f"pod_cidrs {network}", ""),
            (f"without_node_ports {network}", ""),
            (f"local_endpoints {address}", ""),
        ]
    )


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_chains_after_many_changes_are_those_of_the_elements_alone(family: Family) -> None:
    """Every chain that a change touches is written, and no chain is taken away that a rule leads to."""
    choice = random.Random(5)
    held: dict[str, str] = {}
    chains = Chains(family, held, {"eth0"})
    written: dict[str, list[str]] = chains.all()
    for _ in range(1500):
        new = dict(random_element(choice, family) for _ in range(choice.randrange(4)))
        gone = set(choice.sample(sorted(held), min(len(held), choice.randrange(4)))) - new.keys()
        change = Change(
            deletes={key: held[key] for key in held if key in gone or new.get(key, held[key]) != held[key]},
            adds={key: value for key, value in new.items() if held.get(key) != value},
        )
        held = {key: value for key, value in {**held, **new}.items() if key not in gone}
        for chain, rules in chains.follow(change).items():
            if rules is None:
                del written[chain]
            else:
                written[chain] = rules
        whole = Chains(family, held, {"eth0"})
        assert written == whole.all()
        assert (chains.sizes, chains.generation) == (whole.sizes, whole.generation)
        assert chains.sizes == {chain: len(rules) for chain, rules in written.items()}
        led = {
            rule.partition("-j TIMONEL-")[2].split()[0]
            for rules in written.values()
            for rule in rules
            if "-j TIMONEL-" in rule
        }
        assert {f"TIMONEL-{name}" for name in led} <= written.keys()


def test_shares_follow_weights_and_weight_0_keeps_its_clients() -> None:
    """Two slots of three, one of three; and with affinity an endpoint that is never drawn."""
    shared = {f"groups {GROUPS[0]}": "goto lb_3", "frontends 192.0.2.1 . tcp . 80": GROUPS[0]}
    shared |= {f"slots {GROUPS[0]} . {slot}": f"192.0.2.{11 if slot < 2 else 12} . 80" for slot in range(3)}
    rules = Chains(IPV4, shared, ()).all()["TIMONEL-G-00000001-tcp"]
    assert [rule.partition("-p tcp ")[2] for rule in rules[2:]] == [
        "-m statistic --mode random --probability 0.66666666667 -j DNAT --to-destination 192.0.2.11:80",
        "-j DNAT --to-destination 192.0.2.12:80",
    ]
    kept = {**shared, f"groups {GROUPS[0]}": "goto aff_10_1", f"slots {GROUPS[0]} . 7": "192.0.2.13 . 80"}
    kept |= {f"pick {GROUPS[0]} . 0": "7"}
    rules = Chains(IPV4, kept, ()).all()["TIMONEL-G-00000001-tcp"]
    assert sum("--update --seconds 10" in rule for rule in rules) == 3
    assert [rule for rule in rules if "--set " in rule] == [
        "-p tcp -m recent --set --name timonel4-00000001-192.0.2.13-80 --rsource -j DNAT --to-destination 192.0.2.13:80"
    ]


def test_what_rules_cannot_do_is_refused_before() -> None:
    refusal = iptables.judge({("nft4", f"groups {GROUPS[0]}"): "goto hash_1024", ("dns", "web. A 10.96.0.1"): "5"})
    assert refusal is not None
    assert refusal.reason == "SourceHashUnsupported"
    assert iptables.judge({("nft4", f"groups {GROUPS[0]}"): "goto lb_1024"}) is None


def test_a_change_writes_only_the_chains_it_touches() -> None:
    chains = Chains(IPV4, elements(IPV4), {"eth0"})
    key = f"slots {GROUPS[0]} . 1"
    change = Change(deletes={key: "192.0.2.12 . 8080"}, adds={key: "192.0.2.13 . 8080"})
    assert list(chains.follow(change)) == ["TIMONEL-G-00000001-tcp"]


def test_no_name_of_a_user_gets_into_a_rule() -> None:
    """Chains are named by ids, ports and bytes of addresses, and stay in iptables' 28 letters."""
    chains = Chains(IPV6, elements(IPV6), {"eth0"}).all()
    assert all(re.fullmatch(r"TIMONEL-[A-Z]+(-[a-z0-9]+)*", chain) and len(chain) <= 28 for chain in chains)
    assert not any("--comment" in rule for rules in chains.values() for rule in rules)


CHOOSING = """
from agents import iptables
print(iptables.choose())
"""
LOOKING = """
from pathlib import Path
from agents import iptables
iptables.choose()
iptables.lacks()
iptables.Rules(Path("/nowhere")).leftovers()
"""


@needs_root
@pytest.mark.parametrize(
    ("foreign", "chosen"),
    [
        ("true", "nf_tables"),  # what `iptables` is here
        ("iptables-legacy -A INPUT -p tcp --dport 9 -j ACCEPT", "legacy"),
        ("ip6tables-legacy -A INPUT -p tcp --dport 9 -j ACCEPT", "legacy"),
        ("iptables-nft -A INPUT -p tcp --dport 9 -j ACCEPT", "nf_tables"),
        ("iptables-legacy -A INPUT -j ACCEPT; iptables-nft -A INPUT -j ACCEPT", "nf_tables"),
        ("iptables-legacy -N TIMONEL-SERVICES; iptables-legacy -A TIMONEL-SERVICES -j RETURN", "nf_tables"),
    ],
)
def test_rules_go_where_those_of_the_host_are(foreign: str, chosen: str) -> None:
    if " (nf_tables)" not in subprocess.run(["iptables", "--version"], capture_output=True, text=True).stdout:
        pytest.skip("iptables is the legacy one here")
    told = in_an_empty_network("sh", "-c", f"{foreign}; exec {sys.executable} -c '{CHOOSING}'")
    assert told.strip().endswith(f"({chosen})")


@needs_root
def test_a_network_that_iptables_never_saw_is_only_looked_at() -> None:
    """To ask which backend has rules makes no tables, neither in nf_tables nor the legacy ones."""
    look = f"exec {sys.executable} -c '{LOOKING}'"
    legacy = "cat /proc/net/ip_tables_names /proc/net/ip6_tables_names"
    told = in_an_empty_network("sh", "-c", f"({look}); nft list ruleset; {legacy}")
    assert told == ""


@needs_root
@pytest.mark.parametrize("infix", ["", "-legacy"], ids=["nft", "legacy"])
def test_a_plane_alone(infix: str) -> None:
    """Changes by hand are found, others' rules stay where they are, a process takes over from another, nothing is left."""
    in_an_empty_network(sys.executable, "-m", "tests.agents.iptables_alone", infix)


def test_a_refusal_names_the_rule() -> None:
    script = "*nat\n-A TIMONEL-SERVICES -d 10.96.0.1 -m nonsense\nCOMMIT\n"
    said = "# Warning: legacy\niptables-restore v1.8.9: Couldn't load match `nonsense'\n\nError occurred at line: 2\n"
    told = iptables._complaint(said, script)
    assert told == (
        "iptables-restore v1.8.9: Couldn't load match `nonsense': -A TIMONEL-SERVICES -d 10.96.0.1 -m nonsense"
    )


def test_a_listing_tells_ours_from_the_others() -> None:
    text = (
        "*nat\n:PREROUTING ACCEPT [0:0]\n:DOCKER - [0:0]\n:TIMONEL-SERVICES - [0:0]\n"
        "-A PREROUTING -j TIMONEL-SERVICES\n-A DOCKER -i docker0 -j RETURN\n-A TIMONEL-SERVICES -j RETURN\nCOMMIT\n"
        "*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n"
    )
    there = Listing.read(text)
    assert there.chains == {("nat", "TIMONEL-SERVICES"): ["-j RETURN"]}
    assert there.jumps == {"nat": ["PREROUTING -j TIMONEL-SERVICES"]}
    assert (there.tables, there.busy) == ({"nat", "filter"}, {"nat"})
