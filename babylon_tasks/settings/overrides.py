"""Overrides: the settings for which a lineage has its own values.

The environment's settings are the defaults. An override is the text that would stand in the
environment, and is validated and refused as that is. `PER_LINEAGE` marks the fields.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from babylon_tasks.errors import UserError
from babylon_tasks.settings import Settings, changed
from babylon_tasks.settings.group import is_per_lineage
from babylon_tasks.settings.lineage import Lineage
from babylon_tasks.text import one_line

# The fields of all settings that a lineage may override.
OVERRIDABLE = frozenset(
    name for name, field in Settings.model_fields.items() if is_per_lineage(field)
)
# A lineage's later steps continue the weights of its first, which have this shape.
FIXED_BY_FIRST_STEP = frozenset({"LORA_RANK", "LORA_ALPHA"})

_FIELDS = {name.upper(): name for name in Settings.model_fields}


def parse_overrides(pairs: Sequence[str]) -> dict[str, str]:
    """Return the values of "KEY=VALUE" texts by the settings' names in capitals.

    An empty value stands for no override. Of a key that is given twice, the last value counts.

    Raises:
        UserError: A text has no "=", its key is no setting that a lineage may override, or its
            value is no UTF-8 text.
    """
    overrides = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UserError("an override is KEY=VALUE, such as SCORING=ruler")
        name = key.strip().upper()
        _field(name)
        try:
            value.encode()
        except UnicodeEncodeError:  # bytes that the terminal's encoding does not have
            raise UserError(f"{name}: the value is not UTF-8 text") from None
        overrides[name] = value
    return overrides


def with_overrides(settings: Settings, overrides: Mapping[str, str]) -> Settings:
    """Return the settings with a lineage's overrides in place of their own values.

    Args:
        settings: The deployment's settings.
        overrides: Values by the settings' names in capitals; an empty one counts as absent.

    Raises:
        UserError: A key is no setting that a lineage may override, or a value is out of range; the
            message names the setting, never its value.
    """
    values = {_field(key): text for key, text in overrides.items() if text}
    return changed(settings, **values) if values else settings


def _field(key: str) -> str:
    """Return the field of a setting that a lineage may override.

    Raises:
        UserError: There is no such setting, or a lineage may not override it.
    """
    field = _FIELDS.get(key)
    if field is None:
        raise UserError(f"{one_line(key, 40)} is no setting: docs/settings.md lists them")
    if field in Lineage.model_fields:
        raise UserError(f"{key} is fixed when a lineage is created, and cannot be overridden")
    if field not in OVERRIDABLE:
        raise UserError(f"{key} is a setting of the whole deployment: set it in the environment")
    return field
