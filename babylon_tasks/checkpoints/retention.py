"""Decides which steps' files may be removed, by their numbers alone."""

from __future__ import annotations

from collections.abc import Collection

from babylon_tasks.records.versions import Head


def previous(with_files: Collection[int], published_step: int) -> int | None:
    """Return the step that a rollback would serve: the newest with files below the served one."""
    return max((step for step in with_files if step < published_step), default=None)


def may_go(
    with_files: Collection[int],
    head: Head,
    keep_last: int,
    keep_every: int | None,
    given_up: Collection[int] = (),
) -> list[int]:
    """Return the steps, oldest first, whose files may be removed.

    These keep their files: the head, the served step, its predecessor on the way to the head, all
    steps newer than the served one, the last `keep_last` steps, and every `keep_every`th step.

    Args:
        with_files: All steps that have files.
        head: The step that trains next and the served one.
        keep_last: At least 1.
        keep_every: None keeps no step because of its number.
        given_up: The steps that are not on the way to the head.
    """
    path = [step for step in with_files if step not in given_up]
    before = previous(path, head.published_step)
    return [
        step
        for step in sorted(with_files)
        if step < head.published_step
        and step not in (before, head.step)
        and step <= head.step - keep_last
        and (keep_every is None or step % keep_every != 0)
    ]
