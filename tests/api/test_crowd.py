"""A thousand watches at once: each is told all there is, in order, none twice."""

import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from services_app.lab.client import CORE, ApiClient, service
from services_app.lab.watchers import Watchers
from services_app.local.supervisor import Stack

pytestmark = [pytest.mark.soak, pytest.mark.timeout(600)]

WATCHERS = 1000
WRITERS, CHANGES = 4, 50
NAMESPACE = "crowd"
SERVICES = f"{CORE}/namespaces/{NAMESPACE}/services"


@pytest.fixture(scope="module")
def api() -> Iterator[ApiClient]:
    """Four web processes that share the watches."""
    directory = Path(tempfile.mkdtemp(prefix="timonel-crowd-"))
    directory.chmod(0o755)  # PostgreSQL's own user has to pass
    try:
        with Stack(directory, "127.0.0.1:0", durable=False, web_processes=4) as stack:
            yield ApiClient(stack.kubeconfig)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def test_every_watch_of_a_thousand_is_told_every_change_in_order(api: ApiClient) -> None:
    api.ensure_namespace(NAMESPACE)
    made = [api.create(SERVICES, service(f"web-{n}", {"app": f"web-{n}"}, [{"port": 80}])) for n in range(WRITERS)]
    versions: list[str] = []
    failures: list[BaseException] = []

    def write(number: int) -> None:
        try:
            for turn in range(CHANGES):
                change = {"metadata": {"annotations": {"example.org/turn": str(turn)}}}
                written = api.request("PATCH", f"{SERVICES}/web-{number}", change)
                versions.append(written["metadata"]["resourceVersion"])
        except BaseException as err:  # told below
            failures.append(err)

    with Watchers(api, SERVICES, made[-1]["metadata"]["resourceVersion"], WATCHERS) as crowd:
        threads = [threading.Thread(target=write, args=[number]) for number in range(WRITERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        written = sorted(versions, key=int)
        assert len(set(written)) == WRITERS * CHANGES
        crowd.last_heard(written[-1], timeout_s=120)
        assert [number for number, heard in enumerate(crowd.heard) if heard != written] == []
