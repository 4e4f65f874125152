"""Links from one page of a table to the others."""

from typing import Any

from django import template
from django.core.paginator import Page

register = template.Library()


@register.inclusion_tag("web/_pages.html", takes_context=True)
def pages(context: dict[str, Any], page: "Page[Any]", parameter: str, target: str, label: str) -> dict[str, Any]:
    """First, previous, next and last page. parameter: the page's in the query. target: id of the fragment they renew."""
    request = context["request"]

    def link(number: int) -> str:
        query = request.GET.copy()
        query[parameter] = str(number)
        return f"{request.path}?{query.urlencode()}"

    here, last = page.number, page.paginator.num_pages
    links = [
        ("First", "first", link(1) if here > 1 else ""),
        ("Previous", "prev", link(here - 1) if here > 1 else ""),
        ("Next", "next", link(here + 1) if here < last else ""),
        ("Last", "last", link(last) if here < last else ""),
    ]
    return {"page": page, "target": target, "label": label, "back": links[:2], "forth": links[2:]}
