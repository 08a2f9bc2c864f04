"""The base of all groups: how they are read, and how a wrong value is reported."""

from __future__ import annotations

from typing import TypeVar

from pydantic import JsonValue, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, SettingsConfigDict

from babylon_tasks.errors import UserError

DAY = 86_400
INT32 = 2**31 - 1

# As a field's `json_schema_extra`: a lineage may have its own value (settings/overrides.py).
PER_LINEAGE: dict[str, JsonValue] = {"per_lineage": True}


class Group(BaseSettings):
    """A frozen group of variables; each field's variable is its name in capitals.

    `.env` and, over it, `.env.local` are read from the working folder; the environment wins over
    both. A field's `description` is its only text. A group's docstring is the text of its section
    in `docs/settings.md`: the first line is the heading.
    """

    model_config = SettingsConfigDict(
        env_file=(".env", ".env.local"), extra="ignore", frozen=True, env_ignore_empty=True
    )


_Group = TypeVar("_Group", bound=Group)


def is_per_lineage(field: FieldInfo) -> bool:
    """Return whether a lineage may override this setting."""
    return field.json_schema_extra == PER_LINEAGE


def listed(text: str) -> list[str]:
    """Return the parts of a comma-separated text, without spaces around them and empty ones."""
    return [part.strip() for part in text.split(",") if part.strip()]


def unquoted(text: str) -> str:
    """Return the text without blanks around it, and without the quotes of a shell or a file."""
    text = text.strip()
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"
    return text[1:-1].strip() if quoted else text


def load(kind: type[_Group]) -> _Group:
    """Read one group from the environment.

    Raises:
        UserError: A value is out of range, and the message names the variable, never its value; or
            a file cannot be read.
    """
    try:
        return kind()
    except ValidationError as error:
        raise one_line(error) from None
    except UnicodeDecodeError:
        raise UserError(".env or .env.local is not UTF-8 text: save it as UTF-8") from None
    except OSError as error:
        raise UserError(
            f".env and .env.local cannot be read here ({error.strerror}): let this user read them, "
            "or start in another folder"
        ) from None


def one_line(error: ValidationError) -> UserError:
    """Return the first of the errors as one line, which does not show the wrong value."""
    first = error.errors()[0]
    name = str(first["loc"][0]).upper() if first["loc"] else "settings"
    return UserError(f"{name}: {first['msg'].removeprefix('Value error, ')}")
