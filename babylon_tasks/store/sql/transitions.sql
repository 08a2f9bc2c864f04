-- Every statement that claims or changes a row of rl.windows; no other file has one.
--
-- A window goes due → scored → trained, or ends skipped or failed. Where from and to are the same,
-- something else about it changes. Each entry names from → to, the statement, by whom, and what else
-- the row must match (score_rev: as it was read; lease: still held). `resets`: as in a new row;
-- `sets`: to another value. tests/integration/test_window_transitions.py reads this table.
--
-- (none) → due                        produce_windows   producer
--     sets    agents, trajectories
-- skipped → due                       produce_windows   producer
--     resets  reason, attempts, may_share, not_before, due_at, late
--     sets    agents, trajectories
-- scored, trained, failed → same      produce_windows   producer
--     sets    late
-- (none) → due                        enqueue_window    by hand, request
--     sets    agents, trajectories
-- (none) → trained                    inherit_windows   by hand
--     sets    scorer, score_rev, trained_step, agents, trajectories, late, text_bytes, funnel,
--             by_version, not_before, due_at, scored_at, trained_at
-- due, scored → same                  attach_request    request
--     sets    batch_id
-- due → same                          claim_due         scorer
-- due → scored                        mark_scored       scorer     score_rev, lease
--     resets  reason, attempts, may_share, last_error, not_before, skipped_at
--     sets    scorer, score_rev, agents, trajectories, text_bytes, funnel, by_version, claimed_by,
--             scored_at
-- due → skipped                       mark_scored       scorer     score_rev, lease
--     resets  attempts, may_share, last_error, not_before
--     sets    scorer, score_rev, reason, agents, trajectories, text_bytes, funnel, by_version,
--             claimed_by, scored_at, skipped_at
-- scored → trained                    mark_trained      trainer    score_rev
--     resets  reason, last_error
--     sets    trained_step, trained_at, funnel, claimed_by
-- scored → due                        rescore_window    trainer    score_rev
--     resets  reason, not_before
-- scored → due, same                  put_back_window   trainer    score_rev
--     sets    last_error, not_before, claimed_by
-- scored → skipped                    end_window        trainer    score_rev
--     resets  last_error
--     sets    reason, skipped_at, funnel, claimed_by
-- due → failed                        end_window        scorer     score_rev
--     resets  reason
--     sets    last_error, attempts, failed_at, claimed_by
-- scored → failed                     end_window        trainer    score_rev
--     resets  reason
--     sets    last_error, attempts, failed_at, claimed_by
-- due → same                          postpone_window   scorer     score_rev
--     sets    attempts, last_error, not_before, claimed_by
-- scored → same                       postpone_window   trainer    score_rev
--     sets    attempts, last_error, not_before, claimed_by
-- due, scored → same                  end_waits         sweep
--     resets  not_before
-- scored → same                       split_windows     trainer
--     sets    may_share, last_error, claimed_by
-- due → same                          reap_scores       scorer
--     sets    attempts, last_error
-- due → failed                        reap_scores       scorer
--     sets    attempts, last_error, failed_at
-- scored → same                       reap_steps        trainer
--     sets    may_share, attempts, last_error
-- scored → failed                     reap_steps        trainer
--     sets    may_share, attempts, last_error, failed_at
-- due → same                          take_back_attempts  scorer
--     sets    attempts, last_error, not_before
-- failed → due                        take_back_attempts  scorer
--     sets    attempts, last_error, not_before
-- scored → same                       take_back_attempts  trainer
--     resets  may_share
--     sets    attempts, last_error, not_before
-- failed → scored                     take_back_attempts  trainer
--     resets  may_share
--     sets    attempts, last_error, not_before
-- failed, skipped → due               retry_windows     by hand
--     resets  attempts, may_share, reason, last_error, not_before, due_at
-- trained → due                       retry_step        by hand    given_up
--     resets  attempts, may_share, reason, last_error, not_before, due_at, batch_id, trained_step,
--             trained_at
-- due, scored, skipped, failed → trained  restore_trained   by hand
--     resets  attempts, may_share, reason, last_error, not_before
--     sets    trained_step, trained_at, claimed_by
-- trained → same                      restore_trained   by hand
--     resets  attempts, may_share, reason, last_error, not_before
--     sets    trained_step, trained_at, claimed_by
-- due, scored, skipped, failed → due  score_otherwise   by hand
--     resets  attempts, may_share, reason, last_error, not_before, due_at
--     sets    scoring, score_rev
--
-- A row of trajectories belongs to a window by the expression that windows.sql explains.

-- produce_windows --
-- Makes a row for each lineage and each window that has ended, settled and has enough agents; updates
-- the counts of existing rows. Trajectories that come after scoring are late; a skipped window that
-- got more agents becomes due again. Returns the new and the reopened windows.
-- The hours are counted once for all lineages that count the same rows. Hour by hour: one probe of
-- the index for each hour is four times as fast as a scan over all hours.
WITH wanted AS (
    SELECT * FROM unnest(%(model_names)s::text[], %(min_agents)s::int[],
                         %(lookback_hours)s::int[], %(settle_seconds)s::int[])
           AS w (model_name, min_agents, lookback_hours, settle_seconds)
), hours AS (
    SELECT hour, (to_char(hour, 'YYYY-MM-DD"T"HH24:00') COLLATE "C") AS window_id
      FROM generate_series(
               date_trunc('hour', (rl.now() AT TIME ZONE 'utc')
                   - make_interval(hours => (SELECT max(lookback_hours) FROM wanted))),
               (rl.now() AT TIME ZONE 'utc') - make_interval(
                   hours => 1, secs => (SELECT min(settle_seconds) FROM wanted)),
               interval '1 hour') AS hour
), counted AS MATERIALIZED (
    SELECT h.hour, h.window_id, c.agents, c.trajectories
      FROM hours h
     CROSS JOIN LATERAL (
          SELECT count(DISTINCT "agentId")::int AS agents, count(*)::int AS trajectories
            FROM public.trajectories
           WHERE "isTrainingData" AND NOT "isEvaluation"
             AND (COALESCE("windowId", left("scenarioId", 16)) COLLATE "C") = h.window_id
             AND NOT COALESCE("scenarioId" LIKE ANY (%(excluded)s::text[]), false)
             AND (%(agents)s::text[] IS NULL OR "agentId" LIKE ANY (%(agents)s))
          ) c
     WHERE c.trajectories > 0
), seen AS (
    SELECT w.model_name, w.min_agents, c.window_id, c.agents, c.trajectories
      FROM counted c
      JOIN wanted w
        ON c.hour >= date_trunc('hour', (rl.now() AT TIME ZONE 'utc')
                                        - make_interval(hours => w.lookback_hours))
       AND c.hour <= (rl.now() AT TIME ZONE 'utc')
                     - make_interval(hours => 1, secs => w.settle_seconds)
), made AS (
    INSERT INTO rl.windows (window_id, model_name, state, agents, trajectories, not_before, due_at)
    SELECT s.window_id, s.model_name, 'due', s.agents, s.trajectories, rl.now(), rl.now()
      FROM seen s
     WHERE s.agents >= s.min_agents
       AND NOT EXISTS (SELECT FROM rl.windows w
                        WHERE w.model_name = s.model_name AND w.window_id = s.window_id)
        ON CONFLICT DO NOTHING
    RETURNING model_name, window_id
), reopened AS (
    UPDATE rl.windows w
       SET state = 'due', reason = NULL, attempts = 0, may_share = NULL, not_before = rl.now(),
           due_at = rl.now(), agents = s.agents, trajectories = s.trajectories, late = 0
      FROM seen s
     WHERE w.model_name = s.model_name AND w.window_id = s.window_id
       AND w.state = 'skipped' AND s.agents > w.agents AND s.agents >= s.min_agents
    RETURNING w.model_name, w.window_id
), recounted AS (
    UPDATE rl.windows w
       SET late = s.trajectories - w.trajectories
      FROM seen s
     WHERE w.model_name = s.model_name AND w.window_id = s.window_id
       AND w.state IN ('scored', 'trained', 'failed')
       AND w.late <> greatest(s.trajectories - w.trajectories, 0)
       AND s.trajectories >= w.trajectories
    RETURNING w.window_id
)
SELECT model_name, window_id FROM made
UNION ALL
SELECT model_name, window_id FROM reopened
ORDER BY window_id, model_name

-- enqueue_window --
-- Make one window due by its id; do nothing if it has a row.
INSERT INTO rl.windows (window_id, model_name, state, agents, trajectories, not_before, due_at)
VALUES (%(window_id)s, %(model_name)s, 'due', %(agents)s, %(trajectories)s, rl.now(), rl.now())
ON CONFLICT DO NOTHING
RETURNING window_id

-- inherit_windows --
-- What trained the ancestors on the way to the forked step must not train the fork again.
WITH RECURSIVE path AS (
    SELECT s.model_name, s.step, COALESCE(s.parent_step, s.step - 1) AS parent, s.window_ids
      FROM rl.steps s
     WHERE s.model_name = rl.lineage_of_step(%(forked_from)s, %(forked_step)s)
       AND s.step = %(forked_step)s
    UNION ALL
    SELECT s.model_name, s.step, COALESCE(s.parent_step, s.step - 1), s.window_ids
      FROM path p
      JOIN rl.steps s ON s.model_name = rl.lineage_of_step(p.model_name, p.parent)
                     AND s.step = p.parent
)
INSERT INTO rl.windows (window_id, model_name, state, scorer, score_rev, trained_step, agents,
                        trajectories, late, text_bytes, funnel, by_version, not_before, due_at,
                        scored_at, trained_at)
SELECT w.window_id, %(name)s, 'trained', w.scorer, w.score_rev, p.step, w.agents, w.trajectories,
       w.late, w.text_bytes, w.funnel, w.by_version, w.not_before, w.due_at, w.scored_at,
       COALESCE(w.trained_at, rl.now())
  FROM path p
 CROSS JOIN LATERAL unnest(p.window_ids) AS trained (window_id)
  JOIN rl.windows w ON w.model_name = p.model_name AND w.window_id = trained.window_id
ON CONFLICT DO NOTHING

-- attach_request --
-- The window's first request; the window trains alone from now on.
UPDATE rl.windows SET batch_id = %(batch_id)s
 WHERE model_name = %(model_name)s AND window_id = %(window_id)s
   AND state IN ('due', 'scored') AND batch_id IS NULL

-- claim_due --
-- Lease due windows that nobody holds, oldest first, and begin an attempt at each. A window that
-- failed before is claimed alone, and only if there is no other: if it kills its worker again, no
-- other window is hit. Simultaneous claims skip each other's rows (SKIP LOCKED); if two still choose
-- the same window, the lease's row decides.
WITH fresh AS (
    SELECT w.window_id
      FROM rl.windows w
     WHERE w.model_name = %(model_name)s AND w.state = 'due' AND w.not_before <= rl.now()
       AND w.attempts = 0
       AND COALESCE(w.scoring, %(scoring)s) = ANY (%(scorers)s::text[])
       AND (%(only)s::text[] IS NULL OR w.window_id = ANY (%(only)s))
       AND NOT EXISTS (SELECT FROM rl.leases l
                        WHERE l.resource = 'window/' || w.model_name || '/'
                                           || w.window_id COLLATE "default"
                          AND l.expires_at > rl.clock_timestamp())
     ORDER BY w.window_id
     LIMIT %(limit)s
       FOR UPDATE OF w SKIP LOCKED
), failed AS (
    SELECT w.window_id
      FROM rl.windows w
     WHERE NOT EXISTS (SELECT FROM fresh)
       AND w.model_name = %(model_name)s AND w.state = 'due' AND w.not_before <= rl.now()
       AND w.attempts > 0
       AND COALESCE(w.scoring, %(scoring)s) = ANY (%(scorers)s::text[])
       AND (%(only)s::text[] IS NULL OR w.window_id = ANY (%(only)s))
       AND NOT EXISTS (SELECT FROM rl.leases l
                        WHERE l.resource = 'window/' || w.model_name || '/'
                                           || w.window_id COLLATE "default"
                          AND l.expires_at > rl.clock_timestamp())
     ORDER BY w.window_id
     LIMIT 1
       FOR UPDATE OF w SKIP LOCKED
), leased AS (
    INSERT INTO rl.leases AS held (resource, holder, token, expires_at, acquired_at)
    SELECT 'window/' || %(model_name)s || '/' || window_id, %(holder)s,
           nextval('rl.lease_tokens'),
           rl.clock_timestamp() + make_interval(secs => %(lease_seconds)s), rl.clock_timestamp()
      FROM (SELECT window_id FROM fresh UNION ALL SELECT window_id FROM failed) AS free
     ORDER BY 1
    ON CONFLICT (resource) DO UPDATE
       SET holder = excluded.holder, token = excluded.token, expires_at = excluded.expires_at,
           acquired_at = excluded.acquired_at
     WHERE held.expires_at <= rl.clock_timestamp()
    RETURNING resource, token
)
INSERT INTO rl.attempts (model_name, window_id, token, stage, holder, started_at)
SELECT %(model_name)s, right(resource, 16), token, 'score', %(holder)s, rl.clock_timestamp()
  FROM leased
RETURNING window_id, token

-- mark_scored --
-- A window that trainers gave back more than twice, since its traces are not those that were scored,
-- waits as `rescore_window` says.
UPDATE rl.windows w
   SET state = %(state)s, scorer = %(scorer)s, score_rev = score_rev + 1, reason = %(reason)s,
       agents = %(agents)s, trajectories = %(trajectories)s, text_bytes = %(text_bytes)s,
       funnel = %(funnel)s, by_version = %(by_version)s, attempts = 0, may_share = NULL, last_error = NULL,
       not_before = rl.now() + COALESCE(
           (SELECT CASE WHEN count(*) > 2 THEN least((rl.now() - w.due_at) / 2, interval '1 day') END
              FROM rl.attempts a
             WHERE a.model_name = w.model_name AND a.window_id = w.window_id
               AND a.started_at >= w.due_at AND a.error = %(rewritten)s), interval '0'),
       claimed_by = %(holder)s, scored_at = rl.now(),
       skipped_at = CASE WHEN %(state)s = 'skipped' THEN rl.now() END
 WHERE model_name = %(model_name)s AND window_id = %(window_id)s
   AND state = 'due' AND score_rev = %(score_rev)s
   AND EXISTS (SELECT 1 FROM rl.leases
                WHERE resource = %(resource)s AND token = %(token)s
                  AND expires_at > rl.clock_timestamp())

-- mark_trained --
UPDATE rl.windows w
   SET state = 'trained', trained_step = %(step)s, trained_at = rl.now(), last_error = NULL,
       reason = NULL, claimed_by = %(holder)s, funnel = w.funnel || c.funnel
  FROM unnest(%(window_ids)s::text[], %(score_revs)s::int[], %(funnels)s::jsonb[])
       AS c (window_id, score_rev, funnel)
 WHERE w.model_name = %(model_name)s AND w.window_id = c.window_id
   AND w.state = 'scored' AND w.score_rev = c.score_rev

-- rescore_window --
-- A trace was rewritten after it was judged: the window is due again. From the third time on it waits
-- half as long as it has waited so far: a scorer and a trainer of two releases may read it otherwise.
UPDATE rl.windows w
   SET state = 'due', reason = NULL,
       not_before = rl.now() + COALESCE(
           (SELECT CASE WHEN count(*) > 2 THEN least((rl.now() - w.due_at) / 2, interval '1 day') END
              FROM rl.attempts a
             WHERE a.model_name = w.model_name AND a.window_id = w.window_id
               AND a.started_at >= w.due_at AND a.error = %(rewritten)s), interval '0')
 WHERE model_name = %(model_name)s AND window_id = %(window_id)s
   AND state = 'scored' AND score_rev = %(score_rev)s

-- put_back_window --
-- A scored window that needs another setting or another server: it is tried or scored again after
-- half the time that it has waited so far, since each attempt reads all its traces.
UPDATE rl.windows
   SET state = %(state)s, last_error = %(last_error)s, claimed_by = %(holder)s,
       not_before = rl.now() + make_interval(secs => greatest(
           %(least_seconds)s, least(extract(epoch FROM rl.now() - due_at) / 2, %(most_seconds)s)))
 WHERE model_name = %(model_name)s AND window_id = %(window_id)s
   AND state = 'scored' AND score_rev = %(score_rev)s

-- end_window --
-- A window that ends skipped or failed, with the reason.
UPDATE rl.windows
   SET state = %(state)s, reason = %(reason)s, last_error = %(last_error)s,
       attempts = %(attempts)s, claimed_by = %(holder)s, funnel = funnel || %(funnel)s,
       skipped_at = CASE WHEN %(state)s = 'skipped' THEN rl.now() ELSE skipped_at END,
       failed_at = CASE WHEN %(state)s = 'failed' THEN rl.now() ELSE failed_at END
 WHERE model_name = %(model_name)s AND window_id = %(window_id)s
   AND state = %(from_state)s AND score_rev = %(score_rev)s

-- postpone_window --
-- Try again later; the wait is stored here, since delays in the broker die with it.
UPDATE rl.windows
   SET attempts = %(attempts)s, last_error = %(last_error)s, claimed_by = %(holder)s,
       not_before = greatest(not_before, rl.now() + make_interval(secs => %(wait_seconds)s))
 WHERE model_name = %(model_name)s AND window_id = %(window_id)s
   AND state = %(from_state)s AND score_rev = %(score_rev)s

-- end_waits --
-- A wait that began in the future ends: Postgres' clock went back. The attempt before it, or the row's
-- own time, says when it began.
UPDATE rl.windows w
   SET not_before = rl.now()
 WHERE w.state IN ('due', 'scored') AND w.not_before > rl.now() + interval '1 minute'
   AND (w.due_at > rl.now() + interval '1 minute' OR w.scored_at > rl.now() + interval '1 minute'
        OR EXISTS (SELECT FROM rl.attempts a
                    WHERE a.model_name = w.model_name AND a.window_id = w.window_id
                      AND a.started_at > rl.now() + interval '1 minute'))

-- split_windows --
-- These windows failed together: fewer of them may share the next step.
UPDATE rl.windows
   SET may_share = %(may_share)s, last_error = %(last_error)s, claimed_by = %(holder)s
 WHERE model_name = %(model_name)s AND window_id = ANY (%(window_ids)s) AND state = 'scored'

-- reap_scores --
-- Several windows are claimed at once, and any of them may have killed the worker. So after the first
-- such end a window is only claimed alone; from the second on an attempt counts.
WITH lost AS (
    UPDATE rl.attempts a
       SET ended_at = rl.clock_timestamp(), outcome = 'lost',
           error = a.holder || ' died, or hung until its lease ran out'
     WHERE a.model_name = %(model_name)s AND a.stage = 'score' AND a.ended_at IS NULL
       AND NOT EXISTS (SELECT FROM rl.leases l
                        WHERE l.resource = 'window/' || a.model_name || '/'
                                           || a.window_id COLLATE "default"
                          AND l.token = a.token AND l.expires_at > rl.clock_timestamp())
    RETURNING a.window_id, a.error
)
UPDATE rl.windows w
   SET attempts = w.attempts + 1, last_error = lost.error,
       state = CASE WHEN w.attempts > 0 AND w.attempts + 1 >= %(max_attempts)s
                    THEN 'failed' ELSE w.state END,
       failed_at = CASE WHEN w.attempts > 0 AND w.attempts + 1 >= %(max_attempts)s
                        THEN rl.now() ELSE w.failed_at END
  FROM lost
 WHERE w.model_name = %(model_name)s AND w.window_id = lost.window_id AND w.state = 'due'
   AND w.window_id = ANY (ARRAY(SELECT window_id FROM lost))  -- else, without statistics, all are read
RETURNING w.window_id, w.state, w.batch_id, w.last_error

-- reap_steps --
-- For the holder of the model's lease: no other worker can commit its step any more. Windows that
-- were together are tried again by halves; for a window that was alone an attempt counts. If a job
-- at W&B was open, the next attempt continues it with the same windows, and no attempt counts for
-- them; it does for windows that were tried while an older job was open.
WITH lost AS (
    UPDATE rl.attempts a
       SET ended_at = rl.clock_timestamp(), outcome = 'lost',
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
                        THEN rl.now() ELSE w.failed_at END
  FROM counted c
 WHERE w.model_name = %(model_name)s AND w.window_id = c.window_id AND w.state = 'scored'
   AND w.window_id = ANY (ARRAY(SELECT window_id FROM counted))  -- as above
RETURNING w.window_id, w.state, w.batch_id, w.last_error

-- take_back_attempts --
-- Attempts that count no more: their worker lives, and Postgres was away from it (they stay `lost`); or
-- the machine is at fault, not the windows (`error`, which is `given_back` then). A window that failed by them goes back to its state
-- before. What a window was tried with counts as in reap_steps.
WITH taken AS (
    UPDATE rl.attempts
       SET outcome = CASE outcome WHEN 'error' THEN 'given_back' ELSE outcome END,
           error = %(error)s
     WHERE model_name = %(model_name)s AND token = ANY (%(tokens)s) AND outcome = %(outcome)s
       AND error IS DISTINCT FROM %(error)s  -- once
    RETURNING window_id, stage, token
), alone AS (
    SELECT window_id, stage, count(*) OVER (PARTITION BY token) = 1 AS counted FROM taken
), windows AS (
    SELECT window_id, stage, (count(*) FILTER (WHERE counted))::int AS attempts
      FROM alone GROUP BY window_id, stage
)
UPDATE rl.windows w
   SET attempts = greatest(w.attempts - t.attempts, 0), last_error = %(error)s,
       not_before = greatest(w.not_before, rl.now() + make_interval(secs => %(wait_seconds)s)),
       may_share = CASE WHEN t.stage = 'score' THEN w.may_share END,
       state = CASE t.stage WHEN 'score' THEN 'due' ELSE 'scored' END
  FROM windows t
 WHERE w.model_name = %(model_name)s AND w.window_id = t.window_id
   AND w.state IN ('failed', CASE t.stage WHEN 'score' THEN 'due' ELSE 'scored' END)
   AND w.window_id = ANY (ARRAY(SELECT window_id FROM windows))  -- as above
RETURNING w.batch_id

-- retry_windows --
-- By hand: the windows become due as if they were new.
UPDATE rl.windows
   SET state = 'due', attempts = 0, may_share = NULL, reason = NULL, last_error = NULL,
       not_before = rl.now(), due_at = rl.now()
 WHERE model_name = %(model_name)s AND state IN ('failed', 'skipped')
   AND (%(window_ids)s::text[] IS NULL AND state = 'failed' OR window_id = ANY (%(window_ids)s))
RETURNING window_id, batch_id

-- retry_step --
-- By hand: the windows of a step that was given up become due for the new branch. A window that a
-- step on the way to the head trained as well has that one's number.
UPDATE rl.windows w
   SET state = 'due', attempts = 0, may_share = NULL, reason = NULL, last_error = NULL,
       batch_id = NULL, trained_step = NULL, trained_at = NULL, not_before = rl.now(),
       due_at = rl.now()
 WHERE w.model_name = %(model_name)s AND w.state = 'trained' AND w.trained_step = %(step)s
   AND EXISTS (SELECT FROM rl.steps s
                WHERE s.model_name = w.model_name AND s.step = w.trained_step
                  AND s.given_up_at IS NOT NULL)
RETURNING window_id

-- restore_trained --
-- The head was moved: what trained on the way to it is trained, whatever became of it since, and
-- names that step. So it trains once on that way.
UPDATE rl.windows w
   SET state = 'trained', trained_step = t.step, trained_at = t.committed_at, attempts = 0,
       may_share = NULL, reason = NULL, last_error = NULL, not_before = rl.now(),
       claimed_by = %(holder)s
  FROM (SELECT s.step, s.committed_at, unnest(s.window_ids) AS window_id
          FROM rl.steps s
         WHERE s.model_name = %(model_name)s AND s.given_up_at IS NULL) t
 WHERE w.model_name = %(model_name)s AND w.window_id = t.window_id
   AND (w.state <> 'trained' OR w.trained_step IS DISTINCT FROM t.step)
RETURNING w.window_id, w.batch_id

-- score_otherwise --
-- By hand: due again, for another scorer. A worker that scores or trains it now fails to commit.
UPDATE rl.windows
   SET scoring = %(scoring)s, state = 'due', score_rev = score_rev + 1, attempts = 0,
       may_share = NULL, reason = NULL, last_error = NULL, not_before = rl.now(), due_at = rl.now()
 WHERE model_name = %(model_name)s AND window_id = %(window_id)s AND state <> 'trained'
