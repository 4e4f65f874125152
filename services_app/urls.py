"""Every path: the API where clients expect it, the dashboard, the admin, their static files."""

from django.contrib import admin
from django.urls import include, path

from services_app.web.static import asset

handler404 = "services_app.web.views.not_found"

# The API first: it is asked most often, and each pattern tried costs.
urlpatterns = [
    path("", include("services_app.api.urls")),
    path("static/<path:path>", asset),
    path("admin/", admin.site.urls),
    path("", include("services_app.web.urls")),
]
