"""Keep training an LLM agent from what its copies did in production.

Public and stable. A change of these is in CHANGELOG.md, and breaks nothing before the next major
version (before 1.0: the next minor one):

- the commands: `babylon …` with their options and `--json` keys, `celery -A babylon_tasks …`,
  `python -m babylon_tasks`, `python -m workers.serve`, and the exit codes 0, 2 and 75;
- the names, defaults and meaning of environment variables (docs/settings.md);
- the Celery application `babylon_tasks.celery:app`, the queues `cpu` and `gpu`, and the tasks
  `babylon.produce`, `babylon.enqueue` and `babylon.sweep`;
- the tables of the schema `rl`: columns are added, not changed, and what a state means stays;
- what is written into the app's tables (docs/architecture.md), and the files of a checkpoint;
- the metrics `babylon_…` of Flower's `/metrics`;
- to import: `babylon_tasks.settings.Settings` and `load_settings`, `babylon_tasks.errors`.

Not public, and free to move: every other module, class and function. So is the `Scorer` protocol
(`babylon_tasks.scoring.scorer`): a scorer is added in this repository, there are no plug-ins. So
are the other tasks, the messages' form, the wording of logs, and what trainer and worker say to
each other.

Empty of imports on purpose: `celery -A babylon_tasks` finds the application in `celery.py`, and a
command that needs no torch must load none.
"""
