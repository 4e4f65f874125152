"""A host after the removal of its node is the host before its enrolment: files, rules, addresses, routes, processes."""

import hashlib
import json
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from services_app.lab.client import CORE, pod, service
from services_app.lab.cluster import Cluster
from services_app.lab.namespaces import outcome
from services_app.lab.network import ORDINARY_USER, Node
from tests.missing import without

pytestmark = [pytest.mark.netns, pytest.mark.slow, pytest.mark.timeout(300)]

# How deep a host's directories are looked into: what programs write below these is the machine's own business.
DEPTHS = {"/etc": 9, "/usr/local": 3, "/home": 9, "/opt": 2, "/srv": 9, "/root": 3, "/var": 3, "/run": 9, "/tmp": 1}
# Prints what the kernel of a host holds, as JSON: name -> value.
LOOK = r"""
import glob, json, subprocess
seen = {}
def run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    return (done.stdout + done.stderr).splitlines()
seen["rules"] = run("nft", "list", "ruleset")
for family in ("-4", "-6"):
    seen["addresses " + family] = [l for l in run("ip", family, "-o", "address") if "tentative" not in l]
    seen["routes " + family] = run("ip", family, "route", "show", "table", "all")
    seen["policy " + family] = run("ip", family, "rule")
for path in glob.glob("/proc/sys/net/ipv[46]/**", recursive=True):
    if any(path.endswith(name) for name in ("ip_forward", "forwarding", "rp_filter", "route_localnet", "accept_ra")):
        seen[path] = open(path).read()
print(json.dumps(seen))
"""
# As systemd's, as far as enrolment goes: enabling makes a link and disabling takes it away.
SYSTEMCTL = r"""#!/bin/sh
wants=/etc/systemd/system/multi-user.target.wants
unit= verb=
for word; do case $word in -*) ;; *.service) unit=$word ;; *) verb=$word ;; esac; done
case $verb in
  enable) test -f /etc/systemd/system/$unit && mkdir -p $wants && ln -sf ../$unit $wants/$unit ;;
  disable) test -f /etc/systemd/system/$unit && rm -f $wants/$unit ;;
  daemon-reload) ;;
  *) exit 1 ;;
esac
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    directory = Path(tempfile.mkdtemp(prefix="timonel-removal-"))
    directory.chmod(0o755)  # PostgreSQL's own user has to pass
    try:
        with Cluster(directory, nodes=1, containers=1, durable=False, web_processes=1) as cluster:
            cluster.stack.manage("node", "remove", "node-1")  # so that the tests begin with a host
            container = cluster.lab.nodes[0].containers[0]
            container.serve(container.name, 8070)
            yield cluster
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def host(cluster: Cluster) -> Node:
    return cluster.lab.nodes[0]


def look(host: Node) -> dict[str, object]:
    """Everything about a host that Timonel could touch; of its files those that are not simply this machine's."""
    seen: dict[str, object] = json.loads(host.run(["python3", "-c", LOOK]).stdout)
    seen["processes"] = sorted(host.processes().values())
    root = f"/proc/{host.pid}/root"
    for top, depth in DEPTHS.items():
        for directory, names, files in os.walk(root + top):
            for path in [os.path.join(directory, name) for name in names + files]:
                name = path.removeprefix(root)
                if not is_volatile(name) and not is_of_this_machine(name, path):
                    seen[name] = description(path)
            if directory.removeprefix(root + top).count("/") >= depth:
                names.clear()
    return seen


def is_volatile(name: str) -> bool:
    """What a login or the clock changes, whoever logs in."""
    return name in ("/var/log/lastlog", "/var/log/wtmp", "/run/utmp") or name.startswith(("/run/sudo", "/run/mount"))


def is_of_this_machine(name: str, path: str) -> bool:
    """Whether the file shows through from below: a host of the lab has layers of its own over this machine's files."""
    try:
        own, its = os.lstat(name), os.lstat(path)
    except OSError:
        return not os.path.lexists(path)  # gone meanwhile
    if stat.S_ISDIR(its.st_mode):
        return (own.st_mode, own.st_uid, own.st_gid) == (its.st_mode, its.st_uid, its.st_gid)
    return (own.st_ino, own.st_mtime_ns, own.st_mode) == (its.st_ino, its.st_mtime_ns, its.st_mode)


def description(path: str) -> list[object] | None:
    try:
        status = os.lstat(path)
        what: list[object] = [oct(status.st_mode), status.st_uid, status.st_gid]
        if os.path.islink(path):
            what.append(os.readlink(path))
        elif os.path.isfile(path):
            what.append(hashlib.sha256(Path(path).read_bytes()).hexdigest())
    except OSError:
        return None
    return what


def differences(before: dict[str, object], after: dict[str, object]) -> dict[str, tuple[object, object]]:
    return {
        name: (before.get(name), after.get(name))
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    }


def enrol(cluster: Cluster, host: Node, user: str) -> str:
    return cluster.stack.manage(
        *("node", "enroll", host.name, host.address, "--user", user, "--identity", str(cluster.lab.identity_file)),
        *("--fingerprint", host.host_key_fingerprint),
    ).stdout


def use(cluster: Cluster, host: Node) -> None:
    """A Service and a name on the host, so that rules, routes, an address and name servers are in force."""
    api, namespace = cluster.api, "removal"
    api.ensure_namespace(namespace)
    container = host.containers[0]
    record = pod("web", {"app": "web"}, host.name, {"app": (8070, "TCP")}, address=container.address)
    api.create(f"{CORE}/namespaces/{namespace}/pods", record)
    made = api.create(
        f"{CORE}/namespaces/{namespace}/services", service("web", {"app": "web"}, [{"port": 80, "targetPort": 8070}])
    )
    outcome(host.ask_until(made["spec"]["clusterIP"], 80, container.name, deadline_s=30), 40)
    api.request("DELETE", f"{CORE}/namespaces/{namespace}")


@pytest.fixture(autouse=True)
def as_found(cluster: Cluster, host: Node) -> Iterator[None]:
    """Whatever a test left: the next one begins with the host again."""
    yield
    if host.name in cluster.stack.manage("node", "list").stdout:
        cluster.stack.manage("node", "remove", host.name)
    host.run(["rm", "-rf", "/run/systemd/system", "/usr/local/bin/systemctl", "/etc/sudoers.d/operators"])


def allow_sudo(host: Node) -> None:
    rule = f"{ORDINARY_USER} ALL=(ALL) NOPASSWD: ALL\n"
    host.run(["/bin/sh", "-c", "umask 227 && cat >/etc/sudoers.d/operators"], input=rule)


def run_systemd(host: Node) -> None:
    host.run(["mkdir", "-p", "/run/systemd/system", "/etc/systemd/system/multi-user.target.wants"])
    host.run(["/bin/sh", "-c", "cat >/usr/local/bin/systemctl && chmod 755 /usr/local/bin/systemctl"], input=SYSTEMCTL)


@pytest.mark.parametrize("user", ["root", ORDINARY_USER])
@pytest.mark.parametrize("boots_with", ["systemd", "nothing"])
def test_a_removed_node_leaves_nothing_behind(cluster: Cluster, host: Node, user: str, boots_with: str) -> None:
    if user != "root":
        allow_sudo(host)
    if boots_with == "systemd":
        run_systemd(host)
    before = look(host)
    enrol(cluster, host, user)
    cluster.wait_ready(host)
    use(cluster, host)
    changed = differences(before, look(host))
    for name in ("rules", "addresses -4", "routes -4", "processes", "/usr/local/lib/timonel/agent.pyz"):
        assert name in changed, "the enrolled host is another"
    assert ("/etc/systemd/system/multi-user.target.wants/timonel-agent.service" in changed) == (boots_with == "systemd")
    assert ("/etc/sudoers.d/timonel" in changed) == (user != "root")
    said = cluster.stack.manage("node", "remove", host.name).stdout
    assert "the agent and its files are gone" in said
    assert f"the control plane's key of {user} is gone" in said
    assert differences(before, look(host)) == {}


def test_a_login_that_changed_between_enrolments_is_cleaned_up_too(cluster: Cluster, host: Node) -> None:
    allow_sudo(host)
    before = look(host)
    for user in (ORDINARY_USER, "root"):
        enrol(cluster, host, user)
        cluster.wait_ready(host)
    cluster.stack.manage("node", "remove", host.name)
    assert differences(before, look(host)) == {}


def test_a_refused_enrolment_leaves_nothing_behind(cluster: Cluster, host: Node) -> None:
    before = look(host)
    with without(host, "/usr/sbin/nft"), pytest.raises(subprocess.CalledProcessError) as caught:
        enrol(cluster, host, "root")
    assert "NftMissing" in caught.value.stderr
    assert differences(before, look(host)) == {}


def test_other_keys_of_the_login_stay_whole(cluster: Cluster, host: Node) -> None:
    """The file may end without a line's end, and the new key must not become part of the last one."""
    file = "/root/.ssh/authorized_keys"
    keys = host.run(["cat", file]).stdout
    host.run(["/bin/sh", "-c", f"printf %s '{keys.strip()}' >{file}"])
    enrol(cluster, host, "root")
    cluster.wait_ready(host)
    cluster.stack.manage("node", "remove", host.name)
    assert host.run(["cat", file]).stdout == keys


def test_a_removal_is_refused_while_rules_cannot_be_taken_back_and_may_be_tried_again(
    cluster: Cluster, host: Node
) -> None:
    before = look(host)
    enrol(cluster, host, "root")
    cluster.wait_ready(host)
    wrapper = '#!/bin/sh\ncase "$*" in *delete*) exit 1 ;; esac\nexec /usr/sbin/nft "$@"\n'
    host.run(["/bin/sh", "-c", "cat >/usr/local/sbin/nft && chmod 755 /usr/local/sbin/nft"], input=wrapper)
    try:
        with pytest.raises(subprocess.CalledProcessError) as caught:
            cluster.stack.manage("node", "remove", host.name)
        assert "cannot take back table ip timonel" in caught.value.stderr
    finally:
        host.run(["rm", "-f", "/usr/local/sbin/nft"])
    cluster.wait_ready(host)
    cluster.stack.manage("node", "remove", host.name)
    assert differences(before, look(host)) == {}
