"""Our pages in Flower: the first one, and what we change in Flower's own.

Flower has no hook for pages. We add to its list of handlers before it makes the application, and
give it a loader of templates that looks into our folder first. What is changed in Flower's own
templates is a text in them, replaced or added to. Where a later Flower has another text, the page
stays as Flower has it, and the log says so.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import flower
from flower import urls
from flower.views.broker import BrokerView
from tornado.template import Loader, Template
from tornado.web import RedirectHandler, url

from babylon_tasks.settings import QUEUES

log = logging.getLogger(__name__)

TEMPLATES = Path(__file__).parent / "templates"
OF_FLOWER = Path(flower.__file__).parent / "templates"

_FIRST_ITEM = '<ul class="app-nav navbar-nav">'
_NOW_ITEM = """
        <li class="nav-item">
          <a class="nav-link{% if active_tab == 'now' %} active{% end %}"
            href="{{ reverse_url('main') }}"
            {% if active_tab == 'now' %}aria-current="page"{% end %}>Now</a>
        </li>"""

# By template: the text to be found in it once, and what stands for it in ours.
EDITS: dict[str, list[tuple[str, str]]] = {
    "base.html": [("</head>", '<style>{% include "watch.css" %}</style>\n  </head>')],
    "navbar.html": [(_FIRST_ITEM, _FIRST_ITEM + _NOW_ITEM)],
    # Its name says what the task does; those like it are found by the first word.
    "task.html": [("url_escape(task.name)", "url_escape(task.name.split()[0])")],
    "tasks.html": [
        (
            '<table id="tasks-table"',
            '{% include "tasks_script.html" %}\n    <table id="tasks-table"',
        )
    ],
}


class Templates(Loader):  # type: ignore[misc] # tornado has no types here
    """Finds our templates, and Flower's with our edits."""

    def __init__(self) -> None:
        super().__init__(str(OF_FLOWER))

    def _create_template(self, name: str) -> Template:
        ours = TEMPLATES / name
        text = ours.read_text() if ours.exists() else _edited(name)
        return Template(text, name=name, loader=self)


def _edited(name: str) -> str:
    text = (OF_FLOWER / name).read_text()
    for old, new in EDITS.get(name, []):
        if old not in text:
            log.warning("this Flower's %s has no %s: the page stays as it is", name, old)
        text = text.replace(old, new, 1)
    return text


def install(first_page: type[Any], *, prefix: str | None) -> None:
    """Give Flower our first page, which it names `main`, and our templates.

    Behind a path prefix, the prefix without a slash at its end leads to the first page too.
    """
    urls.settings["template_loader"] = Templates()
    kept = [each for each in urls.handlers if getattr(each, "name", None) != "main"]
    ours = [url(r"/", first_page, name="main")]
    if prefix:
        ours.append(url(r"", RedirectHandler, {"url": f"/{prefix.strip('/')}/"}))
    urls.handlers[:] = [*ours, *kept]
    # Flower asks which queues there are at its start alone, and whoever starts later is left out.
    BrokerView.get_active_queue_names = lambda _: list(QUEUES)
