"""A person enrols, watches, repairs and removes a real host from the page: Chromium, two web processes, sshd, an agent."""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from services_app.lab.network import ORDINARY_USER, Lab, Node
from services_app.local.supervisor import Stack
from tests.web.chromium import NARROW, Visit, chromium

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.netns, pytest.mark.timeout(300)]
expect.set_options(timeout=30_000)
SECRET = "correct-horse-battery-staple"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(nodes=1, containers=1) as lab:
        yield lab


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    directory = Path(tempfile.mkdtemp(prefix="timonel-page-"))
    directory.chmod(0o755)  # PostgreSQL's own user has to pass
    try:
        with Stack(directory, "127.0.0.1:0", web_processes=2, durable=False) as stack:
            yield stack
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def browser():
    with chromium() as made:
        yield made


@pytest.fixture
def visit(browser, stack: Stack) -> Iterator[Visit]:
    made = Visit(browser, stack.url)
    made.log_in("admin", stack.admin_password, "/ui/nodes/")
    yield made
    assert made.complaints == []
    made.context.close()


@pytest.fixture
def host(lab: Lab, stack: Stack) -> Iterator[Node]:
    """A host that is no node; whatever a test made of it is taken back."""
    node = lab.nodes[0]
    yield node
    if node.name in stack.manage("node", "list").stdout:
        stack.manage("node", "remove", node.name)


def describe(page: Page, host: Node, user: str = "root") -> None:
    """The first form; the host's key is on the page afterwards, and is the right one."""
    page.get_by_role("link", name="Enrol a node").first.click()
    page.get_by_label("Name", exact=True).fill(host.name)
    page.get_by_label("Address", exact=True).fill(host.address)
    page.get_by_label("Login", exact=True).fill(user)
    page.get_by_label("Zone", exact=True).fill("lyon")
    page.get_by_role("button", name="Show its host key").click()
    expect(page.locator("#fingerprint")).to_have_text(host.host_key_fingerprint)


def enrol_with_key(page: Page, lab: Lab, host: Node) -> None:
    describe(page, host)
    page.get_by_label("Private key").fill(lab.identity_file.read_text())
    page.get_by_role("button", name="The key is right: enrol").click()
    expect(page.locator("#operation")).to_contain_text("serves every Service")


def restart_sshd(host: Node) -> None:
    host.stop_sshd()
    host.start_sshd()


def traces(host: Node) -> str:
    look = (
        "nft list tables; ip route show proto 84; ls -d /usr/local/lib/timonel /var/lib/timonel /run/timonel"
        " /etc/sudoers.d/timonel; grep -rl 'timonel control plane' /root/.ssh /home"
    )
    return host.run(["/bin/sh", "-c", f"({look}) 2>/dev/null"], check=False).stdout.strip()


def test_a_host_is_enrolled_watched_and_removed_from_the_page(visit: Visit, lab: Lab, host: Node) -> None:
    page = visit.page
    expect(page.locator("#nodes")).to_contain_text("No node yet")
    describe(page, host)
    page.get_by_label("Private key").fill(lab.identity_file.read_text())
    page.evaluate("window.name = 'watching'")
    page.get_by_role("button", name="The key is right: enrol").click()
    steps = page.locator("#operation li")
    expect(steps.filter(has_text="logged in as root")).to_be_visible()
    page.evaluate("window.loadedOnce = true")
    for text in ("placed agent", "the host has what a node needs", f"node {host.name} ({host.address}) recorded"):
        expect(steps.filter(has_text=text)).to_be_visible()
    expect(page.locator("#operation")).to_contain_text("serves every Service")
    assert page.evaluate("window.loadedOnce"), "the steps came without loading the page again"
    for _ in range(4):  # by whichever web process
        page.reload()
        expect(steps.filter(has_text="first push requested")).to_be_visible()

    page.get_by_role("link", name=f"Go to {host.name}").click()
    node = page.locator("#node")
    for text in (
        "Live",
        "lyon",
        "root@" + host.address,
        host.host_key_fingerprint,
        "Enrolled",
        "admin enrolled the node",
    ):
        expect(node).to_contain_text(text)
    page.get_by_role("button", name="Push everything").click()
    expect(page.get_by_role("status").filter(has_text="gets everything")).to_be_visible()
    assert traces(host)

    page.get_by_role("link", name="Remove").click()
    expect(page.get_by_text("/usr/local/lib/timonel")).to_be_visible()
    page.get_by_role("button", name=f"Remove {host.name}").click()
    expect(steps.filter(has_text="the agent and its files are gone")).to_be_visible()
    expect(steps.filter(has_text=f"node {host.name} forgotten")).to_be_visible()
    page.get_by_role("link", name="Go to nodes").click()
    expect(page.locator("#nodes")).to_contain_text("No node yet")
    assert traces(host) == ""


def test_an_ordinary_user_with_a_password_and_no_keys_yet_enrols_a_host(visit: Visit, host: Node) -> None:
    page, home = visit.page, f"/home/{ORDINARY_USER}"
    host.run(["mv", f"{home}/.ssh", f"{home}/.kept"])
    hashed = subprocess.run(
        ["openssl", "passwd", "-6", SECRET], capture_output=True, text=True, check=True
    ).stdout.strip()
    host.run(["chpasswd", "-e"], input=f"{ORDINARY_USER}:{hashed}\n")
    host.run(["sed", "-i", "s/^PasswordAuthentication no/PasswordAuthentication yes/", "/etc/ssh/lab_sshd_config"])
    host.run(
        ["/bin/sh", "-c", "umask 227 && cat >/etc/sudoers.d/operators"],
        input=f"{ORDINARY_USER} ALL=(ALL) NOPASSWD: ALL\n",
    )
    restart_sshd(host)
    try:
        describe(page, host, ORDINARY_USER)
        page.get_by_label("Password").fill("wrong")
        page.get_by_role("button", name="The key is right: enrol").click()
        expect(page.locator("#operation")).to_contain_text("AuthenticationFailed")
        page.get_by_role("link", name="Try again").click()
        expect(page.get_by_label("Login", exact=True)).to_have_value(ORDINARY_USER)
        page.get_by_role("button", name="Show its host key").click()
        page.get_by_label("Password").fill(SECRET)
        page.get_by_role("button", name="The key is right: enrol").click()
        expect(page.locator("#operation")).to_contain_text(f"sudo rule for {ORDINARY_USER} written")
        expect(page.locator("#operation")).to_contain_text("serves every Service")
        host.run(["rm", "-f", "/etc/sudoers.d/operators"])
        page.get_by_role("link", name=f"Go to {host.name}").click()
        page.get_by_role("link", name="Remove").click()
        page.get_by_role("button", name=f"Remove {host.name}").click()
        expect(page.locator("#operation")).to_contain_text(f"node {host.name} forgotten")
        assert traces(host) == ""
        assert host.run(["ls", "-A", home]).stdout.split() == [".kept"]
    finally:
        host.run(["rm", "-f", "/etc/sudoers.d/operators"])
        host.run(["/bin/sh", "-c", f"rm -rf {home}/.ssh; mv {home}/.kept {home}/.ssh"])


def test_a_changed_host_key_is_compared_and_confirmed_from_the_page(visit: Visit, lab: Lab, host: Node) -> None:
    page = visit.page
    enrol_with_key(page, lab, host)
    page.get_by_role("link", name=f"Go to {host.name}").click()
    old = host.host_key_fingerprint
    host.run(["mv", "/etc/ssh/lab_host_key", "/etc/ssh/kept"])
    host.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/etc/ssh/lab_host_key"])
    restart_sshd(host)
    new = host.run(["ssh-keygen", "-l", "-E", "sha256", "-f", "/etc/ssh/lab_host_key.pub"]).stdout.split()[1]
    expect(page.locator("#node")).to_contain_text("Quarantined")
    page.get_by_role("link", name="Compare the host keys").click()
    expect(page.locator("#confirmed")).to_have_text(old)
    expect(page.locator("#shown")).to_have_text(new)
    page.get_by_role("button", name="I compared it: confirm this key").click()
    host.host_key_fingerprint = new
    expect(page.locator("#node .datagrid")).to_contain_text("Live")
    expect(page.locator("#node")).to_contain_text(f"admin confirmed the host key {new}")


def test_enrolling_on_a_phone_needs_no_sideways_scrolling(browser, stack: Stack, lab: Lab, host: Node) -> None:
    visit = Visit(browser, stack.url, size=NARROW, theme="dark")
    visit.log_in("admin", stack.admin_password, "/ui/nodes/")
    page, widths = visit.page, {}
    widths["nodes"] = visit.overflow_px()
    describe(page, host)
    widths["login"] = visit.overflow_px()
    page.get_by_label("Private key").fill(lab.identity_file.read_text())
    page.get_by_role("button", name="The key is right: enrol").click()
    expect(page.locator("#operation")).to_contain_text("serves every Service")
    widths["operation"] = visit.overflow_px()
    page.get_by_role("link", name=re.compile("^Go to")).click()
    expect(page.locator("#node")).to_contain_text("Live")
    widths["node"] = visit.overflow_px()
    page.get_by_role("link", name="Remove").click()
    widths["remove"] = visit.overflow_px()
    assert visit.complaints == []
    visit.context.close()
    assert set(widths.values()) == {0}, widths
