"""Many clients at once: no duplicate, no leak, none lost, also when one is killed in the middle."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_network
from typing import IO

import pytest
from django.db import connection

from services_app import store
from services_app.models import ClusterIPClaim, FreeValue
from services_app.spec import kinds
from services_app.spec.errors import Invalid
from services_app.store.checks import check_everything


def closing(work):
    """The work as a thread's task that gives its connection back."""

    def run(*args):
        try:
            return work(*args)
        finally:
            connection.close()

    return run


@pytest.mark.slow
def test_two_thousand_creates_from_sixteen_clients_on_a_slash_20(committed_world, settings):
    settings.TIMONEL_SERVICE_CIDRS = (ip_network("10.96.0.0/20"),)
    with ThreadPoolExecutor(16) as pool:
        made = [*pool.map(closing(lambda i: committed_world.service(f"s{i}")["spec"]["clusterIP"]), range(2000))]
    assert len(set(made)) == 2000 == ClusterIPClaim.objects.count()
    with ThreadPoolExecutor(16) as pool:
        [*pool.map(closing(lambda i: committed_world.delete(kinds.SERVICE, f"s{i}")), range(2000))]
    assert ClusterIPClaim.objects.count() == 0
    assert FreeValue.objects.filter(pool="10.96.0.0/20").count() == 4094


def test_a_full_range_says_so_and_serves_again_after_a_release(committed_world, settings):
    settings.TIMONEL_SERVICE_CIDRS = (ip_network("10.96.0.0/28"),)

    def create(i):
        try:
            return committed_world.service(f"s{i}")["spec"]["clusterIP"]
        except Invalid as full:
            return full

    with ThreadPoolExecutor(8) as pool:
        answers = [*pool.map(closing(create), range(20))]
    given = [a for a in answers if isinstance(a, str)]
    refused = [a for a in answers if isinstance(a, Invalid)]
    assert len(set(given)) == len(given) == 14 and len(refused) == 6
    assert "no free IPv4 address: every one of 10.96.0.0/28 is in use" in refused[0].status()["message"]
    name = next(f"s{i}" for i, a in enumerate(answers) if isinstance(a, str))
    committed_world.delete(kinds.SERVICE, name)
    assert committed_world.service("again")["spec"]["clusterIP"]


def test_an_address_everybody_wants_goes_to_one(committed_world):
    def create(i):
        try:
            return committed_world.service(f"s{i}", clusterIP="10.96.0.77")["metadata"]["name"]
        except Invalid:
            return None

    with ThreadPoolExecutor(8) as pool:
        winners = [name for name in pool.map(closing(create), range(16)) if name]
    assert len(winners) == 1


def test_crossed_claims_of_several_ports_end_without_a_deadlock_error(committed_world):
    numbers = [30100, 30101, 30102]

    def create(i):
        order = numbers if i % 2 else numbers[::-1]
        ports = [{"name": f"p{n}", "port": n, "nodePort": n} for n in order]
        try:
            committed_world.service(f"s{i}", type="NodePort", ports=ports)
        except Invalid:
            return False
        committed_world.delete(kinds.SERVICE, f"s{i}")
        return True

    with ThreadPoolExecutor(8) as pool:
        assert any(pool.map(closing(create), range(40)))


def test_explicit_and_automatic_claims_of_one_pool_do_not_meet(committed_world, settings):
    settings.TIMONEL_NODE_PORT_RANGE = range(30000, 30064)

    def create(i):
        try:
            port = {"port": 80, "nodePort": 30000 + i} if i % 2 else {"port": 80}
            return committed_world.service(f"s{i}", type="NodePort", ports=[port])["spec"]["ports"][0]["nodePort"]
        except Invalid:
            return None

    with ThreadPoolExecutor(8) as pool:
        given = [port for port in pool.map(closing(create), range(64)) if port]
    assert len(set(given)) == len(given) > 32


CHILD = """
import os, sys, threading
import django
django.setup()
from django.conf import settings
from django.db import connection
settings.DATABASES["default"]["NAME"] = connection.settings_dict["NAME"] = sys.argv[1]
from tests.store.conftest import World
world = World()
def work(worker):
    for i in range(10000):
        world.service(f"c{os.getpid()}-{worker}-{i}", type="NodePort")
        os.write(1, f"c{os.getpid()}-{worker}-{i}\\n".encode())  # whole lines, whoever else writes
        if i % 3 == 0:
            from services_app.spec import kinds
            world.delete(kinds.SERVICE, f"c{os.getpid()}-{worker}-{i}")
for worker in range(4):
    threading.Thread(target=work, args=(worker,), daemon=True).start()
threading.Event().wait()
"""


def read_whole_lines(stream: IO[str], lines: list[str]) -> None:
    """Lines as they come; the last one of a killed writer may be half a line, and says nothing."""
    lines.extend(line.strip() for line in stream if line.endswith("\n"))


@pytest.mark.slow
def test_a_writer_killed_in_the_middle_leaves_no_half_service(committed_world):
    """Killed writers lose at most what they had not been told is stored; nothing they took stays taken."""
    name = connection.settings_dict["NAME"]
    for _ in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, name], stdout=subprocess.PIPE, text=True, env={**os.environ}, cwd=os.getcwd()
        )
        told: list[str] = []
        reader = threading.Thread(target=read_whole_lines, args=(child.stdout, told))
        reader.start()
        deadline = time.monotonic() + 30
        while len(told) < 40 and time.monotonic() < deadline:
            time.sleep(0.05)
        child.send_signal(signal.SIGKILL)
        child.wait(10)
        reader.join(10)
        assert len(told) >= 40
        # PostgreSQL ends the transactions of a dead client once it notices; then nothing may be half done.
        deadline = time.monotonic() + 20
        while (found := check_everything()) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert found == []
        page = store.list(kinds.SERVICE, "shop")
        present = {json.loads(text)["metadata"]["name"] for text in page.documents}
        kept = {n for n in told if int(n.rsplit("-", 1)[1]) % 3}
        assert kept <= present
