"""IPAddress objects: written with the Service that holds the address, in its transaction."""

import json
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from django.db import connection

from services_app.plan import allocation
from services_app.spec import ipaddress, kinds
from services_app.spec.meta import timestamp

if TYPE_CHECKING:
    from services_app.store.transaction import Transaction

Document = dict[str, Any]


def follow(tx: "Transaction", before: Document | None, after: Document | None) -> None:
    """Write what a change of a Service means for its IPAddresses. None: it was not there, or is no more."""
    had, has = allocation.cluster_ips_of(before), allocation.cluster_ips_of(after)
    if after is not None:
        for address in has:
            if address not in had:
                insert(tx, address, after["metadata"]["namespace"], after["metadata"]["name"])
    if before is not None:
        holder = before["metadata"]["namespace"], before["metadata"]["name"]
        delete(tx, [address for address in had if address not in has], holder)


def insert(tx: "Transaction", address: str, namespace: str, name: str) -> None:
    """The IPAddress of a Service's cluster IP."""
    made = ipaddress.of_service(address, namespace, name, uid=str(uuid4()), now=timestamp(tx.now))
    tx.insert(kinds.IP_ADDRESS, made)


def delete(tx: "Transaction", addresses: list[str], holder: tuple[str, str] | None = None) -> None:
    """Remove IPAddresses, as far as they are there. holder: only those of this Service (namespace, name)."""
    if not addresses:
        return
    sql = "SELECT document FROM services_app_ipaddress WHERE name = ANY(%s) ORDER BY name"
    (rows,) = tx.send((sql, (addresses,)))
    for (text,) in rows:
        document = json.loads(text)
        if holder is None or ipaddress.parent_of(document) == holder:
            tx.delete(kinds.IP_ADDRESS, document, text)


def service_of(address: str) -> tuple[str, str] | None:
    """(namespace, name) of the Service an address is claimed for; None when there is none. One query."""
    sql = (
        "SELECT service.namespace, service.name FROM services_app_clusteripclaim claim"
        " JOIN services_app_service service ON service.uid = claim.service_id WHERE claim.address = %s::inet"
    )
    with connection.cursor() as cursor:
        cursor.execute(sql, [address])
        found = cursor.fetchone()
    return (found[0], found[1]) if found else None
