-- Attempts: one row for each attempt at a window. If a row has no end and its lease ran out, its
-- worker died, or hung for too long.

-- open_attempts --
INSERT INTO rl.attempts (model_name, window_id, token, stage, holder, started_at)
SELECT %(model_name)s, window_id, %(token)s, 'train', %(holder)s, rl.clock_timestamp()
  FROM unnest(%(window_ids)s::text[]) AS window_id

-- end_attempts --
-- All windows of the attempts, or the named ones.
UPDATE rl.attempts
   SET ended_at = rl.clock_timestamp(), outcome = %(outcome)s, error = %(error)s
 WHERE model_name = %(model_name)s AND token = ANY (%(tokens)s) AND ended_at IS NULL
   AND (%(window_ids)s::text[] IS NULL OR window_id = ANY (%(window_ids)s))

-- read_attempts --
SELECT stage, token, holder, started_at, ended_at, outcome, error
  FROM rl.attempts
 WHERE model_name = %(model_name)s AND window_id = %(window_id)s
 ORDER BY token
