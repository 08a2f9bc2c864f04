"""`babylon keys`: a key is shown once, listed without it, and revoked."""

from __future__ import annotations

import json

from tests.acceptance.conftest import Deployment
from tests.rows import query


def test_create_list_and_revoke(deployment: Deployment) -> None:
    limits = ("--requests-per-minute", "600", "--tokens-per-day", "5000000")
    made = deployment.call("babylon", "keys", "create", "app", *limits)
    assert made.returncode == 0
    key = made.stdout.strip()
    assert key.startswith("bk-")
    assert len(key) == 46
    assert made.stderr == "this is the key app: it is not shown again\n"
    listed = deployment.call("babylon", "keys", "list", "--json")
    (row,) = json.loads(listed.stdout)
    assert (row["name"], row["requests_per_minute"], row["tokens_per_day"]) == (
        "app", 600, 5_000_000,
    )  # fmt: skip
    assert (row["requests_today"], row["revoked_at"]) == (0, None)
    shown = deployment.call("babylon", "keys", "list").stdout
    everything = str(query(deployment.context, "SELECT k::text FROM rl.api_keys k"))
    assert "app" in shown
    for text in (listed.stdout, shown, everything):
        assert key not in text
        assert key[3:] not in text
    again = deployment.call("babylon", "keys", "create", "app")
    assert (again.returncode, again.stdout) == (2, "")
    assert "choose another name" in again.stderr
    assert deployment.call("babylon", "keys", "revoke", "app").stdout.startswith("app is revoked")
    assert deployment.call("babylon", "keys", "revoke", "other").returncode == 2
    (row,) = json.loads(deployment.call("babylon", "keys", "list", "--json").stdout)
    assert row["revoked_at"]


def test_names(deployment: Deployment) -> None:
    for name in ("", "a b", "SERVE_API_KEY", "x" * 64, "ü"):
        refused = deployment.call("babylon", "keys", "create", name)
        assert refused.returncode == 2
        assert "is no name for a key" in refused.stderr
