"""The README's two lines of Python."""

from babylon_tasks.celery import app

app.send_task("babylon.produce")
