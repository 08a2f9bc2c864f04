-- Experiments: versions that passed their exam and answer a part of the agents.
--
-- A row of rl.assignments is an agent in a window, and the step that answered it. An agent takes part
-- if exactly one step answered it there, and it never asked for a version by name.

-- candidate --
SELECT rl.candidate(%(model_name)s) AS step

-- set_gated --
UPDATE rl.heads SET gated = %(gated)s WHERE model_name = %(model_name)s AND gated <> %(gated)s

-- open_experiment --
INSERT INTO rl.experiments (model_name, step, served_step, state, reason, percent, first_window,
                            holder, started_at)
VALUES (%(model_name)s, %(step)s, %(served_step)s, 'running', %(reason)s, %(percent)s, '',
        %(holder)s, rl.clock_timestamp())
RETURNING id

-- begin_in --
UPDATE rl.experiments SET first_window = %(window_id)s WHERE id = %(id)s

-- running_experiment --
SELECT id, step, served_step, state, reason, percent, first_window, started_at, ended_at
  FROM rl.experiments WHERE model_name = %(model_name)s AND ended_at IS NULL

-- list_experiments --
-- With one step, or (step: NULL) all; newest first.
SELECT id, step, served_step, state, reason, percent, first_window, started_at, ended_at
  FROM rl.experiments
 WHERE model_name = %(model_name)s AND (%(step)s::int IS NULL OR step = %(step)s)
 ORDER BY id DESC

-- experiments_to_log --
-- Ended and not on Weights & Biases yet, in that order, each with what its last look showed.
SELECT x.id, x.step, x.served_step, x.state, x.percent, x.ended_at,
       (SELECT k.evidence -> 'standing' FROM rl.experiment_looks k WHERE k.experiment_id = x.id
         ORDER BY k.at DESC, k.window_id DESC LIMIT 1) AS standing
  FROM rl.experiments x
 WHERE x.model_name = %(model_name)s AND x.ended_at IS NOT NULL AND x.logged_at IS NULL
 ORDER BY x.ended_at LIMIT %(limit)s

-- experiments_logged --
UPDATE rl.experiments SET logged_at = rl.now() WHERE id = ANY (%(ids)s::bigint[])

-- list_looks --
SELECT experiment_id, window_id, decision, evidence, at FROM rl.experiment_looks
 WHERE experiment_id = ANY (%(ids)s) ORDER BY experiment_id, window_id

-- go_on --
UPDATE rl.experiments SET percent = %(percent)s, reason = %(reason)s WHERE id = %(id)s

-- end_experiment --
UPDATE rl.experiments
   SET state = %(state)s, reason = %(reason)s, holder = %(holder)s, ended_at = rl.clock_timestamp()
 WHERE id = %(id)s AND ended_at IS NULL

-- write_look --
-- A window that was scored again is looked at again: what it shows now counts.
INSERT INTO rl.experiment_looks (experiment_id, window_id, decision, evidence, holder, at)
VALUES (%(id)s, %(window_id)s, %(decision)s, %(evidence)s, %(holder)s, rl.clock_timestamp())
ON CONFLICT (experiment_id, window_id) DO UPDATE
   SET decision = excluded.decision, evidence = excluded.evidence, holder = excluded.holder,
       at = excluded.at

-- windows_to_look_at --
-- Of the experiment, in order: scored and not looked at since.
SELECT w.window_id, w.score_rev
  FROM rl.experiments e
  JOIN rl.windows w ON w.model_name = e.model_name AND w.window_id >= e.first_window
                   AND w.state IN ('scored', 'trained', 'skipped')
 WHERE e.id = %(id)s
   AND NOT EXISTS (SELECT FROM rl.experiment_looks k
                    WHERE k.experiment_id = e.id AND k.window_id = w.window_id
                      AND (k.evidence ->> 'score_rev')::int = w.score_rev)
 ORDER BY w.window_id

-- window_evidence --
-- The runs of a window that each of two steps answered. A run is an agent: its trajectories' mean.
WITH arms AS MATERIALIZED (
    SELECT a.agent, min(a.step) AS step
      FROM rl.assignments a
     WHERE a.model_name = %(model_name)s AND a.window_id = %(window_id)s
     GROUP BY a.agent HAVING count(*) = 1 AND sum(a.pinned) = 0
), runs AS (
    SELECT arms.step, avg(s.score) AS score
      FROM rl.windows w
      JOIN rl.scores s ON s.model_name = w.model_name AND s.window_id = w.window_id
                      AND s.scorer = w.scorer
      JOIN arms ON arms.agent = s.agent_id
     WHERE w.model_name = %(model_name)s AND w.window_id = %(window_id)s
       AND arms.step IN (%(step)s, %(served_step)s)
     GROUP BY arms.agent, arms.step
)
SELECT step, count(*)::int AS runs, avg(score) AS mean, var_pop(score) * count(*) AS squares
  FROM runs GROUP BY step

-- failed_agents --
-- The agents that took part in each window since one, and those that a step failed: at least a part of
-- the requests ended badly.
WITH arms AS (
    SELECT a.window_id, min(a.step) AS step,
           sum(a.failed + a.malformed) >= %(failed_part)s * sum(a.answers + a.failed) AS failed
      FROM rl.assignments a
     WHERE a.model_name = %(model_name)s AND a.window_id >= %(window_id)s
     GROUP BY a.window_id, a.agent HAVING count(*) = 1 AND sum(a.pinned) = 0
)
SELECT window_id,
       (count(*) FILTER (WHERE step = %(served_step)s))::int AS served,
       (count(*) FILTER (WHERE step = %(served_step)s AND failed))::int AS served_failed,
       (count(*) FILTER (WHERE step = %(step)s))::int AS candidate,
       (count(*) FILTER (WHERE step = %(step)s AND failed))::int AS candidate_failed
  FROM arms GROUP BY window_id ORDER BY window_id

-- answers_agents --
-- Whether the endpoint answered agents by the lineage's own name, in this window or one of the two
-- before it.
SELECT EXISTS (
    SELECT FROM rl.assignments a
     WHERE a.model_name = %(model_name)s AND a.answers + a.failed > a.pinned
       AND a.window_id >= to_char((rl.now() - interval '2 hours') AT TIME ZONE 'utc',
                                  'YYYY-MM-DD"T"HH24:00')) AS answers

-- changed_by_hand --
-- Why a person has ended an experiment; NULL: nobody has. Its share is the newest of its lineage.
SELECT CASE WHEN h.published_step <> e.served_step
            THEN 'step ' || h.published_step || ' serves since'
            WHEN s.given_up_at IS NOT NULL THEN 'step ' || e.step || ' was given up'
            WHEN s.removed_at IS NOT NULL THEN 'the files of step ' || e.step || ' were removed'
            WHEN share.draw IS DISTINCT FROM 'experiment-' || e.id
            THEN 'its share was changed by hand'
       END AS why
  FROM rl.experiments e
  JOIN rl.heads h ON h.model_name = e.model_name
  LEFT JOIN rl.steps s ON s.model_name = e.model_name AND s.step = e.step
  LEFT JOIN LATERAL (SELECT * FROM rl.shares WHERE model_name = e.model_name
                      ORDER BY starts_at DESC LIMIT 1) share ON true
 WHERE e.id = %(id)s

-- shared_by_hand --
-- Whether a person gives a version a share now, or is going to.
SELECT EXISTS (
    SELECT FROM (SELECT percent, draw, lead(starts_at) OVER (ORDER BY starts_at) AS ends_at
                   FROM rl.shares WHERE model_name = %(model_name)s) s
     WHERE percent > 0 AND draw IS NULL
       AND (ends_at IS NULL OR ends_at > rl.clock_timestamp())) AS shared

-- to_decide --
-- Of these lineages, each with its PUBLISH, those for which there is something to do that is not done:
-- `gated` is not as it should be; a step is to serve, or to be tried; an experiment has a window that it
-- did not look at, failed an agent in the last two hours, was ended by hand, or should not run.
-- Subqueries with one value, not EXISTS: the planner would read the whole tables once, for all.
SELECT l.name
  FROM unnest(%(names)s::text[], %(modes)s::text[]) AS l (name, mode)
  JOIN rl.heads h ON h.model_name = l.name
  LEFT JOIN rl.experiments e ON e.model_name = l.name AND e.ended_at IS NULL
 CROSS JOIN LATERAL (SELECT h.promotion_paused_at IS NOT NULL AS paused) p
 WHERE h.gated <> (l.mode <> 'always')
    OR l.mode <> 'gate' AND e.id IS NOT NULL
    OR l.mode = 'always' AND h.step <> h.published_step AND NOT p.paused
    OR l.mode = 'gate' AND e.id IS NULL AND NOT p.paused
       AND rl.candidate(l.name) IS NOT NULL
       AND NOT EXISTS (
           SELECT FROM (SELECT s.percent, s.draw,
                               lead(s.starts_at) OVER (ORDER BY s.starts_at) AS ends_at
                          FROM rl.shares s WHERE s.model_name = l.name) s
            WHERE s.percent > 0 AND s.draw IS NULL
              AND (s.ends_at IS NULL OR s.ends_at > rl.clock_timestamp()))
    OR l.mode = 'gate' AND e.id IS NOT NULL AND (
       h.published_step <> e.served_step
       OR (SELECT s.given_up_at IS NOT NULL OR s.removed_at IS NOT NULL
             FROM rl.steps s WHERE s.model_name = l.name AND s.step = e.step)
       OR (SELECT s.draw IS DISTINCT FROM 'experiment-' || e.id FROM rl.shares s
            WHERE s.model_name = l.name ORDER BY s.starts_at DESC LIMIT 1)
       OR (SELECT count(*) > 0 FROM rl.assignments a
            WHERE a.model_name = l.name AND a.step = e.step
              AND a.window_id >= to_char((rl.now() - interval '1 hour') AT TIME ZONE 'utc',
                                         'YYYY-MM-DD"T"HH24:00')
              AND a.failed + a.malformed >= %(failed_part)s * (a.answers + a.failed)
              AND a.failed + a.malformed > 0)
       OR NOT p.paused AND EXISTS (
           SELECT FROM rl.windows w
            WHERE w.model_name = l.name AND w.window_id >= e.first_window
              AND w.state IN ('scored', 'trained', 'skipped')
              AND NOT EXISTS (SELECT FROM rl.experiment_looks k
                               WHERE k.experiment_id = e.id AND k.window_id = w.window_id
                                 AND (k.evidence ->> 'score_rev')::int = w.score_rev)))
 ORDER BY l.name
