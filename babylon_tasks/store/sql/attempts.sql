-- Attempts: one row for each try at a window. A row without an end whose lease is gone belongs to a
-- worker that died, or hung until its lease ran out.

-- open_attempts --
INSERT INTO rl.attempts (model_name, window_id, token, stage, holder)
SELECT %(model_name)s, window_id, %(token)s, 'train', %(holder)s
  FROM unnest(%(window_ids)s::text[]) AS window_id

-- end_attempts --
-- All windows of the attempts, or the named ones.
UPDATE rl.attempts
   SET ended_at = clock_timestamp(), outcome = %(outcome)s, error = %(error)s
 WHERE model_name = %(model_name)s AND token = ANY (%(tokens)s) AND ended_at IS NULL
   AND (%(window_ids)s::text[] IS NULL OR window_id = ANY (%(window_ids)s))

-- reap_scores --
-- Several windows are claimed at once, and any of them may have been the death of the worker. So
-- the first such end only makes a window be claimed alone; from the second on it counts.
WITH lost AS (
    UPDATE rl.attempts a
       SET ended_at = clock_timestamp(), outcome = 'lost',
           error = a.holder || ' died, or hung until its lease ran out'
     WHERE a.model_name = %(model_name)s AND a.stage = 'score' AND a.ended_at IS NULL
       AND NOT EXISTS (SELECT FROM rl.leases l
                        WHERE l.resource = 'window/' || a.model_name || '/' || a.window_id
                          AND l.token = a.token AND l.expires_at > clock_timestamp())
    RETURNING a.window_id, a.error
)
UPDATE rl.windows w
   SET attempts = w.attempts + 1, last_error = lost.error,
       state = CASE WHEN w.attempts > 0 AND w.attempts + 1 >= %(max_attempts)s
                    THEN 'failed' ELSE w.state END,
       failed_at = CASE WHEN w.attempts > 0 AND w.attempts + 1 >= %(max_attempts)s
                        THEN now() ELSE w.failed_at END
  FROM lost
 WHERE w.model_name = %(model_name)s AND w.window_id = lost.window_id AND w.state = 'due'
RETURNING w.window_id, w.state, w.batch_id, w.last_error

-- reap_steps --
-- For the holder of the model's lease: whoever else began a step can no longer commit it. Windows
-- that were together are tried again by halves; one that was alone has an attempt counted. Where a
-- job at W&B was under way, the next attempt goes on with it, over the same windows, and none of
-- them is suspected; others are, which were tried while an older job was open.
WITH lost AS (
    UPDATE rl.attempts a
       SET ended_at = clock_timestamp(), outcome = 'lost',
           error = a.holder || ' died, or hung until its lease ran out'
     WHERE a.model_name = %(model_name)s AND a.stage = 'train' AND a.ended_at IS NULL
    RETURNING a.window_id, a.token, a.error
), counted AS (
    SELECT window_id, error, count(*) OVER (PARTITION BY token)::int AS together FROM lost
     WHERE NOT EXISTS (SELECT FROM rl.jobs j
                        WHERE j.model_name = %(model_name)s AND j.token = lost.token
                          AND j.ended_at IS NULL AND j.windows ? lost.window_id)
)
UPDATE rl.windows w
   SET last_error = c.error,
       may_share = (c.together + 1) / 2,
       attempts = w.attempts + (c.together = 1)::int,
       state = CASE WHEN c.together = 1 AND w.attempts + 1 >= %(max_attempts)s
                    THEN 'failed' ELSE w.state END,
       failed_at = CASE WHEN c.together = 1 AND w.attempts + 1 >= %(max_attempts)s
                        THEN now() ELSE w.failed_at END
  FROM counted c
 WHERE w.model_name = %(model_name)s AND w.window_id = c.window_id AND w.state = 'scored'
RETURNING w.window_id, w.state, w.batch_id, w.last_error

-- read_attempts --
SELECT stage, token, holder, started_at, ended_at, outcome, error
  FROM rl.attempts
 WHERE model_name = %(model_name)s AND window_id = %(window_id)s
 ORDER BY token
