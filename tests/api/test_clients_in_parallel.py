"""Sixteen clients over HTTPS, while web servers and clients are killed: no address twice, none leaked, none lost."""

import json
import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from services_app.lab.client import CORE, ApiClient, ApiRefused, service
from services_app.local.supervisor import Stack

CLIENTS, EACH = 16, 125


def create_until_accepted(api: ApiClient, collection: str, name: str) -> None:
    """Ask again while nobody answers; AlreadyExists then means that an answer was lost."""
    document = service(name, {"app": name}, [{"port": 80}], kind="NodePort")
    deadline = time.monotonic() + 60
    while True:
        try:
            api.create(collection, document)
            return
        except ApiRefused as err:
            if err.code == 409:
                return
            if err.code < 500 or time.monotonic() > deadline:
                raise
        except OSError:
            assert time.monotonic() < deadline, f"nobody took {name}"
        time.sleep(0.05)


def doomed_client(kubeconfig: Path, collection: str) -> None:
    api = ApiClient(kubeconfig)
    for i in range(100_000):
        create_until_accepted(api, collection, f"doomed-{os.getpid()}-{i}")


def checked(stack: Stack) -> list[str]:
    program = (
        "import json; from services_app.store.checks import check_everything; print(json.dumps(check_everything()))"
    )
    found: list[str] = json.loads(stack.manage("shell", "-v0", "-c", program).stdout.strip().splitlines()[-1])
    return found


@pytest.mark.soak
@pytest.mark.timeout(400)
def test_two_thousand_creates_while_servers_and_clients_are_killed(stack: Stack, api: ApiClient) -> None:
    api.ensure_namespace("crowd")
    collection = f"{CORE}/namespaces/crowd/services"
    is_over = threading.Event()

    def killer() -> None:
        for number in range(4):
            if is_over.wait(6):
                return
            os.kill(stack.pids_of("web")[number % 2 - 1], signal.SIGKILL)

    context = multiprocessing.get_context("spawn")
    doomed = [context.Process(target=doomed_client, args=(stack.kubeconfig, collection)) for _ in range(2)]
    for process in doomed:
        process.start()
    thread = threading.Thread(target=killer)
    thread.start()
    names = [f"crowd-{client}-{i}" for i in range(EACH) for client in range(CLIENTS)]
    try:
        with ThreadPoolExecutor(CLIENTS) as pool:
            made = [pool.submit(create_until_accepted, api, collection, name) for name in names]
            time.sleep(3)
            for process in doomed:
                process.kill()
            for future in made:
                future.result()
    finally:
        is_over.set()
        thread.join()
        for process in doomed:
            process.kill()
            process.join()
    # A request of a killed client may still be under way.
    deadline = time.monotonic() + 30
    while (found := checked(stack)) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert found == []
    items = api.request("GET", collection)["items"]
    assert {item["metadata"]["name"] for item in items} >= set(names)
    addresses = [item["spec"]["clusterIP"] for item in items]
    assert len(set(addresses)) == len(addresses)
    ports = [port["nodePort"] for item in items for port in item["spec"]["ports"]]
    assert len(set(ports)) == len(ports)
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(lambda item: api.request("DELETE", f"{collection}/{item['metadata']['name']}"), items))
    assert api.request("GET", collection)["items"] == []
    assert checked(stack) == []
