-- Windows: what is due, what is claimed, what became of it.
--
-- A row of trajectories belongs to the window
--     COALESCE("windowId", left("scenarioId", 16)) COLLATE "C"
-- (older rows carry the window id in scenarioId, alone or as a prefix). That expression, with the
-- two conditions on isTrainingData and isEvaluation, is the one that rl_trajectories_window_idx
-- indexes: write it exactly so, or the whole table is read.

-- produce_windows --
-- One row for each window that has ended, settled and has enough agents, and fresh counts for the
-- ones that have a row. Rows that come after scoring are late; a skipped window whose agents grew
-- in number opens again. Reports the windows made or reopened.
-- Hour by hour, since a probe of the index an hour is four times as fast as a scan over them all.
WITH hours AS (
    SELECT (to_char(hour, 'YYYY-MM-DD"T"HH24:00') COLLATE "C") AS window_id
      FROM generate_series(
               date_trunc('hour', (now() AT TIME ZONE 'utc')
                                  - make_interval(hours => %(lookback_hours)s)),
               (now() AT TIME ZONE 'utc') - make_interval(hours => 1, secs => %(settle_seconds)s),
               interval '1 hour') AS hour
), counted AS MATERIALIZED (
    SELECT h.window_id, c.agents, c.trajectories
      FROM hours h
     CROSS JOIN LATERAL (
          SELECT count(DISTINCT "agentId")::int AS agents, count(*)::int AS trajectories
            FROM public.trajectories
           WHERE "isTrainingData" AND NOT "isEvaluation"
             AND (COALESCE("windowId", left("scenarioId", 16)) COLLATE "C") = h.window_id
             AND NOT COALESCE("scenarioId" LIKE ANY (%(excluded)s::text[]), false)
          ) c
     WHERE c.trajectories > 0
), made AS (
    INSERT INTO rl.windows (window_id, model_name, state, agents, trajectories)
    SELECT window_id, %(model_name)s, 'due', agents, trajectories
      FROM counted
     WHERE agents >= %(min_agents)s
        ON CONFLICT DO NOTHING
    RETURNING window_id
), reopened AS (
    UPDATE rl.windows w
       SET state = 'due', reason = NULL, attempts = 0, may_share = NULL, not_before = now(),
           due_at = now(),
           agents = c.agents, trajectories = c.trajectories, late = 0
      FROM counted c
     WHERE w.model_name = %(model_name)s AND w.window_id = c.window_id
       AND w.state = 'skipped' AND c.agents > w.agents AND c.agents >= %(min_agents)s
    RETURNING w.window_id
), recounted AS (
    UPDATE rl.windows w
       SET late = c.trajectories - w.trajectories
      FROM counted c
     WHERE w.model_name = %(model_name)s AND w.window_id = c.window_id
       AND w.state IN ('scored', 'trained', 'failed')
       AND w.late <> greatest(c.trajectories - w.trajectories, 0)
       AND c.trajectories >= w.trajectories
    RETURNING w.window_id
)
SELECT window_id FROM made
UNION ALL
SELECT window_id FROM reopened
ORDER BY window_id

-- list_windows --
-- The windows of the last hours, newest first. A window that has a row is read from it; only the
-- few without one (open, settling, too few agents) are counted. The two are apart so that the
-- planner sees how few: a cost estimate for all hours would make it compile the query (jit).
WITH hours AS (
    SELECT (to_char(hour, 'YYYY-MM-DD"T"HH24:00') COLLATE "C") AS window_id,
           hour + interval '1 hour' AS ends_at
      FROM generate_series(
               date_trunc('hour', now() AT TIME ZONE 'utc')
                   - make_interval(hours => %(lookback_hours)s),
               date_trunc('hour', now() AT TIME ZONE 'utc'),
               interval '1 hour') AS hour
)
SELECT w.window_id, w.agents, w.trajectories, w.late, w.state, w.trained_step,
       COALESCE(w.reason, w.last_error) AS reason
  FROM hours h
  JOIN rl.windows w ON w.model_name = %(model_name)s AND w.window_id = h.window_id
UNION ALL
SELECT h.window_id, c.agents, c.trajectories, 0,
       CASE
           WHEN h.ends_at > now() AT TIME ZONE 'utc' THEN 'open'
           WHEN h.ends_at + make_interval(secs => %(settle_seconds)s) > now() AT TIME ZONE 'utc'
               THEN 'settling'
           WHEN c.agents < %(min_agents)s THEN 'few_agents'
           ELSE 'ready'
       END,
       NULL, NULL
  FROM hours h
 CROSS JOIN LATERAL (
      SELECT count(DISTINCT "agentId")::int AS agents, count(*)::int AS trajectories
        FROM public.trajectories
       WHERE "isTrainingData" AND NOT "isEvaluation"
         AND (COALESCE("windowId", left("scenarioId", 16)) COLLATE "C") = h.window_id
         AND NOT COALESCE("scenarioId" LIKE ANY (%(excluded)s::text[]), false)
  ) c
 WHERE NOT EXISTS (SELECT FROM rl.windows w
                    WHERE w.model_name = %(model_name)s AND w.window_id = h.window_id)
   AND c.trajectories > 0
 ORDER BY window_id DESC

-- count_window --
-- Agents and trajectories that count, of one window.
SELECT count(DISTINCT "agentId")::int AS agents, count(*)::int AS trajectories
  FROM public.trajectories
 WHERE "isTrainingData" AND NOT "isEvaluation"
   AND (COALESCE("windowId", left("scenarioId", 16)) COLLATE "C") = %(window_id)s
   AND NOT COALESCE("scenarioId" LIKE ANY (%(excluded)s::text[]), false)

-- count_excluded --
-- Why rows of one window do not count; the first reason of each. Not by the index, which holds only
-- those that count: for a person who asks.
SELECT count(*) FILTER (WHERE why = 1)::int AS not_training_data,
       count(*) FILTER (WHERE why = 2)::int AS evaluation,
       count(*) FILTER (WHERE why = 3)::int AS excluded,
       count(*)::int AS trajectories
  FROM (SELECT CASE WHEN NOT "isTrainingData" THEN 1
                    WHEN "isEvaluation" THEN 2
                    WHEN "scenarioId" LIKE ANY (%(excluded)s::text[]) THEN 3 END AS why
          FROM public.trajectories
         WHERE "windowId" = %(window_id)s
            OR ("windowId" IS NULL AND left("scenarioId", 16) = %(window_id)s)) AS rows

-- count_trajectories --
-- The planner's estimate for a large table, the count for a small one: only for a message.
SELECT CASE WHEN c.reltuples > 100000 THEN c.reltuples::bigint
            ELSE (SELECT count(*) FROM public.trajectories) END AS trajectories
  FROM pg_class c WHERE c.oid = 'public.trajectories'::regclass

-- enqueue_window --
-- Make one window due by name; nothing where it has a row.
INSERT INTO rl.windows (window_id, model_name, state, agents, trajectories)
VALUES (%(window_id)s, %(model_name)s, 'due', %(agents)s, %(trajectories)s)
ON CONFLICT DO NOTHING
RETURNING window_id

-- read_windows --
SELECT window_id, state, scoring, scorer, score_rev, attempts, batch_id, trained_step, agents, trajectories,
       late, text_bytes, may_share, reason, last_error
  FROM rl.windows
 WHERE model_name = %(model_name)s AND window_id = ANY (%(window_ids)s)
 ORDER BY window_id

-- claim_due --
-- Lease due windows that nobody holds, oldest first, and begin an attempt at each. One that failed
-- before is claimed alone, after the others: should it kill its worker again, it kills only itself.
-- Claims at the same moment pass each other's rows by (SKIP LOCKED); the lease's row decides where
-- they meet all the same.
WITH free AS (
    SELECT w.window_id, w.attempts
      FROM rl.windows w
     WHERE w.model_name = %(model_name)s AND w.state = 'due' AND w.not_before <= now()
       AND COALESCE(w.scoring, %(scoring)s) = ANY (%(scorers)s::text[])
       AND (%(only)s::text[] IS NULL OR w.window_id = ANY (%(only)s))
       AND NOT EXISTS (SELECT FROM rl.leases l
                        WHERE l.resource = 'window/' || w.model_name || '/' || w.window_id
                          AND l.expires_at > clock_timestamp())
     ORDER BY (w.attempts > 0), w.window_id
     LIMIT %(limit)s
       FOR UPDATE OF w SKIP LOCKED
), ranked AS (
    SELECT window_id, attempts, row_number() OVER (ORDER BY (attempts > 0), window_id) AS place
      FROM free
), leased AS (
    INSERT INTO rl.leases AS held (resource, holder, token, expires_at)
    SELECT 'window/' || %(model_name)s || '/' || window_id, %(holder)s,
           nextval('rl.lease_tokens'),
           clock_timestamp() + make_interval(secs => %(lease_seconds)s)
      FROM ranked
     WHERE attempts = 0 OR place = 1
     ORDER BY 1
    ON CONFLICT (resource) DO UPDATE
       SET holder = excluded.holder, token = excluded.token, expires_at = excluded.expires_at,
           acquired_at = clock_timestamp()
     WHERE held.expires_at <= clock_timestamp()
    RETURNING resource, token
)
INSERT INTO rl.attempts (model_name, window_id, token, stage, holder)
SELECT %(model_name)s, right(resource, 16), token, 'score', %(holder)s FROM leased
RETURNING window_id, token

-- windows_wait_for_judge --
-- Whether a window is due for one of these scorers, and nobody holds the model's judge.
SELECT EXISTS (SELECT FROM rl.windows w
                WHERE w.model_name = %(model_name)s AND w.state = 'due' AND w.not_before <= now()
                  AND COALESCE(w.scoring, %(scoring)s) = ANY (%(scorers)s::text[])
                  AND (%(only)s::text[] IS NULL OR w.window_id = ANY (%(only)s)))
       AND NOT EXISTS (SELECT FROM rl.leases l
                        WHERE l.resource = 'judge/' || %(model_name)s
                          AND l.expires_at > clock_timestamp()) AS found

-- select_scored --
-- What a step may take: requests of the app first, then the oldest.
SELECT window_id, state, scoring, scorer, score_rev, attempts, batch_id, trained_step, agents, trajectories,
       late, text_bytes, may_share, reason, last_error
  FROM rl.windows
 WHERE model_name = %(model_name)s AND state = 'scored' AND not_before <= now()
   AND (%(only)s::text[] IS NULL OR window_id = ANY (%(only)s))
 ORDER BY (batch_id IS NULL), (attempts > 0), window_id
 LIMIT 1000

-- mark_scored --
UPDATE rl.windows
   SET state = %(state)s, scorer = %(scorer)s, score_rev = score_rev + 1, reason = %(reason)s,
       agents = %(agents)s, trajectories = %(trajectories)s, text_bytes = %(text_bytes)s,
       funnel = %(funnel)s, attempts = 0, may_share = NULL, last_error = NULL, not_before = now(),
       claimed_by = %(holder)s, scored_at = now(),
       skipped_at = CASE WHEN %(state)s = 'skipped' THEN now() END
 WHERE model_name = %(model_name)s AND window_id = %(window_id)s
   AND state = 'due' AND score_rev = %(score_rev)s
   AND EXISTS (SELECT 1 FROM rl.leases
                WHERE resource = %(resource)s AND token = %(token)s
                  AND expires_at > clock_timestamp())

-- mark_trained --
UPDATE rl.windows w
   SET state = 'trained', trained_step = %(step)s, trained_at = now(), last_error = NULL,
       reason = NULL, claimed_by = %(holder)s, funnel = w.funnel || c.funnel
  FROM unnest(%(window_ids)s::text[], %(score_revs)s::int[], %(funnels)s::jsonb[])
       AS c (window_id, score_rev, funnel)
 WHERE w.model_name = %(model_name)s AND w.window_id = c.window_id
   AND w.state = 'scored' AND w.score_rev = c.score_rev

-- end_window --
-- A scored window that will not be trained: skipped or failed, with the reason.
UPDATE rl.windows
   SET state = %(state)s, reason = %(reason)s, last_error = %(last_error)s,
       attempts = %(attempts)s, claimed_by = %(holder)s, funnel = funnel || %(funnel)s,
       skipped_at = CASE WHEN %(state)s = 'skipped' THEN now() ELSE skipped_at END,
       failed_at = CASE WHEN %(state)s = 'failed' THEN now() ELSE failed_at END
 WHERE model_name = %(model_name)s AND window_id = %(window_id)s
   AND state = %(from_state)s AND score_rev = %(score_rev)s

-- postpone_window --
-- Try again later; the wait is kept here, since a broker's delays do not survive it.
UPDATE rl.windows
   SET attempts = %(attempts)s, last_error = %(last_error)s, claimed_by = %(holder)s,
       not_before = greatest(not_before, now() + make_interval(secs => %(wait_seconds)s))
 WHERE model_name = %(model_name)s AND window_id = %(window_id)s
   AND state = %(from_state)s AND score_rev = %(score_rev)s

-- put_back_window --
-- A scored window that lacks what only a setting or another server can bring: looked at again, or
-- scored again, after half the time that it has waited for, since each look reads all its traces.
UPDATE rl.windows
   SET state = %(state)s, last_error = %(last_error)s, claimed_by = %(holder)s,
       not_before = now() + make_interval(secs => greatest(
           %(least_seconds)s, least(extract(epoch FROM now() - due_at) / 2, %(most_seconds)s)))
 WHERE model_name = %(model_name)s AND window_id = %(window_id)s
   AND state = 'scored' AND score_rev = %(score_rev)s

-- split_windows --
-- They failed together: fewer of them may meet in the next step.
UPDATE rl.windows
   SET may_share = %(may_share)s, last_error = %(last_error)s, claimed_by = %(holder)s
 WHERE model_name = %(model_name)s AND window_id = ANY (%(window_ids)s) AND state = 'scored'

-- retry_windows --
-- By hand: as if they had just become due.
UPDATE rl.windows
   SET state = 'due', attempts = 0, may_share = NULL, reason = NULL, last_error = NULL,
       not_before = now(), due_at = now()
 WHERE model_name = %(model_name)s AND state IN ('failed', 'skipped')
   AND (%(window_ids)s::text[] IS NULL AND state = 'failed' OR window_id = ANY (%(window_ids)s))
RETURNING window_id, batch_id

-- score_otherwise --
-- By hand: due again, for another scorer. Whoever scores or trains it now is refused at the end.
UPDATE rl.windows
   SET scoring = %(scoring)s, state = 'due', score_rev = score_rev + 1, attempts = 0,
       may_share = NULL, reason = NULL, last_error = NULL, not_before = now(), due_at = now()
 WHERE model_name = %(model_name)s AND window_id = %(window_id)s AND state <> 'trained'

-- rescore_window --
-- A trace was rewritten after it was judged: the window is due again.
UPDATE rl.windows
   SET state = 'due', reason = NULL, not_before = now()
 WHERE model_name = %(model_name)s AND window_id = %(window_id)s
   AND state = 'scored' AND score_rev = %(score_rev)s

-- sweep --
-- What Postgres says is due and nobody holds: the doorbells to ring.
SELECT ARRAY(
           SELECT w.window_id FROM rl.windows w
            WHERE w.model_name = %(model_name)s AND w.state = 'due' AND w.not_before <= now()
              AND NOT EXISTS (SELECT 1 FROM rl.leases l
                               WHERE l.resource = 'window/' || w.model_name || '/' || w.window_id
                                 AND l.expires_at > clock_timestamp())
            ORDER BY w.window_id LIMIT %(limit)s
       ) AS due,
       EXISTS (SELECT 1 FROM rl.windows w
                WHERE w.model_name = %(model_name)s AND w.state = 'scored'
                  AND w.not_before <= now())
           AND NOT EXISTS (SELECT 1 FROM rl.leases l
                            WHERE l.resource = 'model/' || %(model_name)s
                              AND l.expires_at > clock_timestamp()) AS train,
       EXISTS (SELECT 1 FROM rl.heads h
                WHERE h.model_name = %(model_name)s AND h.step > h.published_step) AS publish

-- last_error --
-- Why windows that are due or scored wait, of the one that was looked at last.
SELECT last_error FROM rl.windows
 WHERE model_name = %(model_name)s AND state IN ('due', 'scored') AND last_error IS NOT NULL
 ORDER BY not_before DESC
 LIMIT 1

-- count_states --
SELECT state, count(*)::int AS windows FROM rl.windows
 WHERE model_name = %(model_name)s GROUP BY state

-- report_windows --
-- What each window gave, oldest first.
SELECT w.window_id, w.state, w.agents, w.trajectories,
       (SELECT count(*)::int FROM rl.quarantine q WHERE q.window_id = w.window_id) AS quarantined,
       avg(s.score) AS mean_score,
       max(s.score) - min(s.score) AS reward_spread,
       w.trained_step AS step,
       (t.metrics ->> 'loss')::float8 AS loss,
       extract(epoch FROM t.committed_at - t.started_at)::float8 AS seconds,
       COALESCE(w.reason, w.last_error) AS reason
  FROM rl.windows w
  LEFT JOIN rl.scores s ON s.model_name = w.model_name AND s.window_id = w.window_id
                       AND s.scorer = w.scorer
  LEFT JOIN rl.steps t ON t.model_name = w.model_name AND t.step = w.trained_step
 WHERE w.model_name = %(model_name)s
 GROUP BY w.window_id, w.model_name, t.model_name, t.step
 ORDER BY w.window_id

-- window_story --
-- All there is to say about one window, but its attempts.
SELECT w.window_id, w.model_name, w.state, COALESCE(w.reason, w.last_error) AS reason, w.attempts,
       w.agents, w.trajectories, w.late, w.scoring, w.scorer, w.batch_id,
       w.due_at, w.scored_at, w.trained_at, w.skipped_at, w.failed_at,
       CASE WHEN w.not_before > now() AND w.state IN ('due', 'scored') THEN w.not_before END
           AS waits_until,
       w.may_share,
       (SELECT l.holder FROM rl.leases l
         WHERE l.resource = 'window/' || w.model_name || '/' || w.window_id
           AND l.expires_at > clock_timestamp()) AS held_by,
       w.trained_step, t.version, t.checkpoint,
       (SELECT jsonb_build_object('trajectories', count(*), 'mean', round(avg(s.score)::numeric, 4),
                                  'lowest', min(s.score), 'highest', max(s.score))
          FROM rl.scores s
         WHERE s.model_name = w.model_name AND s.window_id = w.window_id AND s.scorer = w.scorer
        HAVING count(*) > 0) AS scores,
       (SELECT jsonb_object_agg(reason, n)
          FROM (SELECT q.reason, count(*) AS n FROM rl.quarantine q
                 WHERE q.window_id = w.window_id GROUP BY q.reason) AS by_reason) AS set_aside,
       (SELECT jsonb_build_object('answers', count(*), 'refused', count(j.fault),
                                  'tokens', sum(j.prompt_tokens + j.completion_tokens),
                                  'usd', sum(j.usd))
          FROM rl.judgments j
         WHERE j.model_name = w.model_name AND j.window_id = w.window_id
        HAVING count(*) > 0) AS judge,
       w.funnel
  FROM rl.windows w
  LEFT JOIN rl.steps t ON t.model_name = w.model_name AND t.step = w.trained_step
 WHERE w.model_name = %(model_name)s AND w.window_id = %(window_id)s
