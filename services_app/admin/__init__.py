"""Django's admin: every table, users and groups from Django itself.

API objects are created, changed and deleted through the store alone (`objects`); the log, claims and what nodes report
are to look at (`tables`).
"""

from django.contrib import admin

from services_app.admin import objects, tables

__all__ = ["objects", "tables"]

admin.site.site_header = "Timonel"
admin.site.site_title = "Timonel"
admin.site.index_title = "Tables"
admin.site.site_url = "/ui/"
