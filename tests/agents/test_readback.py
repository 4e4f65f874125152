"""What somebody changed in the tables by hand is found and named."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agents.netlink import SetElement
from agents.readback import _networks

ROOT = Path(__file__).parents[2]


@pytest.mark.netns
@pytest.mark.skipif(os.geteuid() != 0, reason="a network of its own needs root")
def test_the_tables_alone() -> None:
    """Every kind of element is read back; each change by hand is named, what others do is none, a process goes on."""
    command = ["unshare", "--net", sys.executable, "-m", "tests.agents.nftables_alone"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def border(number: int, *, is_end: bool = False) -> SetElement:
    return SetElement(number.to_bytes(4, "big"), b"", b"", is_end)


def test_networks_are_what_is_between_borders() -> None:
    top = 255 << 24
    held = [
        *(border(0, is_end=True), border(256, is_end=True), border(256), border(512, is_end=True), border(0)),
        *(border(top), border(1024), border(1027, is_end=True)),
    ]
    assert _networks(held, 4) == ["0.0.0.0/24", "0.0.1.0/24", "0.0.4.0-0.0.4.2", "255.0.0.0/8"]
    assert _networks([border(0)], 4) == ["0.0.0.0/0"]
    assert _networks([border(0, is_end=True)], 4) == []
