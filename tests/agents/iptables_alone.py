"""Mode iptables' plane without a node, in an empty network that this process is started in. Argument: "-legacy" or "".

Ends at the first check that fails; run by test_iptables_chains.py.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from agents.chains import FAMILIES
from agents.errors import Refused
from agents.iptables import Rules
from agents.pace import Pace
from agents.state import Change
from tests.agents.test_iptables_chains import GROUPS, elements

INFIX = sys.argv[1]
GROUP = "TIMONEL-G-00000001-tcp"
HELD = {driver: elements(family) for driver, family in FAMILIES.items()}
BY_HAND = (
    f"-t nat -D {GROUP} 3",
    f"-t nat -R {GROUP} 1 -j MARK --set-xmark 0x8000/0x8000",
    f"-t nat -I {GROUP} -j RETURN",
    "-t nat -D OUTPUT -j TIMONEL-SERVICES",
    "-t nat -I OUTPUT -j TIMONEL-SERVICES",
    "-t nat -N TIMONEL-OTHER",
    "-t filter -F TIMONEL-FILTER",
    "-t filter -I TIMONEL-FILTER -j RETURN",
    "-t nat -F",
)
FIREWALL = """\
*filter
:DOCKER-USER - [0:0]
:FIREWALL - [0:0]
-A INPUT -j FIREWALL
-A FORWARD -j DOCKER-USER
-A FIREWALL -p tcp -m tcp --dport 23 -j DROP
-A DOCKER-USER -j RETURN
COMMIT
*nat
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
COMMIT
*mangle
-A POSTROUTING -p udp -j MARK --set-xmark 0x10/0x10
COMMIT
"""


def sh(command: str, text: str = "") -> str:
    return subprocess.run(["sh", "-c", command], input=text, capture_output=True, text=True, check=True).stdout


def saved() -> list[str]:
    told = sh(f"iptables{INFIX}-save; ip6tables{INFIX}-save").splitlines()
    return [line for line in told if not line.startswith("#")]


def ours() -> list[str]:
    return [line for line in saved() if "TIMONEL-" in line]


def changes_by_hand_are_found(rules: Rules) -> None:
    rules.refill(HELD, {"eth0"})
    good = ours()
    for tool, commands in (("iptables", BY_HAND), ("ip6tables", BY_HAND[::3])):
        for arguments in commands:
            assert rules.difference(None) == ""
            sh(f"{tool}{INFIX} -w {arguments}")
            rules._comparisons = Pace()  # now, not when the next one is due
            deadline = time.monotonic() + 20
            while not (said := rules.difference(None)):
                assert time.monotonic() < deadline, f"never found: {tool} {arguments}"
                time.sleep(0.05)
            assert f"of {tool}" in said
            rules.refill(HELD, {"eth0"})
            assert ours() == good, f"not repaired: {tool} {arguments}"


def what_others_do_is_no_damage(rules: Rules) -> None:
    sh(f"iptables{INFIX} -w -N FOO; iptables{INFIX} -w -I OUTPUT -j FOO")
    for _ in range(5):
        assert rules.difference(None) == ""
        time.sleep(0.1)
    sh(f"iptables{INFIX} -w -D OUTPUT -j FOO; iptables{INFIX} -w -X FOO")


def links_and_families_are_followed(rules: Rules) -> None:
    good = ours()
    assert rules.set_links({"eth0", "eth1"})
    assert not rules.set_links({"eth0", "eth1"})
    assert sum("-i eth1 -o eth1" in line for line in ours()) == 2
    assert rules.difference(None) == ""
    rules.refill({"nft4": HELD["nft4"]}, {"eth0"})
    assert "TIMONEL-" not in sh(f"ip6tables{INFIX}-save")
    rules.commit({"nft6": Change(adds=HELD["nft6"])})
    assert ours() == good


def another_process_goes_on(rules: Rules, directory: Path) -> None:
    good, other = ours(), Rules(directory)
    assert other.difference(HELD) == ""
    assert "of iptables" in other.difference({**HELD, "nft4": {}})
    other.take_over(HELD, {"eth0"})
    assert other.difference(None) == ""
    assert ours() == good
    slot = f"slots {GROUPS[0]} . 1"
    change = Change({slot: HELD["nft4"][slot]}, {slot: "192.0.2.77 . 80"})
    other.commit({"nft4": change})
    changed = ours()
    with pytest.raises(Refused, match="TIMONEL-GENERATION"):
        rules.commit({"nft4": change})
    assert ours() == changed
    rules.refill(HELD, {"eth0"})


def others_rules_stay(rules: Rules) -> None:
    rules.delete()
    sh(f"iptables{INFIX}-restore", FIREWALL)
    before = saved()
    rules.refill(HELD, {"eth0"})
    in_order = [line for line in saved() if line in before and line.startswith("-A ")]
    assert in_order == [line for line in before if line.startswith("-A ")]
    rules.delete()
    assert rules.leftovers() == []
    assert saved() == before


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        if INFIX == "-legacy":
            sh("iptables-legacy -A INPUT -p tcp --dport 9 -j ACCEPT")
        before = saved()
        rules = Rules(Path(name))
        changes_by_hand_are_found(rules)
        what_others_do_is_no_damage(rules)
        links_and_families_are_followed(rules)
        another_process_goes_on(rules, Path(name))
        rules.delete()
        assert rules.leftovers() == []
        # The kernel keeps legacy tables once they are there.
        assert saved() == before if not INFIX else "TIMONEL-" not in "".join(saved())
        if not INFIX:
            assert sh("nft list ruleset") == ""
        others_rules_stay(rules)


if __name__ == "__main__":
    main()
