"""The tables: API objects, the log of their changes, claims on addresses and ports, nodes and who may call.

Only `store` writes API objects and claims, only `changes` writes the log, only `push` writes NodeSync.
No rule of Kubernetes lives here (see `spec`), only what the database itself must guarantee.
"""

import hashlib
import secrets
import uuid
from typing import Any, ClassVar

from django.conf import settings
from django.contrib.postgres.indexes import GinIndex
from django.db import models
from django.utils import timezone

C_COLLATION = "C"  # Kubernetes lists in byte order of namespace/name; the database's locale must not matter


class ControlPlane(models.Model):
    """The one row with the revision counter; its row lock makes a transaction the only writer (DESIGN decision 1)."""

    id = models.SmallIntegerField(primary_key=True, default=1)
    uid = models.UUIDField(default=uuid.uuid4, help_text="Names this control plane to its nodes.")
    revision = models.BigIntegerField(default=0, help_text="The newest revision given out.")
    compacted_revision = models.BigIntegerField(default=0, help_text="Changes up to here have left the log.")
    compacted_for_nodes = models.BigIntegerField(default=0, help_text="The newest of them that concerned nodes.")
    ranges_revision = models.BigIntegerField(default=0, db_default=0, help_text="The last change of a ServiceCIDR.")

    class Meta:
        constraints = [models.CheckConstraint(condition=models.Q(id=1), name="control_plane_is_one_row")]

    def __str__(self) -> str:
        return f"control plane {self.uid} at revision {self.revision}"


class ApiObject(models.Model):
    """An object of the API: the exact JSON text handed out, and the columns a query or a person needs."""

    uid = models.UUIDField(primary_key=True)
    namespace = models.TextField(
        db_collation=C_COLLATION, default="", blank=True, help_text="Empty for cluster-wide kinds."
    )
    name = models.TextField(db_collation=C_COLLATION)
    revision = models.BigIntegerField(help_text="metadata.resourceVersion")
    created_at = models.DateTimeField()
    labels = models.JSONField(default=dict)
    document = models.TextField(help_text="The JSON text the API returns.")

    objects: ClassVar[models.Manager[Any]]

    class Meta:
        abstract = True
        ordering = ["namespace", "name"]
        constraints = [models.UniqueConstraint(fields=["namespace", "name"], name="%(class)s_name_is_unique")]
        indexes = [GinIndex(fields=["labels"], name="%(class)s_labels")]

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


class Namespace(ApiObject):
    """A `v1` Namespace."""


class Service(ApiObject):
    """A `v1` Service."""

    type = models.TextField(default="ClusterIP")
    cluster_ip = models.GenericIPAddressField(null=True, help_text="Empty for headless and ExternalName.")
    selector = models.JSONField(null=True, help_text="Empty: the endpoints are written by hand.")
    selector_pair = models.TextField(
        null=True, help_text="One key=value of the selector: only Pods that carry it can match, which an index finds."
    )
    changed_revision = models.BigIntegerField(help_text="The last revision that touched what nodes hold for it.")
    programmed = models.BooleanField(null=True, help_text="The Programmed condition; empty while there are no nodes.")

    class Meta(ApiObject.Meta):
        permissions = [("use_external_ips", "Can let Services take traffic of addresses outside the service ranges")]
        indexes = [
            *ApiObject.Meta.indexes,
            models.Index(fields=["namespace", "selector_pair"], name="service_selector_pair"),
            models.Index(
                fields=["changed_revision"],
                condition=~models.Q(programmed=True),
                name="service_not_programmed",
            ),
        ]


class Endpoints(ApiObject):
    """A `v1` Endpoints object."""

    class Meta(ApiObject.Meta):
        verbose_name_plural = "endpoints"
        permissions = [("write_endpoints", "Can write Endpoints and EndpointSlices by hand")]


class EndpointSlice(ApiObject):
    """A `discovery.k8s.io/v1` EndpointSlice."""

    service_name = models.TextField(default="", db_collation=C_COLLATION)
    managed_by = models.TextField(default="")

    class Meta(ApiObject.Meta):
        indexes = [
            *ApiObject.Meta.indexes,
            models.Index(fields=["namespace", "service_name"], name="endpointslice_of_service"),
        ]


class Pod(ApiObject):
    """A `v1` Pod: the record of a workload that already runs on a host."""

    node_name = models.TextField(default="", db_collation=C_COLLATION)
    pod_ip = models.GenericIPAddressField(null=True)
    ready = models.BooleanField(default=False)
    endpoint = models.JSONField(
        null=True, help_text="What endpoints depend on (plan.endpoints.traits); empty: nothing."
    )
    gone_at = models.DateTimeField(null=True, help_text="When the grace period of its deletion ends.")

    class Meta(ApiObject.Meta):
        indexes = [*ApiObject.Meta.indexes, models.Index(fields=["node_name"], name="pod_of_node")]


class Node(ApiObject):
    """A `v1` Node."""

    address = models.GenericIPAddressField(null=True, help_text="Its InternalIP.")


class Event(ApiObject):
    """A `v1` Event."""

    involved_kind = models.TextField(default="")
    involved_name = models.TextField(default="")
    reason = models.TextField(default="")
    type = models.TextField(default="Normal")

    class Meta(ApiObject.Meta):
        indexes = [
            *ApiObject.Meta.indexes,
            models.Index(fields=["namespace", "involved_kind", "involved_name"], name="event_involved"),
        ]


class ConfigMap(ApiObject):
    """A `v1` ConfigMap."""

    class Meta(ApiObject.Meta):
        verbose_name = "config map"


class Secret(ApiObject):
    """A `v1` Secret; its document is sealed (`store.forms`)."""

    type = models.TextField(default="Opaque")


class Lease(ApiObject):
    """A `coordination.k8s.io/v1` Lease."""

    holder = models.TextField(default="", blank=True)


class Ingress(ApiObject):
    """A `networking.k8s.io/v1` Ingress."""

    class_name = models.TextField(default="", blank=True)

    class Meta(ApiObject.Meta):
        verbose_name_plural = "ingresses"


class IngressClass(ApiObject):
    """A `networking.k8s.io/v1` IngressClass."""

    controller = models.TextField(default="")

    class Meta(ApiObject.Meta):
        verbose_name = "ingress class"
        verbose_name_plural = "ingress classes"


class IPAddress(ApiObject):
    """A `networking.k8s.io/v1` IPAddress; what makes it the only one of its address is the claim."""

    parent = models.TextField(default="", blank=True, help_text="What it belongs to, e.g. services/default/web.")

    class Meta(ApiObject.Meta):
        verbose_name = "IP address"
        verbose_name_plural = "IP addresses"
        indexes: ClassVar[list[models.Index]] = []  # nearly all have the same labels


class ServiceCIDR(ApiObject):
    """A `networking.k8s.io/v1` ServiceCIDR."""

    cidrs = models.JSONField(default=list, help_text="Its ranges.")
    is_ready = models.BooleanField(default=False, help_text="Addresses are given out from it.")

    class Meta(ApiObject.Meta):
        verbose_name = "service CIDR"


class OwnerReference(models.Model):
    """metadata.ownerReferences turned round: who names an owner, so that it is found when the owner goes."""

    owner = models.UUIDField(null=True, db_index=True, help_text="Empty: no object can have the uid that is named.")
    owner_kind = models.TextField(
        help_text="Its plural; empty: nobody can say whether it is there (not served, or out of reach)."
    )
    owner_name = models.TextField(db_collation=C_COLLATION)
    blocks = models.BooleanField(help_text="An owner that goes in the foreground waits for this one.")
    dependent = models.UUIDField(db_index=True)
    kind = models.TextField(help_text="The dependent's plural.")
    namespace = models.TextField(db_collation=C_COLLATION, default="")
    name = models.TextField(db_collation=C_COLLATION)

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name} of {self.owner_kind} {self.owner_name}"


class WaitingOwner(models.Model):
    """An object that goes, and has its dependents seen to first: what its finalizers say, where it is found."""

    uid = models.UUIDField(primary_key=True)
    kind = models.TextField(help_text="Its plural.")
    namespace = models.TextField(db_collation=C_COLLATION, default="")
    name = models.TextField(db_collation=C_COLLATION)
    policy = models.TextField(help_text="Foreground: they go first. Orphan: they are freed of it first.")

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


class Change(models.Model):
    """One write of one object: the watch's event, the pusher's list of what to send, the auditor's record."""

    class Verb(models.TextChoices):
        ADDED = "ADDED"
        MODIFIED = "MODIFIED"
        DELETED = "DELETED"

    revision = models.BigIntegerField(primary_key=True, help_text="Without holes, in commit order.")
    kind = models.TextField(help_text="The kind's plural, e.g. services.")
    namespace = models.TextField(db_collation=C_COLLATION, default="", blank=True)
    name = models.TextField(db_collation=C_COLLATION)
    verb = models.TextField(choices=Verb.choices)
    document = models.TextField(help_text="The object after the write; before it, with the new version, when deleted.")
    previous = models.TextField(null=True, help_text="The object before the write.")
    owner = models.TextField(null=True, help_text="The Service whose rendering it touches, * for every node's base.")
    user = models.TextField(default="", blank=True)
    request_id = models.TextField(default="", blank=True)
    at = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering = ["revision"]
        indexes = [
            models.Index(fields=["kind", "revision"], name="change_of_kind"),
            models.Index(fields=["revision"], condition=models.Q(owner__isnull=False), name="change_of_owner"),
            models.Index(fields=["kind", "namespace", "name", "revision"], name="change_of_object"),
        ]

    def __str__(self) -> str:
        return f"{self.revision} {self.verb} {self.kind} {self.namespace}/{self.name}"


class AuditRecord(models.Model):
    """What the auditor still finds when the log has dropped it, and what the log never held: refusals, grants, tokens.

    Written by `changes` (writes that leave the log) and `audit` (all else).
    """

    id = models.BigIntegerField(primary_key=True, help_text="The revision of a write; below zero for all else.")
    revision = models.BigIntegerField(help_text="Of the write, or the newest when it happened: what it is ordered by.")
    at = models.DateTimeField(db_index=True)
    verb = models.TextField(help_text="ADDED, MODIFIED, DELETED or REFUSED.")
    kind = models.TextField(help_text="The kind's plural, e.g. services; also grants, apitokens, users, groups.")
    namespace = models.TextField(db_collation=C_COLLATION, default="", blank=True)
    name = models.TextField(db_collation=C_COLLATION, default="", blank=True)
    user = models.TextField(default="", blank=True)
    request_id = models.TextField(default="", blank=True)
    document = models.TextField(null=True, help_text="After the write; before it when deleted; empty when refused.")
    previous = models.TextField(null=True, help_text="Before the write.")
    message = models.TextField(default="", blank=True, help_text="Why it was refused.")

    class Meta:
        ordering = ["-revision", "id"]
        indexes = [
            models.Index(fields=["-revision", "id"], name="audit_record_order"),
            models.Index(fields=["kind", "namespace", "name", "revision"], name="audit_record_of_object"),
            models.Index(fields=["namespace", "-revision"], name="audit_record_in_namespace"),
            models.Index(fields=["user", "-revision"], name="audit_record_of_user"),
            models.Index(fields=["request_id"], name="audit_record_of_request"),
        ]

    def __str__(self) -> str:
        return f"{self.verb} {self.kind} {f'{self.namespace}/' if self.namespace else ''}{self.name}"


class AuditEntry(models.Model):
    """What the auditor reads: the log and the audit records as one, a view of the database."""

    id = models.BigIntegerField(primary_key=True)
    revision = models.BigIntegerField()
    at = models.DateTimeField()
    verb = models.TextField()
    kind = models.TextField()
    namespace = models.TextField()
    name = models.TextField()
    user = models.TextField()
    request_id = models.TextField()
    document = models.TextField(null=True)
    previous = models.TextField(null=True)
    message = models.TextField()

    class Meta:
        managed = False
        ordering = ["-revision", "id"]
        verbose_name_plural = "audit entries"

    def __str__(self) -> str:
        return f"{self.verb} {self.kind} {f'{self.namespace}/' if self.namespace else ''}{self.name}"


class ClusterIPClaim(models.Model):
    """A cluster IP in use. The unique index decides who gets an address."""

    address = models.GenericIPAddressField(primary_key=True)
    service = models.ForeignKey(
        Service,
        on_delete=models.CASCADE,
        related_name="cluster_ip_claims",
        null=True,
        help_text="Empty: an IPAddress made by hand has it.",
    )

    class Meta:
        verbose_name = "cluster IP claim"

    def __str__(self) -> str:
        return str(self.address)


class NodePortClaim(models.Model):
    """A node port in use, by one Service for whichever protocols (k8s: a number is taken for every protocol)."""

    port = models.IntegerField(primary_key=True)
    service = models.ForeignKey(Service, on_delete=models.CASCADE, related_name="node_port_claims")

    def __str__(self) -> str:
        return str(self.port)


class Pool(models.Model):
    """A range that addresses or ports are given out from, and how far it has been laid out as FreeValue rows."""

    name = models.TextField(
        primary_key=True, help_text="A service range such as 10.96.0.0/16, or node-ports 30000-32767."
    )
    next_offset = models.DecimalField(
        max_digits=40, decimal_places=0, default=0, help_text="Offsets below are laid out."
    )

    def __str__(self) -> str:
        return self.name


class FreeValue(models.Model):
    """A value of a pool that was free when last seen: a hint that makes the choice O(1); the claim decides."""

    id = models.BigAutoField(primary_key=True)
    pool = models.TextField()
    band = models.SmallIntegerField(help_text="0 dynamic, 1 static: given out automatically only when 0 is empty.")
    value = models.TextField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["pool", "value"], name="free_value_is_unique")]
        indexes = [models.Index(fields=["pool", "band", "id"], name="free_value_order")]

    def __str__(self) -> str:
        return f"{self.value} of {self.pool}"


class RepairFinding(models.Model):
    """Something that did not hold when last looked (plan.checks.Finding); gone once it holds again."""

    reason = models.TextField(help_text="A reason word, e.g. ClusterIPNotAllocated.")
    value = models.TextField(help_text="The address, port or name in question.")
    service = models.TextField(default="", blank=True, help_text="namespace/name; empty for none.")
    pool = models.TextField(default="", blank=True)
    message = models.TextField()
    sightings = models.IntegerField(default=1, help_text="Looks in a row that found it.")
    first_seen_at = models.DateTimeField(default=timezone.now)
    last_seen_at = models.DateTimeField(default=timezone.now)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["reason", "value", "service", "pool"], name="repair_finding_is_unique")
        ]

    def __str__(self) -> str:
        return f"{self.reason} {self.value}"


class EndpointGroup(models.Model):
    """The number by which nodes know one Service port: the group id in packet marks (28 bits)."""

    id = models.BigAutoField(primary_key=True)
    service = models.ForeignKey(Service, on_delete=models.CASCADE, related_name="endpoint_groups")
    port = models.TextField(help_text="Protocol and port, e.g. TCP/80.")
    policy = models.TextField(default="Cluster", help_text="Cluster or Local.")

    class Meta:
        constraints = [models.UniqueConstraint(fields=["service", "port", "policy"], name="endpoint_group_is_unique")]

    def __str__(self) -> str:
        return f"{self.id} {self.port} {self.policy}"


class SshKey(models.Model):
    """A key pair of the control plane; the private half is encrypted with the installation's secret key."""

    name = models.TextField(unique=True)
    public = models.TextField(help_text="One line in OpenSSH format.")
    private_encrypted = models.BinaryField()
    created_at = models.DateTimeField(default=timezone.now)

    def __str__(self) -> str:
        return self.name


class NodeAccess(models.Model):
    """How the control plane reaches an enrolled node: what the operator said and confirmed."""

    node = models.TextField(primary_key=True, db_collation=C_COLLATION, help_text="The Node's name.")
    address = models.TextField(help_text="Where its sshd listens.")
    port = models.IntegerField(default=22)
    user = models.TextField(default="root")
    host_key = models.TextField(help_text="The confirmed host key, one line in OpenSSH format.")
    ssh_key = models.ForeignKey(SshKey, on_delete=models.PROTECT)
    enrolled_at = models.DateTimeField(default=timezone.now)
    enrolled_by = models.TextField(default="", blank=True)

    class Meta:
        verbose_name = "node access"
        verbose_name_plural = "node accesses"

    def __str__(self) -> str:
        return f"{self.node} at {self.user}@{self.address}:{self.port}"


class NodeSync(models.Model):
    """What a node last reported, outside the log: a report must not raise the revision it answers (DESIGN decision 7)."""

    class State(models.TextChoices):
        PENDING = "Pending", "never reached yet"
        LIVE = "Live", "connected, reports arrive"
        UNREACHABLE = "Unreachable", "cannot be reached"
        QUARANTINED = "Quarantined", "its host key changed: nothing is sent until a person confirms the new one"
        FAILED = "Failed", "reached, but cannot apply"

    node = models.OneToOneField(
        NodeAccess, on_delete=models.CASCADE, primary_key=True, related_name="sync", db_column="node"
    )
    state = models.TextField(choices=State.choices, default=State.PENDING)
    reason = models.TextField(default="", blank=True, help_text="A reason word, e.g. ConnectionRefused, NftMissing.")
    message = models.TextField(default="", blank=True, help_text="What happened and what to do.")
    applied_revision = models.BigIntegerField(default=0)
    digest = models.TextField(default="", blank=True)
    rejected = models.JSONField(
        default=dict, help_text="Service ns/name -> {reason, message} for what the node refused."
    )
    problems = models.JSONField(default=list, help_text="Preflight: list of {reason, message}.")
    facts = models.JSONField(default=dict)
    agent_version = models.TextField(default="", blank=True)
    last_report_at = models.DateTimeField(null=True)
    last_apply_ms = models.FloatField(null=True)
    failures = models.IntegerField(default=0, help_text="Failed attempts in a row.")
    next_attempt_at = models.DateTimeField(default=timezone.now, help_text="Not tried again before this.")
    full_wanted = models.BooleanField(default=True, help_text="Send every owner with the next push.")

    class Meta:
        verbose_name = "node sync"

    def __str__(self) -> str:
        return f"{self.node_id} {self.state} at {self.applied_revision}"


class NodeOperation(models.Model):
    """What a person did to a node, step by step as it happened: live for the page, afterwards for the auditor.

    Never holds a secret: a key or password that opens a login lives in one request and the thread it starts.
    """

    class Verb(models.TextChoices):
        ENROL = "Enrol", "enrolment"
        REMOVE = "Remove", "removal"
        FORGET = "Forget", "forgetting"
        CONFIRM_KEY = "ConfirmKey", "confirmation of a host key"
        PUSH_AGAIN = "PushAgain", "push of everything"

    class State(models.TextChoices):
        RUNNING = "Running"
        DONE = "Done"
        FAILED = "Failed"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    node = models.TextField(db_collation=C_COLLATION)
    verb = models.TextField(choices=Verb.choices)
    state = models.TextField(choices=State.choices, default=State.RUNNING)
    by = models.TextField(help_text="Who asked for it.")
    address = models.TextField(default="", blank=True)
    port = models.IntegerField(default=22)
    user = models.TextField(default="", blank=True)
    node_ip = models.TextField(default="", blank=True)
    labels = models.JSONField(default=dict)
    host_key = models.TextField(default="", blank=True, help_text="The confirmed fingerprint.")
    steps = models.JSONField(default=list, help_text="List of {text, at}, oldest first.")
    doing = models.TextField(default="", blank=True, help_text="What is tried now, or failed.")
    reason = models.TextField(default="", blank=True)
    message = models.TextField(default="", blank=True)
    started_at = models.DateTimeField(default=timezone.now)
    seen_at = models.DateTimeField(default=timezone.now, help_text="When its process was last alive.")
    ended_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ["-started_at"]
        indexes = [
            models.Index(fields=["node", "-started_at"], name="node_operation_of_node"),
            models.Index(fields=["ended_at"], name="node_operation_ended"),
        ]
        constraints = [
            models.UniqueConstraint(
                fields=["node"], condition=models.Q(state="Running"), name="node_has_one_running_operation"
            )
        ]

    def __str__(self) -> str:
        return f"{self.get_verb_display()} of {self.node}"


class Grant(models.Model):
    """What somebody may do through the API, the pages and the admin: a role for one user, one group, or all who are known.

    What the roles mean stands in `api.auth`. A user or group that holds grants cannot be deleted: each is taken back
    first, and recorded.
    """

    class Role(models.TextChoices):
        VIEW = "view", "view: read everything but Secrets"
        EDIT = "edit", "edit: read Secrets, write what lies in namespaces"
        ADMIN = "admin", "admin: edit and give grants; everywhere: also Namespaces, Nodes and other cluster-wide kinds"

    role = models.TextField(choices=Role.choices)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="grants", null=True, blank=True
    )
    group = models.ForeignKey("auth.Group", on_delete=models.PROTECT, related_name="grants", null=True, blank=True)
    everyone = models.BooleanField(
        "everybody", default=False, help_text="All who are known to the API: the group system:authenticated."
    )
    namespace = models.TextField(
        db_collation=C_COLLATION, default="", blank=True, help_text="Empty: everywhere, with the cluster-wide kinds."
    )
    given_by = models.TextField(default="", blank=True, editable=False)
    given_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        ordering = ["namespace", "role", "pk"]
        constraints = [
            models.CheckConstraint(
                condition=models.Q(user__isnull=False, group__isnull=True, everyone=False)
                | models.Q(user__isnull=True, group__isnull=False, everyone=False)
                | models.Q(user__isnull=True, group__isnull=True, everyone=True),
                name="grant_is_for_one_subject",
                violation_error_message="Give it to one user, to one group, or to everybody.",
            ),
            models.UniqueConstraint(
                fields=["user", "group", "everyone", "namespace", "role"],
                nulls_distinct=False,
                name="grant_is_given_once",
                violation_error_message="This grant is given already.",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.role} for {self.subject} {f'in {self.namespace}' if self.namespace else 'everywhere'}"

    @property
    def subject(self) -> str:
        """Who has it: "user dev", "group builders", "everybody"."""
        if self.user is not None:
            return f"user {self.user.get_username()}"
        return f"group {self.group.name}" if self.group is not None else "everybody"


class ApiToken(models.Model):
    """A bearer token; only its hash is kept."""

    name = models.TextField()
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="api_tokens")
    digest = models.TextField(unique=True, editable=False)
    created_at = models.DateTimeField(default=timezone.now)
    expires_at = models.DateTimeField(null=True, blank=True, help_text="Empty: never.")

    class Meta:
        verbose_name = "API token"

    def __str__(self) -> str:
        return self.name

    @classmethod
    def issue(cls, user, name: str, expires_at=None) -> str:
        """A new token's plain text; it cannot be shown again."""
        plain = secrets.token_urlsafe(32)
        cls.objects.create(user=user, name=name, digest=cls.digest_of(plain), expires_at=expires_at)
        return plain

    @staticmethod
    def digest_of(plain: str) -> str:
        # A plain hash is enough: the token is 256 random bits, not a password.
        return hashlib.sha256(plain.encode()).hexdigest()
