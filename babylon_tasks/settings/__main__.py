"""`python -m babylon_tasks.settings`: write `.env.example` and `docs/settings.md` again.

Run it in the repository's root after each change of a setting; a test compares the files.
"""

from __future__ import annotations

from pathlib import Path

from babylon_tasks.settings.documentation import env_example, settings_page

Path(".env.example").write_text(env_example(), encoding="utf-8")
Path("docs", "settings.md").write_text(settings_page(), encoding="utf-8")
