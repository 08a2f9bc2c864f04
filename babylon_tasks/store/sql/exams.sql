-- Exams: one row for each step that was examined, or is being.

-- awaits_exam --
-- The step that trains next, where it is the lineage's own, does not serve, and has no verdict.
SELECT h.step, h.published_step
  FROM rl.heads h
  JOIN rl.steps s ON s.model_name = h.model_name AND s.step = h.step
 WHERE h.model_name = %(model_name)s AND h.step <> h.published_step
   AND NOT EXISTS (SELECT FROM rl.exams e
                    WHERE e.model_name = h.model_name AND e.step = h.step AND e.state <> 'open')

-- open_exam --
INSERT INTO rl.exams AS e (model_name, step, served_step, state, attempts, token, holder, opened_at)
VALUES (%(model_name)s, %(step)s, %(served_step)s, 'open', 1, %(token)s, %(holder)s,
        rl.clock_timestamp())
ON CONFLICT (model_name, step) DO UPDATE
   SET served_step = excluded.served_step, attempts = e.attempts + 1, token = excluded.token,
       holder = excluded.holder, opened_at = excluded.opened_at
 WHERE e.state = 'open'
RETURNING attempts

-- give_back_exam --
-- It was not the step's fault that it did not end. Another worker may have begun it again since.
UPDATE rl.exams SET attempts = attempts - 1
 WHERE model_name = %(model_name)s AND step = %(step)s AND token >= %(token)s AND state = 'open'
   AND attempts > 0

-- decide_exam --
UPDATE rl.exams
   SET state = %(state)s, reason = %(reason)s, window_ids = %(window_ids)s,
       trajectories = %(trajectories)s, metrics = %(figures)s, decided_at = rl.clock_timestamp(),
       seconds = extract(epoch FROM rl.clock_timestamp() - opened_at)
 WHERE model_name = %(model_name)s AND step = %(step)s AND token = %(token)s AND state = 'open'

-- exam_of_token --
-- Whether the exam under this token was decided (asked after a lost connection).
SELECT step FROM rl.exams
 WHERE model_name = %(model_name)s AND token = %(token)s AND state <> 'open'

-- read_exams --
-- Of the named steps, or (steps: NULL) of all; newest first.
SELECT step, served_step, state, reason, window_ids, trajectories, metrics AS figures, attempts,
       opened_at, decided_at, seconds
  FROM rl.exams
 WHERE model_name = %(model_name)s AND (%(steps)s::int[] IS NULL OR step = ANY (%(steps)s))
 ORDER BY step DESC
 LIMIT %(limit)s

-- failures_in_a_row --
SELECT rl.failed_exams(%(model_name)s) AS failures

-- rolled_back --
-- The newest experiment that ended badly for a step on the way to the head: where the head goes back.
-- It does so once. If a person has moved the head to the step again since, they know.
-- At W&B a model goes on from its own newest step, so there the head stays.
SELECT x.step, x.served_step, x.reason
  FROM rl.experiments x
  JOIN rl.heads h ON h.model_name = x.model_name
  JOIN rl.steps s ON s.model_name = x.model_name AND s.step = x.step AND s.given_up_at IS NULL
                 AND s.trainer <> 'serverless'
 WHERE x.model_name = %(model_name)s AND x.state = 'rolled_back' AND x.step > h.published_step
   AND NOT EXISTS (SELECT FROM rl.resets r
                    WHERE r.model_name = x.model_name AND r.at >= x.ended_at AND r.to_step < x.step)
 ORDER BY x.id DESC
 LIMIT 1

-- exams_to_log --
-- Decided and not on Weights & Biases yet, in the order of the verdicts.
SELECT step, served_step, state, reason, window_ids, trajectories, metrics AS figures, attempts,
       opened_at, decided_at, seconds
  FROM rl.exams
 WHERE model_name = %(model_name)s AND state <> 'open' AND logged_at IS NULL
 ORDER BY decided_at LIMIT %(limit)s

-- exams_logged --
UPDATE rl.exams SET logged_at = rl.now()
 WHERE model_name = %(model_name)s AND step = ANY (%(steps)s::int[])

-- tell_app --
-- The app's row of the step: all figures, and the two for which it has columns.
UPDATE public.trained_models m
   SET "evalMetrics" = %(figures)s, accuracy = %(accuracy)s, "benchmarkScore" = %(benchmark)s,
       "updatedAt" = rl.now() AT TIME ZONE 'utc'
  FROM rl.steps s
 WHERE s.model_name = %(model_name)s AND s.step = %(step)s
   AND m."modelId" = s.model_name || '-' || s.version
