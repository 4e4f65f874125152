"""What the demo shows to be true, read from outside: by connections, dig and kubectl, not from Timonel's own claims."""

import json
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from services_app.lab.client import Kubectl
from services_app.lab.cluster import DNS_ADDRESS
from services_app.lab.samples import Sample

Message = dict[str, Any]

CONNECTIONS = 60  # of three endpoints one stays unasked in one of ten thousand million tries


class Place(Protocol):
    """Where connections come from and backends are: a place of the lab, or a container of the compose stack."""

    @property
    def name(self) -> str: ...

    @property
    def address(self) -> str: ...

    def ask_often(self, host: str, port: int, count: int, *, timeout_s: float = 2.0) -> list[Message]:
        """As many answers, {"backend", "client", …} or {"error": reason}, one connection each."""
        ...


class Host(Place, Protocol):
    """A node."""

    @property
    def containers(self) -> Sequence[Place]:
        """What sends its packets through this node."""
        ...

    def run(
        self, argv: Sequence[str], *, input: str | None = None, timeout_s: float = 30.0, check: bool = True
    ) -> subprocess.CompletedProcess[str]: ...


class Ground(Protocol):
    """What a proof stands on: nodes, and a client outside. The lab is one, the compose stack another."""

    @property
    def nodes(self) -> Sequence[Host]: ...

    @property
    def client(self) -> Place: ...


@dataclass(frozen=True)
class Line:
    """One statement of the proof. kind: vip, nodeport, dns or kubectl."""

    service: str
    kind: str
    source: str
    target: str
    expected: str
    got: str
    ok: bool

    def record(self) -> dict[str, object]:
        fields = asdict(self)
        return {
            "service": fields["service"],
            "kind": fields["kind"],
            "from": fields["source"],
            "to": fields["target"],
        } | {key: fields[key] for key in ("expected", "got", "ok")}


class Proof:
    """Lines in the order they were checked; `say` gets each as it is."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self.lines: list[Line] = []
        self.convergence_ms: dict[str, float] = {}

    def note(self, service: str, kind: str, source: str, target: str, expected: str, got: str, ok: bool) -> None:
        line = Line(service, kind, source, target, expected, got, ok)
        self.lines.append(line)
        mark = "ok  " if ok else "FAIL"
        self._say(f"{mark} {kind:<8} {source:<13} → {target:<44} {got if ok else f'expected {expected}, got {got}'}")

    @property
    def failed(self) -> list[Line]:
        return [line for line in self.lines if not line.ok]

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [line.record() for line in self.lines]
        path.write_text(
            json.dumps([*rows, {"convergence_ms": self.convergence_ms}], indent=1, ensure_ascii=False) + "\n"
        )


@dataclass(frozen=True)
class Endpoint:
    """A pod of the demo, and the place its backend runs in: the node itself or a container."""

    name: str
    node: Host
    place: Place

    @property
    def is_on_node(self) -> bool:
        return self.place is self.node

    @property
    def is_behind_node(self) -> bool:
        """Whether packets to it go through its node in any case, so that its replies find the way back by themselves."""
        return self.is_on_node or self.place in self.node.containers


@dataclass(frozen=True)
class Shown:
    """A sample Service and where its backends are."""

    sample: Sample
    endpoints: tuple[Endpoint, ...]

    @property
    def service(self) -> str:
        return self.sample.name

    @property
    def namespace(self) -> str:
        return self.sample.namespace

    @property
    def ports(self) -> dict[str, tuple[int, int]]:
        return self.sample.ports

    @property
    def title(self) -> str:
        return f"{self.namespace}/{self.service}"

    @property
    def dns_name(self) -> str:
        return f"{self.service}.{self.namespace}.svc.cluster.local."


def places_of(lab: Ground) -> list[Place]:
    """Where clients of virtual IPs are: every node, and the first container behind each."""
    return [*lab.nodes, *(container for node in lab.nodes for container in node.containers[:1])]


def counted(answers: Iterable[Message]) -> str:
    """ "a 20, b 19, refused 1", by name."""
    counts = Counter(answer.get("backend") or answer["error"] for answer in answers)
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


def is_balanced(answers: list[Message], names: set[str]) -> bool:
    """Everybody answered, nobody else did, no connection failed, and no share is half or double what is fair."""
    counts = Counter(answer.get("backend", "error") for answer in answers)
    fair = len(answers) / len(names)
    return set(counts) == names and all(fair / 2 <= count <= fair * 2 for count in counts.values())


def prove_virtual_ip(proof: Proof, lab: Ground, shown: Shown, virtual_ip: str) -> None:
    """Every port, from every node and a container behind each; an undefined port; and outside, where none answers."""
    names = {endpoint.name for endpoint in shown.endpoints}
    expected = f"answers from {', '.join(sorted(names))}"
    for place in places_of(lab):
        for port, _ in shown.ports.values():
            answers = place.ask_often(virtual_ip, port, CONNECTIONS)
            ok = {a.get("backend") for a in answers} == names
            proof.note(shown.title, "vip", place.name, f"{virtual_ip}:{port}", expected, counted(answers), ok)
    node = lab.nodes[0]
    refused = counted(node.ask_often(virtual_ip, 81, 1, timeout_s=1))
    proof.note(shown.title, "vip", node.name, f"{virtual_ip}:81", "refused 1", refused, refused == "refused 1")
    port = next(iter(shown.ports.values()))[0]
    outside = lab.client.ask_often(virtual_ip, port, 1, timeout_s=0.5)
    got, ok = counted(outside), "error" in outside[0]
    proof.note(shown.title, "vip", lab.client.name, f"{virtual_ip}:{port}", "no answer", got, ok)


def prove_balance(proof: Proof, lab: Ground, shown: Shown, virtual_ip: str, count: int = 300) -> None:
    names = {endpoint.name for endpoint in shown.endpoints}
    port = next(iter(shown.ports.values()))[0]
    answers = lab.nodes[0].ask_often(virtual_ip, port, count)
    target = f"{virtual_ip}:{port} × {count}"
    proof.note(
        shown.title, "vip", lab.nodes[0].name, target, "equal shares", counted(answers), is_balanced(answers, names)
    )


def prove_client_addresses(proof: Proof, lab: Ground, shown: Shown, virtual_ip: str) -> None:
    """A node is seen by its address everywhere; a container by its own where the backend is its node."""
    port = next(iter(shown.ports.values()))[0]
    target = f"{virtual_ip}:{port}"
    for node in lab.nodes:
        seen = {str(a.get("client") or a["error"]) for a in node.ask_often(virtual_ip, port, CONNECTIONS)}
        got = "seen as " + ", ".join(sorted(seen))
        proof.note(shown.title, "vip", node.name, target, f"seen as {node.address}", got, seen == {node.address})
    for endpoint in shown.endpoints:
        if not endpoint.is_on_node or not endpoint.node.containers:
            continue
        container = endpoint.node.containers[0]
        answers = container.ask_often(virtual_ip, port, CONNECTIONS)
        seen = {str(a["client"]) for a in answers if a.get("backend") == endpoint.name}
        got = f"{endpoint.name} sees {', '.join(sorted(seen)) or 'nothing'}"
        expected = f"{endpoint.name} sees {container.address}"
        proof.note(shown.title, "vip", container.name, target, expected, got, got == expected)


def prove_node_port(proof: Proof, lab: Ground, shown: Shown, port: int) -> None:
    """From the client outside on every node; a backend on the node asked, or behind it, sees the client itself."""
    names = {endpoint.name for endpoint in shown.endpoints}
    for node in lab.nodes:
        target = f"{node.address}:{port}"
        answers = lab.client.ask_often(node.address, port, CONNECTIONS)
        ok = {a.get("backend") for a in answers} == names
        expected = f"answers from {', '.join(sorted(names))}"
        proof.note(shown.title, "nodeport", lab.client.name, target, expected, counted(answers), ok)
        for endpoint in shown.endpoints:
            is_seen = endpoint.node is node and endpoint.is_behind_node
            address = lab.client.address if is_seen else node.address
            seen = {str(a["client"]) for a in answers if a.get("backend") == endpoint.name}
            got = f"{endpoint.name} sees {', '.join(sorted(seen)) or 'nothing'}"
            expected = f"{endpoint.name} sees {address}"
            proof.note(shown.title, "nodeport", lab.client.name, target, expected, got, got == expected)


def prove_names(proof: Proof, lab: Ground, shown: Shown, virtual_ip: str) -> None:
    """dig on every node: the address, and where a port is named its SRV record."""
    questions = [("A", shown.dns_name, virtual_ip)]
    for name, (port, _) in shown.ports.items():
        if name:
            questions.append(("SRV", f"_{name}._tcp.{shown.dns_name}", f"{port} {shown.dns_name}"))
    for node in lab.nodes:
        for kind, name, expected in questions:
            dig = ["dig", "+short", "+tries=1", "+time=2", f"@{DNS_ADDRESS}", name, kind]
            got = ", ".join(node.run(dig, check=False).stdout.split("\n")).strip(", ")
            value = got.split(" ", 2)[-1] if kind == "SRV" else got  # priority and weight may be anything
            proof.note(shown.title, "dns", node.name, f"{kind} {name}", expected, got or "nothing", value == expected)


def prove_kubectl(proof: Proof, kubectl: Kubectl, shown: Shown, virtual_ip: str) -> None:
    """What kubectl prints of it: the table, and the description with its endpoints."""

    def ask(expected: str, *arguments: str) -> None:
        done = kubectl(*arguments)
        text = done.stdout if done.returncode == 0 else done.stderr
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        found = next((line for line in lines if all(word in line for word in expected.split())), None)
        got = " ".join((found or (lines or ["nothing"])[-1]).split())
        proof.note(shown.title, "kubectl", "this machine", " ".join(arguments), expected, got, found is not None)

    namespace = ("-n", shown.namespace)
    ask(f"{shown.service} {virtual_ip}", "get", "service", shown.service, *namespace)
    for name, (_, target_port) in shown.ports.items():
        addresses = sorted(f"{e.place.address}:{target_port}" for e in shown.endpoints)
        done = kubectl("describe", "service", shown.service, *namespace)
        listed = [line.split(":", 1)[1].strip() for line in done.stdout.splitlines() if line.startswith("Endpoints:")]
        got = listed[list(shown.ports).index(name)] if len(listed) == len(shown.ports) else done.stderr or str(listed)
        ok = sorted(part.strip() for part in got.split(",")) == addresses
        target = f"describe service {shown.service} -n {shown.namespace}"
        proof.note(shown.title, "kubectl", "this machine", target, f"Endpoints {', '.join(addresses)}", got, ok)
    ask(shown.service, "get", "endpointslices", *namespace)
