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

-- recent_attempts --
-- The newest attempts of a machine at a stage that say how it fares, each of one window alone.
SELECT a.model_name, a.window_id, a.token, a.holder, a.outcome, a.error
  FROM rl.attempts a
 WHERE a.stage = %(stage)s AND starts_with(a.holder, %(machine)s)
   AND a.started_at > rl.now() - interval '7 days'
   AND (a.outcome IN ('done', 'skipped')
        OR (a.outcome = 'error' OR a.outcome = 'given_back' AND starts_with(a.error, %(at_fault)s))
           AND NOT EXISTS (SELECT FROM rl.attempts b
                            WHERE b.model_name = a.model_name AND b.token = a.token
                              AND b.window_id <> a.window_id))
 ORDER BY a.ended_at DESC, a.token DESC
 LIMIT 200

-- machines_at_fault --
-- The newest word of each machine at each stage, where that is that it is at fault.
SELECT machine, stage, ended_at, error
  FROM (SELECT DISTINCT ON (machine, stage) machine, stage, outcome, ended_at, error
          FROM (SELECT regexp_replace(holder, ':[0-9]+$', '') AS machine, stage, outcome, ended_at,
                       error
                  FROM rl.attempts
                 WHERE started_at > rl.now() - interval '7 days'
                   AND (outcome IN ('done', 'skipped')
                        OR outcome = 'given_back' AND starts_with(error, %(at_fault)s))) AS words
         ORDER BY machine, stage, ended_at DESC) AS last
 WHERE outcome = 'given_back'
 ORDER BY machine, stage

-- read_attempts --
SELECT stage, token, holder, started_at, ended_at, outcome, error
  FROM rl.attempts
 WHERE model_name = %(model_name)s AND window_id = %(window_id)s
 ORDER BY token
