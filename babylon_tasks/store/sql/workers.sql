-- Workers: what each says of itself.

-- note_worker --
INSERT INTO rl.workers AS w (name, host, pid, queues, slots, trainer, lineages, gpus, version,
                             started_at, seen_at)
VALUES (%(name)s, %(host)s, %(pid)s, %(queues)s, %(slots)s, %(trainer)s, %(lineages)s,
        %(gpus)s::jsonb, %(version)s, rl.clock_timestamp(), rl.clock_timestamp())
ON CONFLICT (name) DO UPDATE
   SET host = excluded.host, pid = excluded.pid, queues = excluded.queues, slots = excluded.slots,
       trainer = excluded.trainer, lineages = excluded.lineages, gpus = excluded.gpus,
       version = excluded.version, seen_at = excluded.seen_at,
       started_at = CASE WHEN (w.host, w.pid) = (excluded.host, excluded.pid)
                         THEN w.started_at ELSE excluded.started_at END

-- forget_worker --
DELETE FROM rl.workers WHERE name = %(name)s AND host = %(host)s AND pid = %(pid)s

-- forget_lost_workers --
DELETE FROM rl.workers WHERE seen_at < rl.clock_timestamp() - interval '1 day'

-- read_workers --
SELECT name, host, pid, queues, slots, trainer, lineages, gpus::text AS gpus, version, started_at,
       extract(epoch FROM rl.clock_timestamp() - seen_at)::float8 AS seen_seconds
  FROM rl.workers ORDER BY name COLLATE "C"
