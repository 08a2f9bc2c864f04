"""Preloaded by both of two nodes: their processes have one name in leases and rows."""

from babylon_tasks.work import context

context.this_holder = lambda: "node:7"
