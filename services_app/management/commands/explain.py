"""`timonel explain`: where a connection goes, and by which element of a node's tables."""

import json
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from django.core.management import BaseCommand, CommandError, CommandParser

from services_app import store
from services_app.models import Node, NodeAccess
from services_app.push import snapshot
from services_app.push.explain import PROTOCOLS, Question, explain
from services_app.render.node import network_of
from services_app.spec import kinds
from services_app.spec.errors import NotFound


class Command(BaseCommand):
    """Asks the tracer about what nodes should hold now; nothing is sent anywhere."""

    help = (
        "Say what nodes do with a new connection to ADDRESS:PORT or NAMESPACE/SERVICE:PORT: which endpoints it may reach, "
        "whom they see, or why nobody answers."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("to", metavar="TO", help="10.96.0.10:80, [fd00:10:96::a]:53, shop/web:80")
        parser.add_argument("--protocol", choices=PROTOCOLS, default="tcp")
        parser.add_argument("--from", dest="source", metavar="ADDRESS", help="the client's; without it the node itself")
        parser.add_argument("--node", help="the node that the connection reaches first; without it each one")

    def handle(self, *, to: str, protocol: str, source: str | None, node: str | None, **_: Any) -> None:
        destination, port = _target(to)
        version = ip_address(destination).version
        if source is not None and _address(source, "--from") and ip_address(source).version != version:
            raise CommandError(f"--from {source}: of another address family than {destination}")
        accesses = NodeAccess.objects.order_by("node").values_list("node", "address")
        chosen = [(name, address) for name, address in accesses if node in (None, name)]
        if not chosen:
            raise CommandError(
                f"no enrolled node {node!r}; see `timonel node list`" if node else "no node is enrolled yet"
            )
        question = Question(destination, port, protocol, source or "")
        for name, node_address in chosen:
            self._tell(name, node_address, question)

    def _tell(self, node: str, address: str, question: Question) -> None:
        text = Node.objects.filter(name=node).values_list("document", flat=True).first()
        own = [str(found) for found in network_of(json.loads(text) if text else None, address).addresses]
        delta = snapshot.read_delta(node, address, None, with_base=True)
        answer = explain(node, own, delta.owners, question)
        if answer.packet is None:
            self.stdout.write(f"{node}: has no address of the family of {question.destination}")
            return
        packet = answer.packet
        way = f"{packet.source} -> {packet.destination} {packet.protocol} {packet.port}"
        self.stdout.write(f"{node}: {way}: {answer.words}")
        for share in answer.shares:
            seen = "sees the client" if share.sees_client else "sees the node"
            part = "" if answer.is_even else f", {share.part:.1%} of connections"
            self.stdout.write(f"  {share.address} {share.port}  {seen}{part}")
        for step, owner in answer.steps:
            self.stdout.write(f"  | {step}{f'  ({owner})' if owner else ''}")


def _target(text: str) -> tuple[str, int]:
    """Address and port. Raises CommandError."""
    host, _, port = text.rpartition(":")
    if not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise CommandError(f"cannot read {text!r}: it ends with :PORT, a number from 1 to 65535")
    namespace, slash, name = host.partition("/")
    if not slash:
        return _address(urlsplit(f"//{text}").hostname or "", "TO"), int(port)
    try:
        service = json.loads(store.get(kinds.SERVICE, namespace, name).document)
    except NotFound as err:
        raise CommandError(err.message) from err
    address = service["spec"].get("clusterIP", "None")
    if address in ("None", ""):
        raise CommandError(
            f"Service {host} has no cluster IP: clients reach its endpoints by name, no proxy is between"
        )
    return address, int(port)


def _address(text: str, argument: str) -> str:
    try:
        return str(ip_address(text))
    except ValueError:
        raise CommandError(f"{argument} {text!r}: not an IP address") from None
