"""Which version serves, by hand and by the app; and what the app sees of it."""

from __future__ import annotations

import itertools
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import dict_row

from babylon_tasks import pipeline
from babylon_tasks.errors import ServerUnavailable, UserError
from babylon_tasks.records.promotions import PromotionKind
from babylon_tasks.records.steps import Trainer
from babylon_tasks.serving import promote
from babylon_tasks.settings import Settings
from babylon_tasks.store import exams, heads, leases, promotions
from babylon_tasks.store.database import Connection
from babylon_tasks.training.reset import reset
from babylon_tasks.work import lineage_changes
from babylon_tasks.work.context import Context
from babylon_tasks.work.fleet import Fleet
from tests.clock import wait_until_blocked
from tests.old_release import extract_old_release
from tests.rows import commit_steps, one, query

OWN = "babylon-agent"
# What Prisma sends for the app's queries, with the columns that these tests look at.
NEWEST = """SELECT version FROM public.trained_models WHERE status IN ('ready', 'deployed')
             ORDER BY "createdAt" DESC LIMIT 1 OFFSET 0"""
PINNED = """SELECT version FROM public.trained_models WHERE (version = %s AND status = 'ready')
             LIMIT 1 OFFSET 0"""
DEPLOYED = """SELECT version FROM public.trained_models WHERE status = 'deployed'
               ORDER BY "deployedAt" DESC LIMIT 1 OFFSET 0"""
PAGE_DEPLOYS = """UPDATE public.trained_models
                     SET status = 'deployed', "deployedAt" = now() AT TIME ZONE 'utc',
                         "agentsUsing" = 7, "updatedAt" = now() AT TIME ZONE 'utc'
                   WHERE ("modelId" = %s AND 1=1) RETURNING status"""
JOB_FINDS = """SELECT "modelId" FROM public.trained_models
                WHERE ("trainingBatch" = %s AND status = 'ready') LIMIT 1 OFFSET 0"""
JOB_DEPLOYS = """UPDATE public.trained_models
                    SET status = 'deployed', "deployedAt" = now() AT TIME ZONE 'utc',
                        "updatedAt" = now() AT TIME ZONE 'utc'
                  WHERE ("modelId" = %s AND 1=1) RETURNING status"""


@pytest.fixture
def app(database_url: str, postgres_url: str) -> Iterator[Callable[..., list[Any]]]:
    """Queries as the app sends them, by a role that may only use the tables in `public`."""
    name = f"app_{uuid.uuid4().hex[:8]}"
    role = sql.Identifier(name)
    with psycopg.connect(postgres_url, autocommit=True) as server:
        server.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'p'").format(role))
    with psycopg.connect(database_url, autocommit=True) as inside:
        inside.execute(sql.SQL("GRANT USAGE ON SCHEMA public TO {}").format(role))
        rights = "GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO {}"
        inside.execute(sql.SQL(rights).format(role))
    parts = urlsplit(database_url)
    url = urlunsplit(parts._replace(netloc=f"{name}:p@{parts.netloc.rpartition('@')[2]}"))
    with psycopg.connect(url, autocommit=True, row_factory=dict_row) as connection:
        yield lambda text, *values: connection.execute(text, values).fetchall()
    with psycopg.connect(database_url, autocommit=True) as inside:
        inside.execute(sql.SQL("DROP OWNED BY {} CASCADE").format(role))
    with psycopg.connect(postgres_url, autocommit=True) as server:
        server.execute(sql.SQL("DROP ROLE {}").format(role))


def statuses(context: Context) -> list[str]:
    """The app's rows, oldest first, each in one letter: training, ready, deployed or archived."""
    rows = query(context, 'SELECT * FROM trained_models ORDER BY "createdAt"')
    for row in rows:
        assert (row["archivedAt"] is not None) == (row["status"] == "archived")
        assert row["deployedAt"] is not None or row["status"] != "deployed"
    return "".join(row["status"][0] for row in rows)  # type: ignore[return-value]


def serves(context: Context) -> tuple[int, bool]:
    """The step that serves, and whether promotion is paused."""
    row = one(context, "SELECT * FROM rl.heads WHERE model_name = %s", context.lineage.name)
    return row["published_step"], row["promotion_paused_at"] is not None


def done(context: Context) -> list[tuple[str, int, int]]:
    with context.database.transaction() as tx:
        history = promotions.history(tx, context.lineage.name)
    return [(each.kind.value, each.from_step, each.to_step) for each in reversed(history)]


# --- by hand ------------------------------------------------------------------------------------


def test_back_and_forth(context: Context, trainer: Trainer, app: Callable[..., list[Any]]) -> None:
    commit_steps(context, trainer, 4)
    assert statuses(context) == "rrrd"
    report = promote.roll_back(context, None, "it\nsells everything")
    assert (report.from_step, report.step, report.version, report.head) == (4, 3, "v1.0.2", 4)
    assert report.pause
    assert (report.pause.holder, report.pause.why) == ("test:1", "it sells everything")
    assert (serves(context), statuses(context)) == ((3, True), "rrda")
    # What is trained meanwhile waits, and nobody is rung for it.
    commit_steps(context, trainer, 1)
    assert (serves(context), statuses(context)) == ((3, True), "rrdat")
    assert Fleet(context.database, context.settings, "test:1").sweep(9).publish == []
    assert [row["version"] for row in app(NEWEST)] == ["v1.0.2"]
    promote.roll_back(context, None, "this one too")
    promote.roll_back(context, "v1.0.0", "and this")
    assert (serves(context), statuses(context)) == ((1, True), "daaat")
    promote.promote(context, "4", "it was the feed")
    assert (serves(context), statuses(context)) == ((4, True), "rrrdt")
    assert promote.resume(context, "all is well").head == 5
    assert pipeline.publish(context) == ["v1.0.4"]
    assert (serves(context), statuses(context)) == ((5, False), "rrrrd")
    assert done(context)[4:] == [
        ("rollback", 4, 3), ("rollback", 3, 2), ("rollback", 2, 1), ("promote", 1, 4),
        ("resume", 4, 4), ("automatic", 4, 5),
    ]  # fmt: skip


def test_back_to_the_base_model_and_away_from_it(
    context: Context, trainer: Trainer, app: Callable[..., list[Any]]
) -> None:
    commit_steps(context, trainer, 2)
    report = promote.roll_back(context, "0", "both are worse than nothing")
    assert (report.step, report.version) == (0, None)
    assert (serves(context), statuses(context), app(NEWEST)) == ((0, True), "aa", [])
    with pytest.raises(UserError, match="step 0 is the first that babylon-agent can serve"):
        promote.roll_back(context, None, "further")
    promote.promote(context, "v1.0.1", "no")
    assert statuses(context) == "rd"


def test_what_cannot_be_is_refused_and_says_what_to_do(
    make_context: Callable[..., Context], trainer: Trainer
) -> None:
    context = make_context(keep_checkpoints=1)
    with pytest.raises(UserError, match="no step of babylon-agent is committed yet"):
        promote.roll_back(context, None, "?")
    commit_steps(context, trainer, 4)
    commit_steps(context, trainer, 2, publish=False)

    def refused(says: str, change: Callable[..., Any], *arguments: Any) -> None:
        before = serves(context), statuses(context), done(context)
        with pytest.raises(UserError, match=says):
            change(context, *arguments)
        assert (serves(context), statuses(context), done(context)) == before

    refused("say why", promote.promote, "6", " \n")
    refused("step 4 of babylon-agent serves already", promote.promote, "4", "?")
    refused("step 3 is older .*: `babylon models rollback 3`", promote.promote, "3", "?")
    refused("step 6 is newer and will be promoted by itself", promote.promote, "5", "?")
    refused("step 4 serves, and step 5 is not older", promote.roll_back, "5", "?")
    refused("the files of step 1 .* were removed", promote.roll_back, "v1.0.0", "?")
    refused("has no version or step '77'", promote.roll_back, "77", "?")
    refused("is not paused", promote.resume, "?")
    refused("the files of step 1 .* were removed", promote.share, "1", 10, "?")
    promote.pause(context, "first\x1b")
    refused("is paused since 20.* UTC, by test:[0-9]: first\ufffd$", promote.pause, "?")
    reset(context, "4", "bad")
    refused("step 5 .* was given up: `babylon models reset 5`", promote.promote, "5", "?")


def test_a_fork_serves_no_step_of_which_nobody_keeps_the_files(
    context: Context, trainer: Trainer
) -> None:
    commit_steps(context, trainer, 3)
    fleet = Fleet(context.database, context.settings, context.holder)
    lineage_changes.fork(fleet, f"{OWN}@2", "fork", [])
    fork = fleet.context("fork")
    commit_steps(fork, trainer, 1)
    assert serves(fork) == (3, False)
    with pytest.raises(UserError, match="cannot go back behind it: ask babylon-agent@1"):
        promote.roll_back(fork, "1", "?")
    assert promote.roll_back(fork, None, "?").step == 2
    assert serves(context) == (3, False)
    assert statuses(context) == "rrd"


def test_a_reset_moves_what_serves_and_leaves_a_pause(context: Context, trainer: Trainer) -> None:
    commit_steps(context, trainer, 4)
    reset(context, "3", "a broken feed")
    assert (serves(context), statuses(context)) == ((3, False), "rrda")
    assert done(context)[-1] == ("reset", 4, 3)
    promote.roll_back(context, None, "the one before as well")
    reset(context, "1", "all of it")
    assert (serves(context), statuses(context)) == ((1, True), "daaa")
    commit_steps(context, trainer, 1)
    assert (serves(context), statuses(context)) == ((1, True), "daaat")


def test_two_at_once(
    context: Context, make_context: Callable[..., Context], trainer: Trainer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A worker that publishes while a person rolls back finds promotion paused."""
    commit_steps(context, trainer, 3)
    commit_steps(context, trainer, 1, publish=False)
    worker, published = make_context(), []
    thread = threading.Thread(target=lambda: published.append(pipeline.publish(worker)))
    real = promotions.move

    def meanwhile(*arguments: Any) -> None:
        real(*arguments)
        thread.start()
        wait_until_blocked(context.settings.postgres())

    monkeypatch.setattr("babylon_tasks.store.promotions.move", meanwhile)
    promote.roll_back(context, None, "now")
    thread.join()
    assert published == [[]]
    assert (serves(context), statuses(context)) == ((2, True), "rdat")


def test_a_death_before_the_commit_changes_nothing(
    context: Context, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit_steps(context, trainer, 2)
    before = serves(context), statuses(context), done(context)
    real = promotions.move

    def die(*arguments: Any) -> None:
        real(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr("babylon_tasks.store.promotions.move", die)
    with pytest.raises(KeyboardInterrupt):
        promote.roll_back(context, None, "now")
    assert (serves(context), statuses(context), done(context)) == before


# --- by the app ---------------------------------------------------------------------------------


def test_the_app_serves_what_is_promoted_and_finds_its_pinned_version(
    context: Context, trainer: Trainer, app: Callable[..., list[Any]]
) -> None:
    commit_steps(context, trainer, 3)
    assert app(NEWEST) == app(DEPLOYED) == [{"version": "v1.0.2"}]
    assert app(PINNED, "v1.0.2") == []  # then it takes the newest, which is the same
    assert app(PINNED, "v1.0.0") == [{"version": "v1.0.0"}]
    promote.roll_back(context, None, "?")
    assert app(NEWEST) == app(DEPLOYED) == [{"version": "v1.0.1"}]
    assert app(PINNED, "v1.0.0") == [{"version": "v1.0.0"}]
    assert app(PINNED, "v1.0.2") == []


def test_the_app_rolls_back(
    context: Context, trainer: Trainer, app: Callable[..., list[Any]]
) -> None:
    commit_steps(context, trainer, 3)
    assert app(PAGE_DEPLOYS, f"{OWN}-v1.0.0") == [{"status": "deployed"}]
    assert (serves(context), statuses(context)) == ((1, True), "daa")
    assert pipeline.publish(context) == []
    last = query(context, "SELECT * FROM rl.promotions ORDER BY id")[-1]
    assert (last["kind"], last["from_step"], last["to_step"]) == ("app", 3, 1)
    assert last["holder"].startswith("role app_")
    assert last["why"] == "the app deployed babylon-agent-v1.0.0"
    with context.database.transaction() as tx:
        pause = promotions.current_pause(tx, OWN)
    assert pause
    assert pause.why == "the app deployed babylon-agent-v1.0.0"
    # And forward again: the pause is a person's to end.
    assert app(PAGE_DEPLOYS, f"{OWN}-v1.0.2") == [{"status": "deployed"}]
    assert (serves(context), statuses(context)) == ((3, True), "rrd")
    assert one(context, "SELECT * FROM trained_models WHERE version = 'v1.0.2'")["agentsUsing"] == 7


def test_the_apps_job_takes_nothing_back(
    context: Context, trainer: Trainer, app: Callable[..., list[Any]]
) -> None:
    """It deploys the version of the newest request, which need not be the newest version."""
    commit_steps(context, trainer, 3)
    batch = one(context, "SELECT * FROM trained_models WHERE version = 'v1.0.1'")["trainingBatch"]
    assert app(JOB_FINDS, batch) == [{"modelId": f"{OWN}-v1.0.1"}]
    assert app(JOB_DEPLOYS, f"{OWN}-v1.0.1") == [{"status": "ready"}]
    assert (serves(context), statuses(context)) == ((3, False), "rrd")
    newest = one(context, "SELECT * FROM trained_models WHERE version = 'v1.0.2'")["trainingBatch"]
    assert app(JOB_FINDS, newest) == []
    promote.roll_back(context, None, "?")
    assert app(JOB_FINDS, newest) == []


def test_the_app_cannot_deploy_what_cannot_serve(
    make_context: Callable[..., Context], trainer: Trainer, app: Callable[..., list[Any]]
) -> None:
    context = make_context(keep_checkpoints=1)
    commit_steps(context, trainer, 5)
    reset(context, "4", "bad")
    before = serves(context), statuses(context), done(context)
    with pytest.raises(psycopg.Error, match=r"v1\.0\.0 cannot be deployed: its files were removed"):
        app(PAGE_DEPLOYS, f"{OWN}-v1.0.0")
    with pytest.raises(psycopg.Error, match=r"v1\.0\.4 cannot be deployed: its step was given up"):
        app(PAGE_DEPLOYS, f"{OWN}-v1.0.4")
    assert (serves(context), statuses(context), done(context)) == before


def test_rows_of_other_trainers_are_left_alone(
    context: Context, trainer: Trainer, app: Callable[..., list[Any]]
) -> None:
    for number in (1, 2):
        app(
            """INSERT INTO trained_models (id, "modelId", version, "baseModel", status,
                   "storagePath", "updatedAt")
               VALUES (%s, %s, %s, 'base', 'deployed', 'there', now()) RETURNING 1""",
            *(f"model-{number}", f"{OWN}-v0.{number}.0", f"v0.{number}.0"),
        )
    commit_steps(context, trainer, 2)
    promote.roll_back(context, None, "?")
    others = 'SELECT status FROM trained_models WHERE id <> "modelId"'
    assert query(context, others) == [{"status": "deployed"}] * 2
    app("UPDATE trained_models SET status = 'ready' WHERE version = 'v0.1.0' RETURNING 1")
    assert app(PAGE_DEPLOYS, f"{OWN}-v0.1.0") == [{"status": "deployed"}]
    assert serves(context) == (1, True)


def test_nobody_waits_long_for_a_row_that_the_app_holds(
    context: Context, trainer: Trainer, settings: Any
) -> None:
    commit_steps(context, trainer, 2)
    with psycopg.connect(settings.postgres()) as held:
        held.execute("SELECT FROM trained_models WHERE version = 'v1.0.1' FOR UPDATE")
        with pytest.raises(ServerUnavailable, match="the app changes a version of babylon-agent"):
            promote.roll_back(context, None, "now")
    assert (serves(context), statuses(context)) == ((2, False), "rd")
    promote.roll_back(context, None, "now")


def test_a_second_deployed_version_is_impossible(context: Context, trainer: Trainer) -> None:
    """Even where no trigger of ours is asked."""
    commit_steps(context, trainer, 2)
    with psycopg.connect(context.settings.postgres()) as connection:
        connection.execute("SET LOCAL session_replication_role = replica")
        with pytest.raises(psycopg.errors.UniqueViolation, match="rl_trained_models_deployed_idx"):
            connection.execute("UPDATE trained_models SET status = 'deployed'")


# --- beside workers of release 0.1.0 --------------------------------------------------------------


@pytest.fixture(scope="session")
def old_publish(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The statement by which a worker of release 0.1.0 publishes."""
    folder = tmp_path_factory.mktemp("old_release")
    extract_old_release(folder)
    text = (folder / "babylon_tasks" / "store" / "sql" / "steps.sql").read_text()
    return text.split("-- publish --")[1].split("\n-- ")[1].partition("\n")[2]


def test_workers_of_release_0_1_0_promote_until_a_person_rolls_back(
    context: Context, trainer: Trainer, old_publish: str
) -> None:
    def publish() -> None:
        with context.database.transaction() as tx:
            tx.execute(old_publish.encode(), {"model_name": OWN})

    commit_steps(context, trainer, 3, publish=False)
    publish()
    publish()
    assert (serves(context), statuses(context)) == ((3, False), "rrd")
    assert done(context) == [("automatic", 0, 3)]
    promote.roll_back(context, None, "?")
    promote.promote(context, "2", "the base is worse")
    commit_steps(context, trainer, 2, publish=False)
    publish()
    assert (serves(context), statuses(context)) == ((2, True), "rdatt")
    promote.resume(context, "?")
    publish()
    assert (serves(context), statuses(context)) == ((5, False), "rrrrd")
    last = query(context, "SELECT * FROM rl.promotions ORDER BY id")[-1]
    assert last["why"] == "by release 0.1.0, or by SQL"


def test_a_worker_of_release_0_1_0_needs_no_right_on_what_is_new(
    context: Context, trainer: Trainer, old_publish: str, app: Callable[..., list[Any]]
) -> None:
    """Its role has what was granted to it before the upgrade."""
    role = app("SELECT current_user AS name")[0]["name"]
    with psycopg.connect(context.settings.postgres()) as connection:
        for right in ("USAGE ON SCHEMA rl", "SELECT, UPDATE ON rl.heads", "SELECT ON rl.steps"):
            connection.execute(f"GRANT {right} TO {role}".encode())
    commit_steps(context, trainer, 2, publish=False)
    app(old_publish.replace("%(model_name)s", f"'{OWN}'"))
    assert (serves(context), statuses(context)) == ((2, False), "rd")


def _rolls_back(tx: Connection, context: Context) -> None:
    promotions.move(tx, OWN, 1, PromotionKind.ROLLBACK, ("test", "?"))


def _tells_the_app_of_an_exam(tx: Connection, context: Context) -> None:
    exams.tell_app(tx, OWN, 3, {})


def _resets(tx: Connection, context: Context) -> None:
    lease = leases.acquire(tx, f"model/{OWN}", context.holder, 30.0)
    assert lease
    heads.move(tx, context.claim(lease), 4, 1, "?")


@pytest.mark.parametrize("change", [_rolls_back, _tells_the_app_of_an_exam, _resets])
def test_the_app_meets_no_deadlock_however_long_it_has_waited(
    context: Context,
    trainer: Trainer,
    settings: Settings,
    change: Callable[[Connection, Context], None],
) -> None:
    """It waits for the head with its row held; whoever has the head wants that row late."""
    commit_steps(context, trainer, 4)
    deployed: list[Any] = []

    def deploy() -> None:
        with psycopg.connect(settings.postgres(), autocommit=True) as connection:
            deployed.extend(connection.execute(PAGE_DEPLOYS, [f"{OWN}-v1.0.2"]).fetchall())

    page = threading.Thread(target=deploy)

    def late() -> None:
        with context.database.transaction() as tx:
            heads.hold(tx, OWN)
            page.start()
            wait_until_blocked(settings.postgres())
            time.sleep(0.7)  # deadlock_timeout is 1 s, and runs from the begin of the page's wait
            change(tx, context)

    with pytest.raises(ServerUnavailable, match="the app changes a version"):
        late()
    page.join()
    assert deployed == [("deployed",)]


def test_all_at_once(
    make_context: Callable[..., Context], trainer: Trainer, settings: Settings
) -> None:
    """The app, people and a worker move the same lineage, many times; nobody meets a deadlock."""
    context = make_context()
    commit_steps(context, trainer, 6)
    unexpected: list[Exception] = []

    def many(change: Callable[[Context, random.Random], Any], seed: int) -> None:
        mine, rng = make_context(), random.Random(seed)
        for _ in range(15):
            try:
                change(mine, rng)
            except UserError:
                pass  # what cannot be is refused
            except Exception as error:  # noqa: BLE001 - which ones come is asked here
                if "the app changes a version" not in str(error):
                    unexpected.append(error)

    def deploy(_: Context, rng: random.Random) -> None:
        with psycopg.connect(settings.postgres(), autocommit=True) as connection:
            connection.execute(PAGE_DEPLOYS, [f"{OWN}-v1.0.{rng.randrange(6)}"])

    changes = (
        deploy,
        deploy,
        lambda mine, rng: promote.roll_back(mine, str(rng.randrange(7)), "?"),
        lambda mine, rng: promote.promote(mine, str(rng.randrange(7)), "?"),
        lambda mine, _: promote.resume(mine, "?"),
        lambda mine, _: pipeline.publish(mine),
    )
    threads = [threading.Thread(target=many, args=(c, n)) for n, c in enumerate(changes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert unexpected == []
    step, _ = serves(context)
    found = statuses(context)
    assert [n for n, letter in enumerate(found, 1) if letter == "d"] == ([step] if step else [])
    assert set(found[step:]) <= {"a"}
    moves = [(before, after) for _, before, after in done(context) if before != after]
    assert all(one[1] == other[0] for one, other in itertools.pairwise(moves))
