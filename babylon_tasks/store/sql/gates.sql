-- Gates: what of each lineage waits to serve, and why it does.

-- read_gates --
-- The gates of these lineages. A passed step waits as rl.candidate says, and no more once it, or one
-- after it, is tried.
SELECT n.name, COALESCE(h.gated, false) AS gated, COALESCE(h.published_step, 0) AS served_step,
       CASE WHEN w.waits THEN h.step END AS awaits_exam, COALESCE(w.attempts, 0) AS attempts,
       ARRAY(SELECT e.step
               FROM rl.exams e
               JOIN rl.steps s ON s.model_name = e.model_name AND s.step = e.step
              WHERE e.model_name = n.name AND e.state = 'passed' AND e.step > h.published_step
                AND s.given_up_at IS NULL AND s.removed_at IS NULL
                AND NOT EXISTS (
                    SELECT FROM rl.experiments x
                      JOIN rl.steps t ON t.model_name = x.model_name AND t.step = x.step
                     WHERE x.model_name = n.name AND x.step > h.published_step
                       AND t.given_up_at IS NULL
                       AND (x.step >= e.step
                            OR x.state = 'rolled_back' AND t.trainer <> 'serverless'))
              ORDER BY e.step DESC) AS passed,
       rl.failed_exams(n.name) AS failures,
       CASE WHEN l.state = 'paused' AND l.changed_by = %(paused_by)s THEN l.changed_at END
           AS paused_at,
       f.step AS failed_step, f.reason AS failed_reason, f.decided_at AS failed_at,
       r.step AS tried_step, r.served_step AS beside_step, r.percent, r.reason AS tried_reason,
       r.first_window, r.started_at,
       (SELECT k.evidence -> 'standing' FROM rl.experiment_looks k WHERE k.experiment_id = r.id
         ORDER BY k.at DESC, k.window_id DESC LIMIT 1) AS standing,
       d.step AS ended_step, d.state AS ended_state, d.reason AS ended_reason, d.ended_at
  FROM unnest(%(names)s::text[]) AS n (name)
  LEFT JOIN rl.heads h ON h.model_name = n.name
  LEFT JOIN rl.lineages l ON l.name = n.name
  LEFT JOIN LATERAL (
       SELECT e.step IS NULL OR e.state = 'open' AS waits, e.attempts
         FROM rl.steps s
         LEFT JOIN rl.exams e ON e.model_name = s.model_name AND e.step = s.step
        WHERE s.model_name = h.model_name AND s.step = h.step AND h.step <> h.published_step
       ) w ON true
  LEFT JOIN LATERAL (
       SELECT e.step, e.reason, e.decided_at FROM rl.exams e
        WHERE e.model_name = n.name AND e.state = 'failed'
        ORDER BY e.decided_at DESC LIMIT 1) f ON true
  LEFT JOIN rl.experiments r ON r.model_name = n.name AND r.ended_at IS NULL
  LEFT JOIN LATERAL (
       SELECT x.step, x.state, x.reason, x.ended_at FROM rl.experiments x
        WHERE x.model_name = n.name AND x.ended_at IS NOT NULL
        ORDER BY x.id DESC LIMIT 1) d ON true
 ORDER BY n.name

-- gate_of_steps --
-- How far each step came, in words; the last experiment of a step says more than its exam.
SELECT s.step,
       CASE WHEN x.state = 'running' THEN 'experiment'
            WHEN x.state IN ('rolled_back', 'undecided') THEN replace(x.state, '_', ' ')
            WHEN e.state IN ('passed', 'failed') THEN e.state
            WHEN h.gated AND s.step = h.step AND s.step <> h.published_step THEN 'awaits exam'
       END AS state
  FROM rl.steps s
  JOIN rl.heads h ON h.model_name = s.model_name
  LEFT JOIN rl.exams e ON e.model_name = s.model_name AND e.step = s.step
  LEFT JOIN LATERAL (
       SELECT t.state FROM rl.experiments t
        WHERE t.model_name = s.model_name AND t.step = s.step
        ORDER BY t.id DESC LIMIT 1) x ON true
 WHERE s.model_name = %(model_name)s
