"""Every path: the API where clients expect it, the dashboard, the admin."""

from django.contrib import admin
from django.urls import include, path

urlpatterns = [
    path("admin/", admin.site.urls),
    path("", include("services_app.web.urls")),
    path("", include("services_app.api.urls")),
]
