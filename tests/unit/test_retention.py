"""Which steps' files may go: by hand, and whatever happens."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from babylon_tasks.checkpoints.retention import may_go, previous
from babylon_tasks.records.versions import Head

TEN = range(1, 11)


@pytest.mark.parametrize(
    ("there", "head", "published", "keep_last", "keep_every", "goes"),
    [
        # 10 is served, 9 before it; of the last three 8 stays as well.
        (TEN, 10, 10, 3, None, [1, 2, 3, 4, 5, 6, 7]),
        # The last one is the head alone: 9 stays because a rollback would serve it.
        (TEN, 10, 10, 1, None, [1, 2, 3, 4, 5, 6, 7, 8]),
        # 5 is served: 6 to 10 are newer, 4 is before it.
        (TEN, 10, 5, 1, None, [1, 2, 3]),
        # 5 is served and 3 and 4 went long ago: 2 is what a rollback would serve.
        ([1, 2, 5, 9, 10], 10, 5, 1, None, [1]),
        # Every fourth: 4 and 8.
        (TEN, 10, 10, 1, 4, [1, 2, 3, 5, 6, 7]),
        (TEN, 10, 10, 1, 1, []),
        (TEN, 10, 10, 10, None, []),
        # As many as there are, but one.
        (TEN, 10, 10, 9, None, [1]),
        # Nothing is served yet: every step is newer than that.
        (TEN, 10, 0, 1, None, []),
        # The first step is served, and there is none before it.
        (TEN, 10, 1, 1, None, []),
        # 1 is the base model's successor and the one before the served 2.
        (TEN, 10, 2, 1, None, []),
        ([], 0, 0, 1, None, []),
    ],
)
def test_by_hand(
    there: list[int],
    head: int,
    published: int,
    keep_last: int,
    keep_every: int | None,
    goes: list[int],
) -> None:
    assert (
        may_go(there, Head(head, published, "base", None, head + 1), keep_last, keep_every) == goes
    )


def test_the_predecessor_is_the_newest_before_that_has_files() -> None:
    assert previous([1, 2, 5, 9], 9) == 5
    assert previous([9], 9) is None
    assert previous([], 0) is None


HISTORIES = st.lists(
    st.one_of(
        st.just(("commit", 0, 0)),
        st.just(("publish", 0, 0)),
        st.tuples(st.just("roll back"), st.integers(0, 50), st.just(0)),
        st.tuples(st.just("remove"), st.integers(1, 6), st.integers(0, 5)),
    ),
    max_size=60,
)


@settings(deadline=None)
@given(HISTORIES)
def test_what_is_served_and_what_a_rollback_would_serve_have_files(
    history: list[tuple[str, int, int]],
) -> None:
    """Whatever is committed, published and rolled back, with settings that change as they like."""
    there: set[int] = set()
    head = published = 0
    for event, number, every in history:
        if event == "commit":
            head += 1
            there.add(head)
        elif event == "publish":
            published = head
        elif event == "roll back" and there:
            published = sorted(there)[number % len(there)]  # only what has files can be served
        elif event == "remove":
            before, newest = previous(there, published), {s for s in there if s > head - number}
            there -= set(
                may_go(there, Head(head, published, "base", None, head + 1), number, every or None)
            )
            assert previous(there, published) == before
            assert newest <= there
        assert {head, published} - {0} <= there
