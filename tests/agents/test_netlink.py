"""The kernel's count of commits, which spares the watch a look at the tables."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from agents import netlink

ROOT = Path(__file__).parents[2]
COUNTED = """
import subprocess
import json
from agents import netlink, nftables
from agents.state import Change

def run(*command):
    subprocess.run(["nft", *command], check=True, capture_output=True)

counts = [netlink.ruleset_generation(), netlink.ruleset_generation()]
for command in (["add", "table", "ip", "x"], ["list", "ruleset"], ["delete", "table", "ip", "x"]):
    run(*command)
    counts.append(netlink.ruleset_generation())

tables = nftables.Tables(timeout_s=60)
tables.refill({}, [])
looks = []
expected = nftables.Tables._are_expected
nftables.Tables._are_expected = lambda self, sums: looks.append(1) or expected(self, sums)
found = [tables.is_as_left(None), tables.is_as_left(None), len(looks)]
run("add", "table", "ip", "x")
found += [tables.is_as_left(None), tables.is_as_left(None), len(looks)]
tables.commit({"nft4": Change({}, {"cluster_ips 10.96.0.1": ""})})
found += [tables.is_as_left(None), len(looks)]
run("add", "table", "ip", "y")
tables.commit({"nft4": Change({"cluster_ips 10.96.0.1": ""}, {})})
found += [tables.is_as_left(None), len(looks)]
run("flush", "set", "ip", "timonel", "generation")
found += [tables.is_as_left(None), tables.is_as_left(None), len(looks)]
print(json.dumps([counts, found]))
"""


@pytest.mark.netns
def test_the_tables_are_looked_at_again_after_somebodys_commit():
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", COUNTED], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert not done.returncode, done.stderr
    counts, found = json.loads(done.stdout)
    first = counts[0]
    assert counts == [first, first, first + 1, first + 1, first + 2]
    assert found == [True, True, 1, True, True, 2, True, 2, True, 3, False, False, 5]


def test_what_is_no_answer_is_no_generation():
    kind, head = 10 << 8 | 15, bytes(4)
    number = struct.pack("=HH", 8, 1) + struct.pack(">I", 77)
    other = struct.pack("=HH", 7, 3) + b"nf\0" + b"\0"
    assert netlink._generation(kind, head + number) == 77
    assert netlink._generation(kind, head + other + number) == 77
    assert netlink._generation(kind, head + other) is None
    assert netlink._generation(kind, head + bytes(4)) is None  # an attribute without a length
    assert netlink._generation(2, head + number) is None
