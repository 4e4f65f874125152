"""Whether a node holds what one refill of everything would make, however it got there.

Its text is run on the node, by Python's -c, with the agent's file on the path.

A line of standard input is {"mode": …, "owners": as pushed, "rejected": names of owners}, a line of the output a list of what
differs.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from agents import host, iptables, ipvs, nftables, ruleset, userspace
from agents.chains import FAMILIES
from agents.node import DIRECTORY, RUN_DIRECTORY
from agents.state import Elements, Refusal, State, apply

Tables = Mapping[str, nftables._Known]


def in_tables(tables: Tables) -> list[str]:
    return [f"{known.family.table}: {name}" for known in tables.values() for name in known.differences(host.links())]


def in_nftables(elements: Elements) -> list[str]:
    return in_tables(nftables.Tables()._expected(elements))


def in_userspace(elements: Elements) -> list[str]:
    plane = userspace.Userspace(DIRECTORY, RUN_DIRECTORY)
    state = userspace._State(plane._families, elements)
    if not state.has_ports(plane._ports):
        return ["a Service has no port"]
    said = plane.difference(elements)
    return in_tables(plane._tables._expected(state.elements(state.served, plane._ports))) + ([said] if said else [])


def in_ipvs(elements: Elements) -> list[str]:
    plane = ipvs.Servers(DIRECTORY)
    said = plane.difference(elements)
    return in_tables(plane._tables._expected(ipvs._marked(elements))) + ([said] if said else [])


def in_iptables(elements: Elements) -> list[str]:
    """Compared as text with what a refill makes in an empty network."""
    backend = iptables.choose()
    assert backend is not None
    there = rules_of(backend)
    made = subprocess.run(
        ["unshare", "--net", *sys.orig_argv[:3], "refill"],
        input=json.dumps([backend.kind, elements, sorted(host.links())]),
        capture_output=True,
        text=True,
        check=True,
    )
    return sorted(there ^ set(made.stdout.splitlines()))


def refill(kind: str, elements: Elements, links: Iterable[str]) -> None:
    """Make it in this network, and print it."""
    with tempfile.TemporaryDirectory() as directory:
        (backend,) = (one for one in iptables.backends() if one.kind == kind)
        iptables.choose = lambda: backend
        iptables.Rules(Path(directory)).refill(elements, links)
    print("\n".join(rules_of(backend)))


def rules_of(backend: iptables.Backend) -> set[str]:
    """Ours, each with its place in its chain."""
    found, places = set(), dict[str, int]()
    for family in FAMILIES.values():
        for line in iptables.save(backend, family).splitlines():
            if line.startswith("-A TIMONEL-") or re.search("-[jg] TIMONEL-", line):
                chain = f"{family.ip} {line.split()[1]}"
                places[chain] = place = places.get(chain, 0) + 1
                found.add(f"{family.ip} {place if 'TIMONEL-' in chain else ''} {line}")
    return found


LOOKS = {"nftables": in_nftables, "userspace": in_userspace, "ipvs": in_ipvs, "iptables": in_iptables}


def main() -> None:
    if sys.argv[1:] == ["refill"]:
        refill(*json.load(sys.stdin))
        return
    for line in sys.stdin:
        given = json.loads(line)
        barred = {name: Refusal("Rejected", "as the agent said") for name in given["rejected"]}
        state, _ = apply(State(), 1, None, given["owners"], barred)
        elements = {driver: state.elements(driver) for driver in (*ruleset.FAMILIES, ipvs.DRIVER)}
        print(json.dumps(LOOKS[given["mode"]](elements)), flush=True)


if __name__ == "__main__":
    main()
