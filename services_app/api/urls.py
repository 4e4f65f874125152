"""The API's paths: discovery, documents about the API, health, and everything else to the one view."""

from django.urls import path, re_path

from services_app.api import about, views

urlpatterns = [
    re_path(r"^(?:api/v1|apis/[^/]+/[^/]+)/.+$", views.ObjectView.as_view()),
    path("version", about.version),
    path("version/", about.version),
    path("healthz", about.health),
    path("livez", about.health),
    path("readyz", about.ready),
    path("api", about.Discovery.as_view()),
    path("api/", about.Discovery.as_view()),
    path("apis", about.Discovery.as_view()),
    path("apis/", about.Discovery.as_view()),
    path("api/v1", about.Resources.as_view()),
    path("api/v1/", about.Resources.as_view()),
    path("apis/<str:group>", about.Group.as_view()),
    path("apis/<str:group>/", about.Group.as_view()),
    path("apis/<str:group>/<str:version>", about.Resources.as_view()),
    path("apis/<str:group>/<str:version>/", about.Resources.as_view()),
    path("openapi/v2", about.OpenApiV2.as_view()),
    path("openapi/v3", about.OpenApiV3.as_view()),
    path("openapi/v3/<path:root>", about.OpenApiV3.as_view()),
    re_path(r"^apis?/.+$", views.ObjectView.as_view()),
]
