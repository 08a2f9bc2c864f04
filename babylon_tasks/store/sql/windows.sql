-- Windows: queries that only read them; transitions.sql has those that change them.
--
-- A row of trajectories belongs to the window
--     COALESCE("windowId", left("scenarioId", 16)) COLLATE "C"
-- (older rows carry the window id in scenarioId, alone or as a prefix). That expression, with the
-- two conditions on isTrainingData and isEvaluation, is the one that rl_trajectories_window_idx
-- indexes: write it exactly so, or the whole table is read.
--
-- A row of rl.quarantine without a lineage is of release 0.1.0: migration 012 says whose it is.

-- list_windows --
-- The windows of the last hours, newest first. The counts of a window with a row are read from it;
-- only the few windows without one (open, settling, too few agents) are counted. These are separate
-- queries so that the planner sees how few: an estimate for all hours would make it use jit.
WITH hours AS (
    SELECT (to_char(hour, 'YYYY-MM-DD"T"HH24:00') COLLATE "C") AS window_id,
           hour + interval '1 hour' AS ends_at
      FROM generate_series(
               date_trunc('hour', rl.now() AT TIME ZONE 'utc')
                   - make_interval(hours => %(lookback_hours)s),
               date_trunc('hour', rl.now() AT TIME ZONE 'utc'),
               interval '1 hour') AS hour
)
SELECT w.window_id, w.agents, w.trajectories, w.late, w.state, w.trained_step,
       CASE WHEN w.state = 'trained' AND s.given_up_at IS NOT NULL
            THEN 'step ' || s.step || ' was given up'
            ELSE COALESCE(w.reason, w.last_error) END AS reason
  FROM hours h
  JOIN rl.windows w ON w.model_name = %(model_name)s AND w.window_id = h.window_id
  LEFT JOIN rl.steps s ON s.model_name = w.model_name AND s.step = w.trained_step
UNION ALL
SELECT h.window_id, c.agents, c.trajectories, 0,
       CASE
           WHEN h.ends_at > rl.now() AT TIME ZONE 'utc' THEN 'open'
           WHEN h.ends_at + make_interval(secs => %(settle_seconds)s) > rl.now() AT TIME ZONE 'utc'
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
         AND (%(agents)s::text[] IS NULL OR "agentId" LIKE ANY (%(agents)s))
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
   AND (%(agents)s::text[] IS NULL OR "agentId" LIKE ANY (%(agents)s))

-- count_excluded --
-- How many rows of one window do not count, each by its first reason. The index cannot help, since it
-- holds only rows that count; but only people ask for this.
SELECT count(*) FILTER (WHERE why = 1)::int AS not_training_data,
       count(*) FILTER (WHERE why = 2)::int AS evaluation,
       count(*) FILTER (WHERE why = 3)::int AS excluded,
       count(*) FILTER (WHERE why = 4)::int AS other_agents,
       count(*)::int AS trajectories
  FROM (SELECT CASE WHEN NOT "isTrainingData" THEN 1
                    WHEN "isEvaluation" THEN 2
                    WHEN "scenarioId" LIKE ANY (%(excluded)s::text[]) THEN 3
                    WHEN "agentId" NOT LIKE ALL (%(agents)s::text[]) THEN 4 END AS why
          FROM public.trajectories
         WHERE "windowId" = %(window_id)s
            OR ("windowId" IS NULL AND left("scenarioId", 16) = %(window_id)s)) AS rows

-- count_trajectories --
-- The planner's estimate for a large table, the count for a small one; it is only for a message.
SELECT CASE WHEN c.reltuples > 100000 THEN c.reltuples::bigint
            ELSE (SELECT count(*) FROM public.trajectories) END AS trajectories
  FROM pg_class c WHERE c.oid = 'public.trajectories'::regclass

-- read_windows --
SELECT window_id, state, scoring, scorer, score_rev, attempts, batch_id, trained_step, agents, trajectories,
       late, text_bytes, may_share, reason, last_error
  FROM rl.windows
 WHERE model_name = %(model_name)s AND window_id = ANY (%(window_ids)s)
 ORDER BY window_id

-- newest_scored --
-- The newest windows that have scores to train on, oldest first.
SELECT * FROM (
    SELECT window_id, state, scoring, scorer, score_rev, attempts, batch_id, trained_step, agents, trajectories,
           late, text_bytes, may_share, reason, last_error
      FROM rl.windows
     WHERE model_name = %(model_name)s AND state IN ('scored', 'trained')
     ORDER BY window_id DESC
     LIMIT %(limit)s) AS newest
 ORDER BY window_id

-- windows_wait_for_judge --
-- Whether a window is due for one of these scorers, and nobody holds the model's judge.
SELECT EXISTS (SELECT FROM rl.windows w
                WHERE w.model_name = %(model_name)s AND w.state = 'due' AND w.not_before <= rl.now()
                  AND COALESCE(w.scoring, %(scoring)s) = ANY (%(scorers)s::text[])
                  AND (%(only)s::text[] IS NULL OR w.window_id = ANY (%(only)s)))
       AND NOT EXISTS (SELECT FROM rl.leases l
                        WHERE l.resource = 'judge/' || %(model_name)s
                          AND l.expires_at > rl.clock_timestamp()) AS waits

-- select_scored --
-- The windows that a step may take: requests of the app first, then the oldest.
SELECT window_id, state, scoring, scorer, score_rev, attempts, batch_id, trained_step, agents, trajectories,
       late, text_bytes, may_share, reason, last_error
  FROM rl.windows
 WHERE model_name = %(model_name)s AND state = 'scored' AND not_before <= rl.now()
   AND (%(only)s::text[] IS NULL OR window_id = ANY (%(only)s))
 ORDER BY (batch_id IS NULL), (attempts > 0), window_id
 LIMIT 1000

-- last_error --
-- The error for which a due or scored window waits: that of the window tried last.
SELECT last_error FROM rl.windows
 WHERE model_name = %(model_name)s AND state IN ('due', 'scored') AND last_error IS NOT NULL
 ORDER BY not_before DESC
 LIMIT 1

-- count_states --
SELECT model_name, state, count(*)::int AS windows FROM rl.windows
 WHERE model_name = ANY (%(names)s) GROUP BY model_name, state

-- oldest_waiting --
-- The window that has been due the longest, and the one that has been scored the longest. Two queries,
-- so that each has its index.
SELECT state, window_id, since, last_error,
       extract(epoch FROM rl.clock_timestamp() - since)::float8 AS seconds,
       CASE WHEN not_before > rl.now() THEN not_before END AS waits_until
  FROM ((SELECT state, window_id, due_at AS since, not_before, last_error
           FROM rl.windows
          WHERE model_name = %(model_name)s AND state = 'due' ORDER BY due_at, window_id LIMIT 1)
        UNION ALL
        (SELECT state, window_id, scored_at, not_before, last_error
           FROM rl.windows
          WHERE model_name = %(model_name)s AND state = 'scored'
          ORDER BY scored_at, window_id LIMIT 1)) w

-- report_windows --
-- The result of each window, oldest first.
SELECT w.window_id, w.state, w.agents, w.trajectories,
       (SELECT count(DISTINCT q.trajectory_id)::int FROM rl.quarantine q
         WHERE q.window_id = w.window_id
           AND (q.model_name = w.model_name OR q.model_name IS NULL AND q.at = w.scored_at))
           AS quarantined,
       avg(s.score) AS mean_score,
       max(s.score) - min(s.score) AS reward_spread,
       w.trained_step AS step,
       (t.metrics ->> 'loss')::float8 AS loss,
       extract(epoch FROM t.committed_at - t.started_at)::float8 AS seconds,
       COALESCE(w.reason, w.last_error) AS reason
  FROM rl.windows w
  LEFT JOIN rl.scores s ON s.model_name = w.model_name AND s.window_id = w.window_id
                       AND s.scorer = w.scorer
  LEFT JOIN rl.steps t ON t.model_name = rl.lineage_of_step(w.model_name, w.trained_step)
                      AND t.step = w.trained_step
 WHERE w.model_name = %(model_name)s
 GROUP BY w.window_id, w.model_name, t.model_name, t.step
 ORDER BY w.window_id

-- window_story --
-- All facts about one window, without its attempts.
SELECT w.window_id, w.model_name, w.state, COALESCE(w.reason, w.last_error) AS reason, w.attempts,
       w.agents, w.trajectories, w.late, w.scoring, w.scorer, w.batch_id,
       w.due_at, w.scored_at, w.trained_at, w.skipped_at, w.failed_at,
       CASE WHEN w.not_before > rl.now() AND w.state IN ('due', 'scored') THEN w.not_before END
           AS waits_until,
       w.may_share,
       (SELECT l.holder FROM rl.leases l
         WHERE l.resource = 'window/' || w.model_name || '/' || w.window_id COLLATE "default"
           AND l.expires_at > rl.clock_timestamp()) AS held_by,
       w.trained_step,
       CASE WHEN t.model_name = w.model_name THEN t.given_up_at END AS step_given_up_at,
       t.version, t.checkpoint,
       (SELECT jsonb_build_object('trajectories', count(*), 'mean', round(avg(s.score)::numeric, 4),
                                  'deviation', round(stddev_samp(s.score)::numeric, 4),
                                  'lowest', min(s.score), 'highest', max(s.score))
          FROM rl.scores s
         WHERE s.model_name = w.model_name AND s.window_id = w.window_id AND s.scorer = w.scorer
        HAVING count(*) > 0) AS scores,
       (SELECT array_agg(n ORDER BY tenth)
          FROM (SELECT tenth, count(s.score)::int AS n
                  FROM generate_series(1, 10) AS tenth
                  LEFT JOIN rl.scores s
                    ON s.model_name = w.model_name AND s.window_id = w.window_id
                   AND s.scorer = w.scorer AND least(width_bucket(s.score, 0, 1, 10), 10) = tenth
                 GROUP BY tenth) AS tenths) AS score_tenths,
       (SELECT jsonb_object_agg(reason, n)
          FROM (SELECT q.reason, count(DISTINCT q.trajectory_id) AS n FROM rl.quarantine q
                 WHERE q.window_id = w.window_id
                   AND (q.model_name = w.model_name OR q.model_name IS NULL AND q.at = w.scored_at)
                 GROUP BY q.reason) AS by_reason) AS set_aside,
       (SELECT jsonb_build_object('answers', count(*), 'refused', count(j.fault),
                                  'tokens', sum(j.prompt_tokens + j.completion_tokens),
                                  'usd', sum(j.usd))
          FROM rl.judgments j
         WHERE j.model_name = w.model_name AND j.window_id = w.window_id
           AND j.purpose = 'scoring'
        HAVING count(*) > 0) AS judge,
       w.funnel, w.by_version
  FROM rl.windows w
  LEFT JOIN rl.steps t ON t.model_name = rl.lineage_of_step(w.model_name, w.trained_step)
                      AND t.step = w.trained_step
 WHERE w.model_name = %(model_name)s AND w.window_id = %(window_id)s
