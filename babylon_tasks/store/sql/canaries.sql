-- Canaries: when Redis, a queue and a worker last delivered a message. A queue is for all lineages, so
-- model_name is '*'; rows with a name are of workers of release 0.1.0, which have queues of their own.

-- note_canary --
INSERT INTO rl.canaries AS c (model_name, queue, holder, ran_at)
VALUES ('*', %(queue)s, %(holder)s, rl.clock_timestamp())
ON CONFLICT (model_name, queue) DO UPDATE
   SET holder = excluded.holder, ran_at = excluded.ran_at

-- canary_ages --
SELECT queue, holder, extract(epoch FROM rl.clock_timestamp() - ran_at)::float8 AS age_seconds
  FROM rl.canaries WHERE model_name = '*' ORDER BY queue
