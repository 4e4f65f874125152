"""The dashboard's addresses; include them at the root: `path("", include("services_app.web.urls"))`."""

from django.urls import path
from django.views.generic import RedirectView

from services_app.web import views

app_name = "web"

urlpatterns = [
    path("", RedirectView.as_view(pattern_name="web:overview"), name="root"),
    path("ui/", views.overview, name="overview"),
    path("ui/services/<str:namespace>/<str:name>/", views.service, name="service"),
    path("ui/events", views.events, name="events"),
    path("ui/login/", views.Login.as_view(), name="login"),
    path("ui/logout/", views.Logout.as_view(), name="logout"),
]
