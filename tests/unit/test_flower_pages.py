"""Our pages in Flower: what they rely on in the Flower that is installed, and what they say."""

from __future__ import annotations

from typing import Any

import pytest
from flower import urls
from flower.views import BaseHandler
from flower.views.broker import BrokerView

from workers.watch import now_text
from workers.watch.pages import EDITS, OF_FLOWER, TEMPLATES, Templates, install

NOW: dict[str, Any] = {
    "model": "babylon-agent",
    "windows": {"due": 0, "scored": 0, "trained": 2, "skipped": 0, "failed": 0},
    "running": [],
    "workers": [
        {"name": "cpu@a", "host": "a", "queues": ["cpu"], "lost": False, "seen_seconds": 1.0},
        {"name": "gpu@a", "host": "a", "queues": ["gpu"], "lost": False, "seen_seconds": 1.0},
    ],
    "canary_age_seconds": {"cpu": 5.0, "gpu": None},
    "oldest_due": None,
    "oldest_scored": None,
}
TRAINS = {
    **{
        "stage": "train",
        "queue": "gpu",
        "lineage": "babylon-agent",
        "title": "babylon-agent: step 2, 1 window",
    },
    **{"windows": ["w"], "phase": "train", "done": 22, "total": 72, "share": 0.306, "loss": 0.0123},
    **{"tokens_per_second": 8400.0, "seconds_left": 40.0, "seconds": 65.0, "holder": "a:7"},
    "worker": "gpu@a",
}


@pytest.mark.parametrize("name", EDITS)
def test_flowers_templates_have_what_we_edit(name: str) -> None:
    """Once each; else a page would stay as Flower has it."""
    text = (OF_FLOWER / name).read_text()
    assert [text.count(old) for old, _ in EDITS[name]] == [1] * len(EDITS[name])


def test_every_template_is_read() -> None:
    loader = Templates()
    for folder in (OF_FLOWER, TEMPLATES):
        for path in folder.glob("*.html"):
            loader.load(path.name)
    assert "Now" in loader.load("navbar.html").code


def test_the_first_page_is_ours_and_flowers_stays_beside_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(urls, "handlers", list(urls.handlers))
    monkeypatch.setattr(urls, "settings", dict(urls.settings))
    monkeypatch.setattr(BrokerView, "get_active_queue_names", None)

    class Page(BaseHandler):
        pass

    install(Page, prefix="/watch/")
    named = {each.name: each for each in urls.handlers if getattr(each, "name", None)}
    assert named["main"].handler_class is Page
    assert named["workers"].regex.pattern == "/workers$"
    assert [each.name for each in urls.handlers if getattr(each, "name", None)].count("main") == 1
    # Whichever workers had answered when Flower started.
    assert BrokerView.get_active_queue_names(object()) == ["cpu", "gpu"]


def test_a_piece_of_work_is_told_by_its_figures() -> None:
    assert now_text.percent(TRAINS) == 31
    assert now_text.detail(TRAINS) == [
        ("Phase", "train, 22 of 72"),
        ("Loss", "0.0123"),
        ("Speed", "8,400 tokens/s"),
        ("Time left", "about 40 s"),
        ("Running for", "1 min 5 s"),
        ("On", "gpu@a"),
    ]
    running = {**NOW, "running": [TRAINS]}
    cpu, gpu = NOW["workers"]
    assert now_text.works_of(gpu, running) == ["Training babylon-agent: step 2, 1 window"]
    assert now_text.works_of(cpu, running) == []
    twin = {**gpu, "name": "gpu2@a"}
    twins = {**running, "workers": [gpu, twin]}
    assert now_text.works_of(gpu, twins) == ["Training babylon-agent: step 2, 1 window"]
    assert now_text.works_of(twin, twins) == []
    untold = {**TRAINS, "worker": None}
    assert now_text.works_of(gpu, {**twins, "running": [untold]}) == []
    assert ("On", "a") in now_text.detail(untold)


def test_what_a_person_must_see_to_is_said() -> None:
    news = {**NOW, "bad_news": {"failed": "2 windows failed.", "judge": "The limit is spent."}}
    assert now_text.complaints(news, ["Redis is away"]) == [
        *("Redis is away", "2 windows failed.", "The limit is spent."),
    ]
    assert now_text.complaints(None, ["Redis is away"]) == ["Redis is away"]
    assert now_text.complaints({**NOW, "bad_news": {}}, []) == []


def test_workers_show_their_gpus_and_nothing_is_markup() -> None:
    gpu = {"uuid": "GPU-1", "name": "NVIDIA H200", "memory_bytes": 143_771_000_000}
    worker = {
        **{"name": "gpu@a", "host": "a", "queues": ["gpu"], "seen_seconds": 100.0, "lost": True},
        **{"lineages": ["<b>one", "two"], "gpus": [{**gpu, "memory_used_bytes": 61_200_000_000}]},
    }
    other = {
        **{"name": "<i>other", "state": "active", "running": 1, "step": 4, "published_step": 3},
        **{"due": 1, "scored": 2, "trained": 5, "failed": 0},
    }
    now = {
        **{**NOW, "running": [TRAINS], "workers": [worker], "lineages": [other], "version": None},
        **{"step": 1, "published_step": 0, "last_step": {}},
        "gate_says": ["step 1 awaits its exam"],
        "bad_news": {"worker gpu@a": "Worker gpu@a has said <nothing>."},
    }
    page = Templates().load("now_parts.html").generate(
        now=now, queues={"cpu": 3, "gpu": 0}, away=[], text=now_text,
        reverse_url=lambda *parts: "/".join(parts),
    ).decode()  # fmt: skip
    for text in (
        *("NVIDIA H200: 57.0 GiB of 133.9 GiB of memory used", "width: 43%"),
        *("&lt;b&gt;one, two", "&lt;i&gt;other"),
        *("step 1 awaits its exam", "Worker gpu@a has said &lt;nothing&gt;.", "width: 31%"),
        *("the newest step is 1", "1 min 40 s ago"),
    ):
        assert text in page, text
    assert "<b>one" not in page
    assert "Nothing needs a person" not in page
