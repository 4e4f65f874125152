"""Django's admin: every table.

API objects are created, changed and deleted through the store alone (`objects`); the log, claims and what nodes report
are to look at (`tables`); grants, tokens, users and groups are recorded when they change (`access`).
"""

from django.contrib import admin

from services_app.admin import access, objects, tables

__all__ = ["access", "objects", "tables"]

admin.site.site_header = "Timonel"
admin.site.site_title = "Timonel"
admin.site.index_title = "Tables"
admin.site.site_url = "/ui/"
