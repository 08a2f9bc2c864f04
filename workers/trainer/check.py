"""`python -m workers.trainer.check BASE_MODEL [REVISION]`: can it be trained, but for its weights?

One line on stdout and exit 0, or on stderr and exit 2. Nothing is downloaded.
"""

from __future__ import annotations

import os
import sys

from babylon_tasks.errors import UserError


def main(base_model: str, revision: str | None = None) -> int:
    """Check the configuration, the tokenizer and the chat template."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from workers.trainer.torch.model_files import check_base

    try:
        chat, config = check_base(base_model, revision)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    print(f"{config.model_type}, an answer ends with {chat.end!r}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
