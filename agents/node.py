"""The node as a whole: what was pushed, on disk, in the kernel, in the name servers, in health checks' answers.

A push goes: judge, write down, then kernel, names, flows. Whatever fails on the way leaves the push written down and
`is_in_force` false: the next request, or the watch, repairs in place from what is written.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping
from itertools import chain
from pathlib import Path

from agents import conntrack, dns, health, host, ipvs, planes, ruleset
from agents.errors import AgentError, InvalidResource, Refused
from agents.journal import Journal
from agents.state import EMPTY_DIGEST, ApplyError, Change, Element, Refusal, State, apply, bar, check_base

logger = logging.getLogger(__name__)

Owners = dict[str, list[list[str]]]

DIRECTORY, RUN_DIRECTORY = Path("/var/lib/timonel"), Path("/run/timonel")
PROGRAM = Path("/usr/local/lib/timonel/agent.pyz")
_DRIVERS = (*ruleset.FAMILIES, ipvs.DRIVER, "dns", "health", "host")
_FLOW_FAMILIES = {"nft4": "ipv4", "nft6": "ipv6"}
_MANY_FLOWS = 100
MAX_CULPRITS = 20
_LOOK_AGAIN_S = 30.0  # whether the wanted mode has become possible


class Node:
    """One process at a time has one; `agents.lock` sees to it."""

    def __init__(self, directory: Path = DIRECTORY, run_directory: Path = RUN_DIRECTORY) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self._journal = Journal(directory / "journal")
        self._planes = planes.Planes(directory, run_directory)
        self._looked_at = 0.0
        self._names = dns.Names(directory, run_directory)
        self._checks = health.Checks(directory / "health")
        self._flows = {driver: conntrack.UdpFlows(family) for driver, family in _FLOW_FAMILIES.items()}
        self._before = host.Before(directory / "host-before.json")
        self._settled: dict[str, str] = {}  # the host's elements that were brought into force last
        self._is_settleable = True
        self.state: State = self._journal.load()
        if not self._journal.is_own:
            self._judge_again()
        self._refill_flows(self._elements())
        self._suspects: set[str] = set()  # owners that were pushed since everything was in force
        self._forgettable: list[list[str]] = []  # flows that end as soon as the change is in force
        self.is_in_force = False
        self.news: list[tuple[str, str]] = []  # reason and message, to be told by who asks

    # What is held

    @property
    def cluster(self) -> str | None:
        return self.state.cluster

    @property
    def revision(self) -> int:
        return self.state.revision

    @property
    def digest(self) -> str:
        return self.state.digest if self.state.owners else EMPTY_DIGEST

    @property
    def mode(self) -> str:
        """The data plane in force."""
        return self._planes.mode

    def problems(self) -> list[host.Problem]:
        """What is amiss although everything is in force, as `host.preflight` says it."""
        if not self._planes.why:
            return []
        message = f"this node serves in mode {self.mode}, not in mode {self._planes.why}"
        return [{"reason": "ModeFallback", "message": message, "blocking": False}]

    def adopt(self, cluster: str) -> None:
        """Belong to a control plane; what another one pushed goes with its first full push."""
        if self.state.cluster == cluster:
            return
        fresh = State(cluster)
        if self.state.owners:
            # Kept in force until the new control plane's first push replaces it, so that nothing breaks meanwhile.
            barred = {owner: why for owner, why in self.state.refused.items() if owner in self.state.barred}
            fresh, _ = apply(fresh, 0, None, self.state.resources(), barred)
        self.state = fresh
        self._journal.rewrite(self.state)
        self.is_in_force = False

    # Changing it

    def apply(self, cluster: str, revision: int, since: int | None, owners: Owners) -> dict[str, dict[str, str]]:
        """Apply a push; owner -> reason and message for those not in force.

        Raises ApplyError before anything happened; AgentError when it is written down but not in force yet.
        """
        if cluster != self.state.cluster:
            raise AgentError(
                "OtherCluster",
                f"this node belongs to control plane {self.state.cluster or 'none'}, not {cluster}; enrol it again",
            )
        for number in (revision, 0 if since is None else since):
            if not isinstance(number, int) or isinstance(number, bool) or number < 0:
                raise ApplyError(f"cannot read the push: {number!r} is no revision")
        check_base(self.state, revision, since)
        if since is not None and revision == self.state.revision:
            self.ensure()
            return self.rejected()
        barred = judge(owners)
        barred |= self._planes.judge({owner: held for owner, held in owners.items() if owner not in barred}, _held)
        try:
            if since is None:
                self._journal.begin(cluster, revision, owners, barred)
            else:
                self._journal.append(revision, since, owners, barred)
        except OSError as err:
            raise AgentError("DiskFull", f"cannot write {self._journal.path}: {err.strerror}") from err
        # The first push of all goes no way by the change: nothing is there that it would change.
        was_in_force, self.is_in_force = self.is_in_force and bool(self.state.owners), False
        self.state, delta = apply(self.state, revision, since, owners, barred)
        self._suspects |= owners.keys()
        for driver, flows in self._flows.items():
            self._forgettable += flows.follow(delta.of(driver))
        try:
            if was_in_force and "mode" not in {*delta.of("host").adds, *delta.of("host").deletes}:
                self._enforce(delta.changes)
            else:
                self.repair()
        except AgentError:
            self._checks.tell(is_healthy=False)
            raise
        if self._journal.is_long:
            self._journal.rewrite(self.state)
        return self.rejected()

    def _enforce(self, changes: Mapping[str, Change]) -> None:
        """Bring a change into force on what is in force already."""
        try:
            self._planes.now.commit(changes)
        except AgentError as err:
            if err.reason in ("NftMissing", "NftTimeout", "IptablesTimeout"):
                raise  # a refill needs it no less
            logger.warning("refilling: %s reason=%s", err.message, err.reason)
            self.repair()
            return
        if "host" in changes:
            self._settle_host()
        elif "dns" in changes:
            try:
                self._names.commit(changes["dns"])
            except AgentError as err:
                logger.warning("comparing all names: %s reason=%s", err.message, err.reason)
                self._start_names()
        if "health" in changes:
            self._publish_checks()
        self._come_into_force()

    def _come_into_force(self) -> None:
        self.is_in_force = True
        self._suspects.clear()
        self._checks.tell(is_healthy=True)
        commands, self._forgettable = self._forgettable, []
        if len(commands) > _MANY_FLOWS:
            # A whole cluster at once: each is a process, and hardly anything was sent to these addresses before.
            commands = [command for command in commands if command[-2:] != conntrack.UNTRANSLATED]
        for problem in conntrack.forget(commands):
            logger.warning("%s reason=ConntrackFailed", problem)

    def repair(self) -> None:
        """Make everything what is written down, whatever it is now. Raises AgentError when that is impossible."""
        began = time.monotonic()
        self.is_in_force = False
        if not self.state.owners and not self.revision:
            self.is_in_force = True  # nothing was ever pushed
            return
        self._choose_plane()
        try:
            self._refill()
        except Refused:
            culprits = self._at_fault()
            if not culprits:
                raise
            for owner, why in culprits.items():
                logger.warning("leaving out %s: %s reason=%s", owner, why.message, why.reason)
            bar(self.state, culprits)
            self._refill()
            with contextlib.suppress(OSError):  # the next agent would find them again
                self._journal.rewrite(self.state)
        self._come_into_force()
        logger.info("everything refilled at revision %s in %.0f ms", self.revision, (time.monotonic() - began) * 1000)

    def _judge_again(self) -> None:
        """Leave out what this agent cannot read: another one, before it, could."""
        for owner, why in (barred := judge(self.state.resources())).items():
            logger.warning("rejecting %s again: %s reason=%s", owner, why.message, why.reason)
        bar(self.state, barred)
        self._journal.is_own = True

    def _at_fault(self) -> dict[str, Refusal]:
        """The owners without whom the kernel takes the rest; of two that do not go together, the one pushed last.

        None when the kernel refuses the base alone, or more than MAX_CULPRITS. Changes nothing. To find one costs a
        trial of everything for every doubling of the number of owners that were pushed last.
        """
        taken = [owner for owner in sorted(self.state.owners) if owner not in self.state.refused]
        late = [owner for owner in taken if owner and owner in self._suspects]
        in_order = [owner for owner in taken if not owner or owner not in self._suspects] + late
        culprits: dict[str, Refusal] = {}
        links = host.links()

        def objection(owners: list[str]) -> str:
            elements: dict[str, dict[str, str]] = {driver: {} for driver in ruleset.FAMILIES}
            for owner in owners:
                for (driver, key), value in self.state.owners[owner].items():
                    if driver in elements:
                        elements[driver][key] = value
            return self._planes.now.objection(elements, links)

        good = max(len(in_order) - len(late), 1)  # so many from the start are taken
        if objection(in_order[:good]):
            good = 1
            if objection(in_order[:good]):
                return {}
        while message := objection(in_order):
            if len(culprits) == MAX_CULPRITS:
                return {}
            bad = len(in_order)  # so many are not
            while bad - good > 1:
                middle = (good + bad) // 2
                if why := objection(in_order[:middle]):
                    bad, message = middle, why
                else:
                    good = middle
            culprits[in_order.pop(bad - 1)] = Refusal("KernelRefused", message)
        return culprits

    def _refill(self) -> None:
        elements = self._elements()
        if changed := self._planes.refill(elements, host.links()):
            logger.info("%s", changed)
            self.news.append(("ModeChanged", changed))
        self._refill_flows(elements)
        self._settle_host()
        self._publish_checks()

    def _elements(self) -> dict[str, dict[str, str]]:
        """Driver -> elements in force, of those that planes take."""
        return self.state.elements_of((*ruleset.FAMILIES, ipvs.DRIVER))

    def _refill_flows(self, elements: Mapping[str, Mapping[str, str]]) -> None:
        for driver, flows in self._flows.items():
            flows.refill(elements[driver].items())

    def ensure(self) -> None:
        """Repair when something is known to be wrong. Raises AgentError when that is impossible."""
        if not self.is_in_force:
            self._choose_plane()
            if self._difference():
                self.repair()
                return
            # A new process over tables that its predecessor left right.
            self._planes.now.take_over(self._elements(), host.links())
            self._settle_host()
            self._publish_checks()
            self._come_into_force()

    def watch(self) -> str:
        """Look whether kernel and servers are still what they should be, and repair; "" or what was wrong.

        Raises AgentError when it cannot be repaired.
        """
        if not self.state.owners:
            return ""
        if not self.is_in_force:
            self.repair()
            return "what was pushed was not in force"
        if what := self._difference():
            try:
                self.repair()
            except AgentError as err:
                raise AgentError(err.reason, f"{what}, and this is not repaired yet: {err.message}") from err
            return what
        if self._is_mode_possible():
            self.repair()
            return f"mode {self.mode} has become possible"
        if self._planes.now.set_links(host.links()):
            host.let_bridges_turn_back()
        if host.is_settled(self._settled):
            self._is_settleable = True
        elif self._is_settleable:
            self._settle_host()
            # What does not last is not tried every second: other routing rules of the host may be stronger.
            self._is_settleable = host.is_settled(self._settled)
            if not self._is_settleable:
                raise AgentError(
                    "HostFailed", "processes here do not reach Services from the node's address; look at `ip rule`"
                )
            return "somebody changed an address, a route or a setting that Services need"
        if not self._names.is_running:
            self._start_names()
            return "a name server had ended"
        if not self._checks.is_running:
            self._checks.start()
            return "the health check server had ended"
        if problem := self._checks.problem():
            raise AgentError("HealthPortTaken", problem)
        return ""

    def rejected(self) -> dict[str, dict[str, str]]:
        """Owner -> reason and message, of all that are not in force."""
        return {
            owner: {"reason": why.reason, "message": why.message} for owner, why in sorted(self.state.refused.items())
        }

    def host_problems(self) -> list[host.Problem]:
        """What was asked of the host and cannot be there; Services go on without."""
        found = host.conntrack_problem(self.state.elements("host"))
        return [found] if found else []

    def cleanup(self) -> None:
        """Take everything off the host but the agent itself."""
        self._names.zones = host.zones(self.state.elements("host"))
        self._names.stop()
        self._checks.stop()
        self._planes.delete()
        host.restore(self.state.elements("host"), self._before)

    def leftovers(self) -> list[str]:
        """What `cleanup` should have taken off the kernel and is still there."""
        return self._planes.leftovers()

    def _difference(self) -> str:
        return self._planes.difference(None if self.is_in_force else self._elements())

    def _choose_plane(self) -> None:
        """Have the plane that the base asks for, or what serves instead. Owners are judged again by another one."""
        self._looked_at = time.monotonic()
        if not self._planes.choose(self.state.value("host", "mode") or planes.DEFAULT):
            return
        logger.info("mode %s%s", self.mode, f" instead of {self._planes.why}" if self._planes.why else "")
        resources = self.state.resources()
        barred = judge(resources)
        barred |= self._planes.judge({o: held for o, held in self.state.owners.items() if o not in barred}, dict)
        before, revision = self.state, self.state.revision
        self.state, _ = apply(State(before.cluster), revision, None, resources, barred)
        if self.state.barred != before.barred:
            with contextlib.suppress(OSError):  # the next agent would judge as well
                self._journal.rewrite(self.state)

    def _is_mode_possible(self) -> bool:
        """Whether the wanted mode, which was not, has become possible: somebody installed what it lacked."""
        if not self._planes.why or time.monotonic() - self._looked_at < _LOOK_AGAIN_S:
            return False
        before = self.mode
        self._choose_plane()
        return self.mode != before

    def _settle_host(self) -> None:
        self._settled = self.state.elements("host")
        host.settle(self._settled, self._before)
        host.let_bridges_turn_back()
        self._start_names()

    def _publish_checks(self) -> None:
        """Services go on without: the watch tells of it, and tries again."""
        try:
            self._checks.publish(self.state.elements("health"))
        except AgentError as err:
            logger.warning("%s reason=%s", err.message, err.reason)

    def _start_names(self) -> None:
        zones = host.zones(self._settled)
        if zones is None:
            self._names.stop()
        else:
            self._names.start(zones, self.state.elements("dns"))


def judge(owners: Owners) -> dict[str, Refusal]:
    """The owners with a resource that cannot be read. Raises ApplyError for what is no push at all."""
    barred: dict[str, Refusal] = {}
    for owner, resources in owners.items():
        _check_text(owner)
        try:
            is_whole = all(len(resource) == 3 for resource in resources)
            text = "".join(
                chain.from_iterable(resources)
            )  # together: three calls for each are a third of the time here
        except TypeError:
            is_whole = False
        if not is_whole:
            raise ApplyError(f"cannot read the push: {owner!r} has a resource that is not [driver, key, value]")
        _check_text(text)
        try:
            for driver, key, value in resources:
                _judge(driver, key, value)
        except InvalidResource as err:
            barred[owner] = Refusal("InvalidResource", str(err))
    return barred


def _held(resources: list[list[str]]) -> dict[Element, str]:
    return {(driver, key): value for driver, key, value in resources}


def _check_text(text: str) -> None:
    """Raises ApplyError for half a character ("\\ud800"): it has no bytes, so no digest."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ApplyError(f"cannot read the push: {text[:100]!r} is no text") from None


def _judge(driver: str, key: str, value: str) -> None:
    if driver in ruleset.FAMILIES:
        ruleset.check(ruleset.FAMILIES[driver], key, value)
    elif driver == ipvs.DRIVER:
        ipvs.check(key, value)
    elif driver == "dns":
        dns.parse(key, value)
    elif driver == "health":
        health.parse(key, value)
    elif driver == "host":
        host.check(key, value)
    else:
        raise InvalidResource(f"this agent knows no driver {driver[:50]!r}, only {', '.join(_DRIVERS)}")
