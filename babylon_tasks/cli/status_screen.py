"""The screen of `babylon status`, from the plain data that `cockpit.overview` reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from babylon_tasks.cli.lines import gate_lines, tokens_line
from babylon_tasks.cli.screen import Line, Section, dollars, moment, under
from babylon_tasks.text import one_line
from babylon_tasks.words import counted, duration, loss_text, memory

Data = Mapping[str, Any]

_MOST = 8  # lines of a kind; a screen is no list


def sections(data: Data) -> list[Section]:
    """Return all sections; `redis_says` in the data is why the queues are not known, or None."""
    at = data["at"]
    title = f"{data['model']} ({data['state']}), {at:%Y-%m-%d %H:%M:%S} UTC"
    parts = [
        ("Now", _now(data)),
        (f"Windows of {data['model']}", _windows(data)),
        ("Queues", _queues(data)),
        ("Workers", _workers(data)),
        ("Serving", _serving(data)),
        ("Last step", _last_step(data)),
        ("Today, since 00:00 UTC", _today(data)),
        ("Other lineages", _others(data)),
    ]
    return under(title, parts)


def _now(data: Data) -> Iterator[Line]:
    for work in data["running"][:_MOST]:
        yield Line(work["stage"], work["title"])
        since = f"since {work['since']:%H:%M:%S} ({duration(work['seconds'])})"
        worker = f" ({work['worker']})" if work["worker"] else ""
        yield Line("", f"{work['progress']}; {since} on {work['holder']}{worker}")
    if not data["running"]:
        yield Line("nothing", "no window is scored and no step is trained at this moment")
    yield from _more(data["running"])


def _windows(data: Data) -> Iterator[Line]:
    counts = data["windows"]
    for state, after in (("due", "to be scored"), ("scored", "for a step")):
        oldest = data[f"oldest_{state}"]
        waits = f"; {_oldest(oldest)}" if oldest else ""
        wrong = state in data["bad_news"]
        yield Line(state, f"{counts[state]:,} wait {after}{waits}", bad=wrong)
    yield Line("ended", f"{counts['trained']:,} trained, {counts['skipped']:,} skipped")
    if failed := counts["failed"]:
        yield Line("failed", f"{failed:,}: `babylon windows list` says why", bad=True)


def _oldest(oldest: Data) -> str:
    said = f"{oldest['window_id']} has waited {duration(oldest['seconds'])}"
    if oldest["waits_until"]:
        said += f", is tried again {moment(oldest['waits_until'])}"
    if oldest["last_error"]:
        said += f" ({one_line(oldest['last_error'], 200)})"
    return said


def _queues(data: Data) -> Iterator[Line]:
    for queue, age in data["canary_age_seconds"].items():
        waiting = data["queues"] and data["queues"].get(queue)
        waits = "" if waiting is None else f"{counted(waiting, 'message')} waiting; "
        came = f"a message came through {duration(age or 0)} ago"
        if age is None:
            came = "no message ever came through to a worker"
        late, busy = queue in data["late_queues"], queue in data["busy_queues"]
        why = " (a worker is busy)" if late and busy else ""
        yield Line(queue, f"{waits}{came}{why}", bad=f"queue {queue}" in data["bad_news"])
    if data["redis_says"]:
        yield Line("Redis", data["redis_says"], bad=True)


def _workers(data: Data) -> Iterator[Line]:
    for worker in data["workers"][:_MOST]:
        trainer = f", trainer {worker['trainer']}" if worker["trainer"] else ""
        only = worker["lineages"]
        takes = "all lineages" if only is None else f"lineages {', '.join(only)}"
        seen = "not seen for" if worker["lost"] else "seen"
        after = "" if worker["lost"] else " ago"
        yield Line(
            ", ".join(worker["queues"]),
            f"{worker['name']}: {worker['slots']} at a time{trainer}, {takes}; {seen} "
            f"{duration(worker['seen_seconds'])}{after}",
            bad=worker["lost"],
        )
        yield from (_gpu(gpu) for gpu in worker["gpus"])
    yield from _more(data["workers"])
    if lost := sum(worker["lost"] for worker in data["workers"][_MOST:]):
        yield Line("", f"{lost:,} of these are not seen", bad=True)
    for queue in data["canary_age_seconds"]:
        if nobody := data["bad_news"].get(f"no worker {queue}"):
            yield Line("none", nobody, bad=True)
    for machine, error in data["at_fault"].items():
        yield Line("at fault", f"{machine} stopped: {error}", bad=True)


def _gpu(gpu: Data) -> Line:
    return Line("", f"{gpu['name']}: {memory(gpu['memory_used_bytes'], gpu['memory_bytes'])}")


def _serving(data: Data) -> Iterator[Line]:
    step, published = data["step"], data["published"]
    what = (
        f"{data['version']} (step {data['published_step']})"
        if data["version"]
        else "the base model"
    )
    since = ""
    if published and published["step"] == data["published_step"]:
        how = f"{published['kind']}, {published['holder']}: {published['why']}"
        passed = duration((data["at"] - published["at"]).total_seconds())
        since = f" since {moment(published['at'])} ({passed}); {how}"
    yield Line("serves", what + since)
    if step != data["published_step"]:
        yield Line("newest", f"step {step} does not serve")
    yield from gate_lines(data["gate"]["publish"], data["gate_says"])
    if paused := data["bad_news"].get("promotion"):
        yield Line("paused", paused, bad=True)


def _last_step(data: Data) -> Iterator[Line]:
    step = data["last_step"]
    if not step:
        return
    passed = duration((data["at"] - step["committed_at"]).total_seconds())
    yield Line(
        f"step {step['step']}",
        f"{step['version']}, committed {passed} ago: {counted(step['windows'], 'window')}, "
        f"{counted(step['trajectories'], 'run')}, {step['seconds']:.0f} s, of these "
        f"{step['compute_seconds']:.0f} s of computing",
    )
    names = ("tokens", "trainable_tokens", "tokens_per_second", "mfu", "gpu_seconds")
    yield tokens_line(*(step[name] for name in names))
    change = step["policy_change"]
    moved = "not known" if change is None else f"{change:g} nats an answer"
    yield Line("loss", f"{loss_text(step['loss'])}; policy change {moved}")
    if still := data["bad_news"].get("last step"):
        yield Line("", still, bad=True)


def _today(data: Data) -> Iterator[Line]:
    judge, gpu = data["judge_today"], data["gpu_today"]
    limit = judge["daily_limit_usd"]
    of = " without a daily limit" if limit is None else f" of the daily limit of {dollars(limit)}"
    asked = f"{counted(judge['answers'], 'answer')}, {counted(judge['tokens'], 'token')}"
    spent = "judge" in data["bad_news"]
    yield Line("judge", f"{asked}, {dollars(judge['usd'])}{of}", bad=spent)
    price = "price not known"
    if gpu["usd"] is not None:
        price = dollars(gpu["usd"])
        if gpu["unpriced"]:
            price += f" without {counted(gpu['unpriced'], 'step')} of unknown price"
    time = f"{duration(gpu['gpu_seconds'])} of GPU time" if gpu["gpu_seconds"] else "no GPU time"
    exams = (
        f"; {counted(gpu['exams'], 'exam')}, {duration(gpu['exam_seconds'])}"
        if gpu["exams"]
        else ""
    )
    costs = f", {price}" if gpu["steps"] and (gpu["gpu_seconds"] or gpu["usd"]) else ""
    yield Line("GPU", f"{counted(gpu['steps'], 'step')}, {time}{costs}{exams}")


def _others(data: Data) -> Iterator[Line]:
    others = [
        each
        for each in data["lineages"]
        if each["name"] != data["model"] and each["state"] != "retired"
    ]
    for each in others[:_MOST]:
        paused = ", promotion paused" if each["promotion_paused_at"] else ""
        failed = f", {each['failed']:,} failed" if each["failed"] else ""
        works = "; runs now" if each["running"] else ""
        yield Line(
            each["name"],
            f"{each['state']}, step {each['step']}, serves {each['published_step']}{paused}; "
            f"{each['due']:,} due, {each['scored']:,} scored, {each['trained']:,} trained"
            f"{failed}{works}",
            bad=f"lineage {each['name']}" in data["bad_news"],
        )
    yield from _more(others)


def _more(items: Sequence[object]) -> Iterator[Line]:
    if len(items) > _MOST:
        yield Line("", f"and {len(items) - _MOST:,} more: `babylon status --json` has all")
