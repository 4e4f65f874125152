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
from agents import netlink, nftables, pace
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
expected = nftables._Known.differences
nftables._Known.differences = lambda self, links: looks.append(1) or expected(self, links)

def found():
    tables._looks = pace.Pace()
    return tables.difference(None)

told = [found(), found(), len(looks)]
run("add", "table", "ip", "x")
told += [found(), found(), len(looks)]
tables.commit({"nft4": Change({}, {"cluster_ips 10.96.0.1": ""})})
told += [found(), len(looks)]
run("add", "table", "ip", "y")
tables.commit({"nft4": Change({"cluster_ips 10.96.0.1": ""}, {})})
told += [found(), len(looks)]
run("add", "element", "ip", "timonel", "cluster_ips", "{ 10.96.0.1 }")
told += [found(), found(), len(looks)]
print(json.dumps([counts, told]))
"""


@pytest.mark.netns
def test_the_tables_are_looked_at_again_after_somebodys_commit():
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", COUNTED], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert not done.returncode, done.stderr
    counts, told = json.loads(done.stdout)
    first = counts[0]
    assert counts == [first, first, first + 1, first + 1, first + 2]
    said = "somebody changed set cluster_ips of table ip timonel"
    # What a refill wrote needs no look.
    assert told == ["", "", 0, "", "", 1, "", 1, "", 2, said, said, 4]


def test_what_is_no_answer_is_no_generation():
    kind, head = 10 << 8 | 15, bytes(4)
    number = struct.pack("=HH", 8, 1) + struct.pack(">I", 77)
    other = struct.pack("=HH", 7, 3) + b"nf\0" + b"\0"
    assert netlink._generation(kind, head + number) == 77
    assert netlink._generation(kind, head + other + number) == 77
    assert netlink._generation(kind, head + other) is None
    assert netlink._generation(kind, head + bytes(4)) is None  # an attribute without a length
    assert netlink._generation(2, head + number) is None
