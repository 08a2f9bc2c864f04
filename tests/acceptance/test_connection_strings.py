"""A DATABASE_URL that cannot work ends every role with one line and code 2."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from tests.acceptance.conftest import Deployment

CELERY = ("celery", "-A", "babylon_tasks")
ROLES = [
    ("babylon", "migrate"),
    ("babylon", "doctor", "--json"),
    ("-m", "workers.serve", "--port=0"),
    (*CELERY, "worker", "-Q", "cpu"),
    (*CELERY, "beat"),
    (*CELERY, "flower", "--port=0"),
]


def test_every_role_refuses_it_in_one_line(deployment: Deployment) -> None:
    url, says = "postgres://u:x/s3cret@h/db", "percent-encoded"
    with ThreadPoolExecutor(2) as pool:
        ends = list(pool.map(lambda role: deployment.run(*role, env={"DATABASE_URL": url}), ROLES))
    for role, done in zip(ROLES, ends, strict=True):
        said = done.stdout + done.stderr
        assert done.returncode == 2, (role, said)
        assert says in said, role
        assert "s3cret" not in said, role
        assert "Traceback" not in said, role
        if "--json" not in role:
            assert said.count("\n") == 1, (role, said)


def test_a_server_that_refuses_us_is_a_mistake_and_no_outage(deployment: Deployment) -> None:
    url = deployment.env["DATABASE_URL"].replace("/test_", "/nobodys_")
    done = deployment.run(*CELERY, "worker", "-Q", "cpu", env={"DATABASE_URL": url})
    assert done.returncode == 2
    assert "name a user and a database that exist" in done.stderr
    assert done.stderr.count("\n") == 1
