"""The only writer of API objects, and the way to read them.

`objects` creates, gets, updates and applies; `deletion` deletes, and sees to what was owned (`references`); `listing`
lists; `claims` gives out addresses and ports from the `ranges`; `addresses` and `servicecidrs` do for IPAddresses and
ServiceCIDRs what controllers do in Kubernetes; `transaction` writes under the counter row and derives endpoints, `removal`
takes out; `forms` says how objects lie in the database; `status` writes what nodes report; `events` tells about objects;
`checks` and `repair` look whether all of it holds; `bootstrap` makes what every cluster has.
"""

from services_app.store.bootstrap import bootstrap, ensure_ranges
from services_app.store.checks import check_everything
from services_app.store.deletion import collect, delete, finish_namespace
from services_app.store.forms import shown_text
from services_app.store.listing import Page, too_large
from services_app.store.listing import list_objects as list
from services_app.store.objects import (
    Actor,
    Stored,
    apply,
    cluster_settings,
    create,
    get,
    update,
)
from services_app.store.ranges import uses
from services_app.store.repair import repair
from services_app.store.servicecidrs import finish_retirements
from services_app.store.status import adopt_pods, expire_events, reap_pods, settle_programmed, tell_of_node

__all__ = [
    "Actor",
    "Page",
    "Stored",
    "adopt_pods",
    "apply",
    "bootstrap",
    "check_everything",
    "cluster_settings",
    "collect",
    "create",
    "delete",
    "ensure_ranges",
    "expire_events",
    "finish_namespace",
    "finish_retirements",
    "get",
    "list",
    "reap_pods",
    "repair",
    "settle_programmed",
    "shown_text",
    "tell_of_node",
    "too_large",
    "update",
    "uses",
]
