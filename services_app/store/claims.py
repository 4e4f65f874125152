"""Giving out cluster IPs and node ports: the unique indexes decide, a list of free values makes the choice O(1).

All of it happens in the caller's transaction, before the counter row is taken: a failed create leaves no trace, and
claims of different Services do not wait for each other. Locks in one order: given addresses sorted, automatic
addresses, given ports sorted, automatic ports.
"""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Any
from uuid import UUID

from django.db import connection

from services_app.plan import allocation
from services_app.plan.allocation import PoolRange
from services_app.spec.errors import FieldError, Invalid
from services_app.spec.kinds import SERVICE
from services_app.spec.objects import ClusterSettings

Document = dict[str, Any]

LAID_OUT_AT_ONCE = 4096
TAKEN = "provided {what} is already allocated"

_ADDRESS, _PORT = "address", "port"
_CLAIM_GIVEN = {
    _ADDRESS: "INSERT INTO services_app_clusteripclaim (address, service_id) VALUES (%s::inet, %s)"
    " ON CONFLICT DO NOTHING RETURNING 1",
    _PORT: "INSERT INTO services_app_nodeportclaim (port, service_id) VALUES (%s::int, %s)"
    " ON CONFLICT DO NOTHING RETURNING 1",
}
# Takes the values that have been free for longest; one another transaction is about to take is passed over.
# An array, not IN: the planner may run a subquery of IN once a row, each time locking and skipping what it took before.
_TAKE_FREE = (
    "WITH pick AS (DELETE FROM services_app_freevalue WHERE id = ANY(ARRAY(SELECT id FROM services_app_freevalue"
    " WHERE pool = %s ORDER BY band, id LIMIT %s FOR UPDATE SKIP LOCKED)) RETURNING band, id, value), claim AS ({insert})"
    " SELECT value, value{cast} IN (SELECT value FROM claim) FROM pick ORDER BY band, id"
)
_CLAIM_FREE = {
    _ADDRESS: _TAKE_FREE.format(
        insert="INSERT INTO services_app_clusteripclaim (address, service_id) SELECT value::inet, %s FROM pick"
        " ON CONFLICT DO NOTHING RETURNING address AS value",
        cast="::inet",
    ),
    _PORT: _TAKE_FREE.format(
        insert="INSERT INTO services_app_nodeportclaim (port, service_id) SELECT value::int, %s FROM pick"
        " ON CONFLICT DO NOTHING RETURNING port AS value",
        cast="::int",
    ),
}
# Places of values that no range has are not in the arrays: those are only deleted.
_GIVE_BACK = (
    "WITH gone AS (DELETE FROM {table} WHERE service_id IS NOT DISTINCT FROM %s::uuid"
    " AND {column} = ANY(%s::{type}[]) RETURNING {column} AS value)"
    " INSERT INTO services_app_freevalue (pool, band, value)"
    " SELECT * FROM unnest(%s::text[], %s::smallint[], %s::text[]) AS place (pool, band, value)"
    " WHERE place.value::{type} IN (SELECT value FROM gone) ON CONFLICT DO NOTHING"
)
_RELEASE = {
    _ADDRESS: _GIVE_BACK.format(table="services_app_clusteripclaim", column="address", type="inet"),
    _PORT: _GIVE_BACK.format(table="services_app_nodeportclaim", column="port", type="int"),
}
_CLAIM_HELD = {
    _ADDRESS: "INSERT INTO services_app_clusteripclaim (address, service_id) VALUES (%s::inet, %s)"
    " ON CONFLICT (address) DO UPDATE SET service_id = EXCLUDED.service_id",
    _PORT: "INSERT INTO services_app_nodeportclaim (port, service_id) VALUES (%s::int, %s)"
    " ON CONFLICT (port) DO UPDATE SET service_id = EXCLUDED.service_id",
}
_CLAIMED = {
    _ADDRESS: "SELECT 1 FROM services_app_clusteripclaim WHERE address = ({value})::inet",
    _PORT: "SELECT 1 FROM services_app_nodeportclaim WHERE port = ({value})::int",
}


def claim(uid: UUID, old: Document | None, new: Document, cluster: ClusterSettings) -> None:
    """Give `new` the addresses and ports it asks for or lacks, and fill them in.

    old: the Service as stored, None on create; what it holds already is kept. Releases nothing.
    Raises Invalid, naming every field whose value is taken and the range that is full.
    """
    errors = _claim_addresses(uid, old, new, cluster)
    errors += _claim_ports(uid, old, new, cluster)
    if errors:
        raise Invalid(SERVICE, new["metadata"].get("name", ""), errors)


def release(uid: UUID, old: Document, new: Document | None, cluster: ClusterSettings) -> None:
    """Give back what `old` held and `new` does not; new None: everything, as when a Service goes."""
    _release(_ADDRESS, uid, set(allocation.cluster_ips_of(old)) - set(allocation.cluster_ips_of(new)), cluster)
    ports = set(allocation.node_ports_of(old)) - set(allocation.node_ports_of(new))
    _release(_PORT, uid, {*map(str, ports)}, cluster)


# An address that an IPAddress made by hand has is claimed for no Service


def claim_by_hand(address: str, cluster: ClusterSettings) -> bool:
    """Whether the address is now an IPAddress' own; False when somebody has it."""
    return _claim_given(*_place(address, cluster), None, address)


def release_by_hand(address: str, cluster: ClusterSettings) -> None:
    """Give back the address of an IPAddress that was made by hand; nothing when a Service has it."""
    _release(_ADDRESS, None, {address}, cluster)


# Mending what `plan.checks` found; values as text, a number being a node port; uid None: an IPAddress made by hand


def claim_held(uid: UUID, value: str, cluster: ClusterSettings) -> None:
    """Claim what a Service holds without a claim, in place of a claimant that does not hold it."""
    what, places = _place(value, cluster)
    with connection.cursor() as cursor:
        cursor.execute(_CLAIM_HELD[what], [value, uid])
    for pool, _ in places:
        withdraw(pool.name, value)


def release_leaked(uid: UUID | None, value: str, cluster: ClusterSettings) -> None:
    """Give back what is claimed for a Service that does not hold it."""
    _release(_PORT if value.isdigit() else _ADDRESS, uid, {value}, cluster)


def offer(value: str, cluster: ClusterSettings) -> None:
    """Put a value that nobody has on the list of free ones."""
    what, places = _place(value, cluster)
    with connection.cursor() as cursor:
        cursor.execute(_CLAIMED[what].format(value="%s"), [value])
        if cursor.fetchone() is not None:
            return
        for pool, offset in places:
            sql = "INSERT INTO services_app_freevalue (pool, band, value) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING"
            cursor.execute(sql, [pool.name, pool.band_at(offset), value])


def withdraw(pool: str, value: str) -> None:
    """Take a value off the list of free ones."""
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM services_app_freevalue WHERE pool = %s AND value = %s", [pool, value])


def forget_pools(cluster: ClusterSettings) -> int:
    """Drop what is left of the lists of ranges that are retired; how many there were. One query when there are none."""
    wanted = [pool.name for pool in _pools(cluster)]
    with connection.cursor() as cursor:
        cursor.execute("SELECT name FROM services_app_pool WHERE NOT name = ANY(%s)", [wanted])
        names = [name for (name,) in cursor.fetchall()]
        if names:
            cursor.execute("DELETE FROM services_app_pool WHERE name = ANY(%s)", [names])
            cursor.execute("DELETE FROM services_app_freevalue WHERE pool = ANY(%s)", [names])
    return len(names)


def _pools(cluster: ClusterSettings) -> list[PoolRange]:
    addresses = map(allocation.address_pool, dict.fromkeys(cluster.service_cidrs))
    return [*addresses, allocation.port_pool(cluster.node_port_range)]


Places = list[tuple[PoolRange, int]]


def _place(value: str, cluster: ClusterSettings) -> tuple[str, Places]:
    """What a value is, and its pools and place in each: several when ranges overlap, none when no range has it."""
    if not value.isdigit():
        return _ADDRESS, allocation.pools_of(value, cluster.service_cidrs)
    ports = allocation.port_pool(cluster.node_port_range)
    offset = ports.offset_of(int(value))
    return _PORT, [] if offset is None else [(ports, offset)]


# Giving out


def _claim_addresses(uid: UUID, old: Document | None, new: Document, cluster: ClusterSettings) -> list[FieldError]:
    errors = []
    held = set(allocation.cluster_ips_of(old))
    for address in sorted(set(allocation.cluster_ips_of(new)) - held):
        if not _claim_given(*_place(address, cluster), uid, address):
            detail = f"failed to allocate IP {address}: {TAKEN.format(what='IP')}"
            errors.append(FieldError("Invalid", "spec.clusterIPs", allocation.cluster_ips_of(new), detail))
    if errors:
        return errors
    spec = new["spec"]
    for index, family in allocation.missing_families(new):
        version = 6 if family == "IPv6" else 4
        cidrs = dict.fromkeys(cidr for cidr in cluster.service_cidrs if cidr.version == version)
        pools = [allocation.address_pool(cidr) for cidr in cidrs]
        given = _claim_free(_ADDRESS, uid, pools, 1)
        if not given:
            ranges = ", ".join(pool.name for pool in pools)
            state = f"every one of {ranges} is in use; delete a Service or" if pools else "no range of it is ready;"
            detail = f"no free {family} address: {state} add a ServiceCIDR"
            errors.append(FieldError("Invalid", "spec.clusterIPs", spec.get("clusterIPs"), detail))
            continue
        addresses = list(spec.get("clusterIPs") or [])
        addresses += [""] * (index + 1 - len(addresses))
        addresses[index] = given[0]
        if len(pools) > 1:
            for pool, _ in _place(given[0], cluster)[1]:  # it may be on offer in a range that overlaps
                withdraw(pool.name, given[0])
        spec["clusterIPs"] = addresses
    if spec.get("clusterIPs"):
        spec["clusterIP"] = spec["clusterIPs"][0]
    return errors


def _claim_ports(uid: UUID, old: Document | None, new: Document, cluster: ClusterSettings) -> list[FieldError]:
    errors = []
    pool = allocation.port_pool(cluster.node_port_range)
    held = set(allocation.node_ports_of(old))
    ports = new["spec"].get("ports") or []
    for number in sorted(set(allocation.node_ports_of(new)) - held):
        if not _claim_given(*_place(str(number), cluster), uid, str(number)):
            field = next(
                (f"spec.ports[{i}].nodePort" for i, port in enumerate(ports) if port.get("nodePort") == number),
                "spec.healthCheckNodePort",
            )
            errors.append(FieldError("Invalid", field, number, TAKEN.format(what="port")))
    if errors:
        return errors
    full = f"no free node port: every one of {pool.name.removeprefix('node-ports ')} is in use"
    missing = allocation.missing_node_ports(new)
    wants_health_check = allocation.wants_health_check_port(new)
    wanted = sum(twin is None for _, twin in missing) + wants_health_check
    free = iter(_claim_free(_PORT, uid, [pool], wanted))
    for index, twin in missing:
        number = ports[twin].get("nodePort") if twin is not None else int(next(free, "0"))
        if number:
            ports[index]["nodePort"] = number
        else:
            errors.append(FieldError("Invalid", f"spec.ports[{index}].nodePort", 0, full))
    if wants_health_check:
        number = int(next(free, "0"))
        if number:
            new["spec"]["healthCheckNodePort"] = number
        else:
            errors.append(FieldError("Invalid", "spec.healthCheckNodePort", 0, full))
    return errors


def _claim_given(what: str, places: Places, uid: UUID | None, value: str) -> bool:
    """Whether the value is now the Service's; waits for a transaction that is about to take or release it."""
    with connection.cursor() as cursor:
        cursor.execute(_CLAIM_GIVEN[what], [value, uid])
        if cursor.fetchone() is None:
            return False
    for pool, _ in places:
        withdraw(pool.name, value)
    return True


def _claim_free(what: str, uid: UUID, pools: Sequence[PoolRange], wanted: int) -> list[str]:
    """So many free values, now the Service's; fewer when every pool is used up."""
    given: list[str] = []
    with connection.cursor() as cursor:
        for pool in pools:
            may_have_more = True
            while len(given) < wanted:
                cursor.execute(_CLAIM_FREE[what], [pool.name, wanted - len(given), uid])
                picked = cursor.fetchall()
                # What turned out to be claimed is off the list now.
                given += [value for value, is_ours in picked if is_ours]
                if picked:
                    continue
                if not may_have_more:
                    break
                # Somebody else may have laid out the rest while we waited for the pool: then look once more.
                may_have_more = _lay_out(what, pool)
    return given


def _lay_out(what: str, pool: PoolRange) -> bool:
    """Whether the next stretch of the pool could be added to the list of free values."""
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO services_app_pool (name, next_offset) VALUES (%s, 0) ON CONFLICT DO NOTHING", [pool.name]
        )
        cursor.execute("SELECT next_offset FROM services_app_pool WHERE name = %s FOR UPDATE", [pool.name])
        start = int(cursor.fetchone()[0])
        if start >= pool.size:
            return False
        end = min(start + LAID_OUT_AT_ONCE, pool.size)
        dynamic = pool.size - pool.static_size
        offset_value = f"CASE WHEN o < {dynamic} THEN o + {pool.static_size} ELSE o - {dynamic} END"
        value = f"{pool.first} + {offset_value}"
        if what == _ADDRESS:
            value = f"host((%(first)s::inet) + ({offset_value})::bigint)"
        cursor.execute(
            "INSERT INTO services_app_freevalue (pool, band, value)"
            f" SELECT %(pool)s, CASE WHEN o < {dynamic} THEN 0 ELSE 1 END, ({value})::text"
            f" FROM generate_series(%(start)s::bigint, %(end)s::bigint - 1) AS o"
            f" WHERE NOT EXISTS ({_CLAIMED[what].format(value=value)}) ORDER BY o ON CONFLICT DO NOTHING",
            {"pool": pool.name, "start": start, "end": end, "first": _first_address(pool)},
        )
        cursor.execute("UPDATE services_app_pool SET next_offset = %s WHERE name = %s", [end, pool.name])
    return True


def _first_address(pool: PoolRange) -> str | None:
    if pool.version == 0:
        return None
    return str(IPv4Address(pool.first) if pool.version == 4 else IPv6Address(pool.first))


def _release(what: str, uid: UUID | None, values: set[str], cluster: ClusterSettings) -> None:
    """Give values back that the Service has, all in one statement: this runs under the counter row.

    They are on offer again also when their pool is not laid out so far: a look at how far it is would miss who lays it
    out right now, and lose the value.
    """
    if not values:
        return
    ordered = sorted(values)
    places = [(place, value) for value in ordered for place in _place(value, cluster)[1]]
    pools = [pool.name for (pool, _), _ in places]
    bands = [pool.band_at(offset) for (pool, offset), _ in places]
    with connection.cursor() as cursor:
        cursor.execute(_RELEASE[what], [uid, ordered, pools, bands, [value for _, value in places]])
