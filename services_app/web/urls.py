"""The dashboard's addresses; include them at the root: `path("", include("services_app.web.urls"))`."""

from django.urls import path
from django.views.generic import RedirectView

from services_app.web import enrolment, explain, history, manifests, nodes, ranges, service_edit, services, views

app_name = "web"

urlpatterns = [
    path("", RedirectView.as_view(pattern_name="web:overview"), name="root"),
    path("ui/", views.overview, name="overview"),
    path("ui/nodes/", nodes.nodes, name="nodes"),
    path("ui/nodes/<str:name>/", nodes.node, name="node"),
    path("ui/nodes/<str:name>/host-key/", nodes.host_key, name="node-host-key"),
    path("ui/nodes/<str:name>/push/", nodes.push_again, name="node-push"),
    path("ui/nodes/<str:name>/remove/", nodes.remove, name="node-remove"),
    path("ui/enrolment/", enrolment.enrol, name="enrol"),
    path("ui/enrolment/run/", enrolment.run, name="enrol-run"),
    path("ui/operations/<uuid:pk>/", enrolment.operation, name="operation"),
    path("ui/ranges/", ranges.ranges, name="ranges"),
    path("ui/services/", services.service_list, name="services"),
    path("ui/services/new/", service_edit.new, name="service-new"),
    path("ui/services/<str:namespace>/<str:name>/", services.service, name="service"),
    path("ui/services/<str:namespace>/<str:name>/edit/", service_edit.edit, name="service-edit"),
    path("ui/services/<str:namespace>/<str:name>/explain/", explain.service_explain, name="service-explain"),
    path("ui/services/<str:namespace>/<str:name>/yaml/", manifests.edit, name="service-yaml"),
    path("ui/services/<str:namespace>/<str:name>/delete/", services.service_delete, name="service-delete"),
    path("ui/history/", history.history, name="history"),
    path("ui/apply/", manifests.apply, name="apply"),
    path("ui/events", views.events, name="events"),
    path("ui/login/", views.Login.as_view(), name="login"),
    path("ui/logout/", views.Logout.as_view(), name="logout"),
]
