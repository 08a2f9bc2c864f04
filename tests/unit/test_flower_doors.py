"""Flower's doors: what does not shut them as it was meant is refused at the start."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import flower.options  # noqa: F401 - declares the options
import pytest
from tornado.options import OptionParser, options

from babylon_tasks.errors import UserError
from workers.watch.doors import require_sound_doors
from workers.watch.saved_tasks import require_private

GOOGLE = {
    "FLOWER_AUTH_PROVIDER": "flower.views.auth.GoogleAuth2LoginHandler",
    "FLOWER_OAUTH2_KEY": "s3cret-key",
    "FLOWER_OAUTH2_SECRET": "s3cret",
    "FLOWER_OAUTH2_REDIRECT_URI": "https://example.org/login",
}


def check(
    environment: dict[str, str], arguments: Sequence[str] = (), assigned: Sequence[str] = ()
) -> None:
    """As Flower reads both, into options of this test."""
    mine = OptionParser()
    for name, option in options._options.items():
        if option.group_name.endswith("flower/options.py"):
            mine.define(name, option.default, option.type, multiple=option.multiple)
    for name, value in environment.items():
        known = name.removeprefix("FLOWER_").lower()
        if known in mine:
            type_ = options._options[known.replace("_", "-")].type
            setattr(mine, known, value.split(",") if known == "basic_auth" else type_(value))
    require_sound_doors(mine, environment, arguments, assigned)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("", "is empty: set it to user:password, or unset it"),
        (",", "is empty"),
        ("s3cret", "has no colon: write user:password"),
        ("user:s3,cret", "entry 2 of 2 has no colon. Commas separate users"),
        ("user:s3,cret:a,b", "entry 3 of 3 has no colon"),
        ("user:s3cret,", "entry 2 of 2 has no colon"),
        ("user:", "has no password"),
        (":s3cret", "has no user"),
        ("user:s3crét", "a letter that is not plain ASCII"),
        ("user:s3c\x07ret", "a letter that is not plain ASCII"),
        ("user:s3cret ", "begins or ends with a blank"),
        (" user:s3cret", "begins or ends with a blank"),
        ("user: s3cret", "begins or ends with a blank"),
        ('"user:s3cret"', "is in quotation marks"),
    ],
)
def test_a_password_that_opens_nothing_is_refused(value: str, says: str) -> None:
    with pytest.raises(UserError) as refused:
        check({"FLOWER_BASIC_AUTH": value})
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)
    for part in ("s3", "cret"):
        assert part not in str(refused.value).replace("secret", "")


@pytest.mark.parametrize("value", ["user:pass", "a:b,c:d", "user:with:colons", "u:a b", "u:'"])
def test_a_password_that_a_browser_can_send_is_taken(value: str) -> None:
    check({"FLOWER_BASIC_AUTH": value})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"FLOWER_OAUTH2_KEY": ""}, "also needs FLOWER_OAUTH2_KEY: nobody could log in"),
        ({"FLOWER_AUTH_PROVIDER": ""}, "also needs FLOWER_AUTH_PROVIDER"),
        ({"FLOWER_OAUTH2_REDIRECT_URI": ""}, "also needs FLOWER_OAUTH2_REDIRECT_URI"),
        ({"FLOWER_AUTH_PROVIDER": "flower.views.auth.Nobody"}, "names no class"),
        ({"FLOWER_AUTH_PROVIDER": "nobody"}, "names no class"),
        ({"FLOWER_AUTH": ".*"}, "would let everybody in"),
        ({"FLOWER_AUTH": "*"}, "would let everybody in"),
        ({"FLOWER_AUTH": ".*@.*"}, "may have one `.*`"),
        ({"FLOWER_AUTH": ".*@gmail.com"}, "would let everybody in"),
        ({"FLOWER_AUTH": "*@example.org"}, "may have one `.*`"),
        ({"FLOWER_AUTH": "a@example.org|"}, "must be addresses"),
        ({"FLOWER_AUTH": "a@example.org | b@example.org"}, "must be addresses"),
        ({"FLOWER_AUTH": "someone"}, "must be addresses"),
        ({"FLOWER_AUTH": ""}, "is empty"),
    ],
)
def test_a_login_by_a_provider_that_cannot_work_is_refused(
    changes: dict[str, str], says: str
) -> None:
    with pytest.raises(UserError) as refused:
        check({**GOOGLE, "FLOWER_AUTH": ".*@example.org", **changes})
    assert says in str(refused.value)
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize("auth", [".*@example.org", "a@gmail.com", "a@b.org|c@gmail.com"])
def test_a_login_by_a_provider_is_taken(auth: str) -> None:
    check({**GOOGLE, "FLOWER_AUTH": auth})


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"FLOWER_UNAUTHENTICATED_API": "yes please"}, "must be true or false"),
        ({"FLOWER_UNAUTHENTICATED_API": "true", "FLOWER_ADDRESS": "0.0.0.0"},
         "would let everybody stop workers"),
        ({"FLOWER_UNAUTHENTICATED_API": "1", "FLOWER_BASIC_AUTH": "a:b"}, "does nothing beside"),
        ({"FLOWER_ADDRESS": "10.0.0.1"}, "needs authentication"),
        ({"FLOWER_BASICAUTH": "a:b"}, "Did you mean FLOWER_BASIC_AUTH?"),
        ({"FLOWER_OAUTH_SECRET": "a"}, "Did you mean FLOWER_OAUTH2_SECRET?"),
    ],
)  # fmt: skip
def test_other_doors_that_stand_open_are_refused(environment: dict[str, str], says: str) -> None:
    with pytest.raises(UserError, match=r"^[^\n]*$") as refused:
        check(environment)
    assert says in str(refused.value)


def test_a_mistyped_argument_is_refused() -> None:
    """Flower leaves out what it does not know."""
    with pytest.raises(UserError, match=r"--basicauth is .* Did you mean --basic_auth\?"):
        check({}, ["--basicauth=a:b"])
    check({}, ["--basic-auth=a:b", "--port=5555"])


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("basicauth", "basic_auth"),
        ("BASIC_AUTH", "basic_auth"),
        ("adress", "address"),
        ("addresses", "address"),
    ],
)
def test_a_mistyped_name_in_a_file_is_refused(name: str, meant: str) -> None:
    """A file may need other names."""
    with pytest.raises(UserError, match=rf"^{name} in the .* Did you mean {meant}\?.* underscore$"):
        check({}, assigned=["users", "port", name])
    check({}, assigned=["users", "password", f"_{name}", "basic_auth", "port"])


def test_other_names_that_flower_does_not_know_are_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check(
            {
                "FLOWER_MAXTASKS": "5",
                "FLOWER_PASSPHRASE": "s3cret",
                "FLOWER_MAX_TASKS": "5",
                "FLOWER_SERVICE_HOST": "10.0.0.1",  # Kubernetes sets it
            }
        )
    assert [record.getMessage() for record in caplog.records] == [
        "FLOWER_MAXTASKS is no setting of Flower, and does nothing: FLOWER_MAX_TASKS is one",
        "FLOWER_PASSPHRASE is no setting of Flower, and does nothing",
    ]


def test_a_pickle_that_others_can_write_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    with pytest.raises(UserError, match="there is no folder"):
        require_private(str(folder / "flower"))
    folder.mkdir(mode=0o700)
    require_private(str(folder / "flower"))
    (folder / "flower.db").touch(mode=0o644)
    require_private(str(folder / "flower"))
    (folder / "flower.db").chmod(0o664)
    with pytest.raises(UserError, match=r"others may write .*flower.db, .*chmod go-w"):
        require_private(str(folder / "flower"))
    (folder / "flower.db").unlink()
    folder.chmod(0o777)
    with pytest.raises(UserError, match=r"others may write .*state"):
        require_private(str(folder / "flower"))
    folder.chmod(0o700)
    (folder / "flower").symlink_to("/etc/passwd")
    with pytest.raises(UserError, match="symbolic link"):
        require_private(str(folder / "flower"))


def test_a_pickle_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_private(str(tmp_path / "flower"))
    monkeypatch.setattr("os.geteuid", lambda: os.getuid() + 1)
    with pytest.raises(UserError, match="belongs to another user"):
        require_private(str(tmp_path / "flower"))
