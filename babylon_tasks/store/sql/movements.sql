-- How far steps moved the policy.

-- newest_movements --
-- Of the steps on the way to the head.
SELECT step, (metrics ->> 'policy_change')::float8 AS policy_change,
       (metrics ->> 'kl')::float8 AS kl, (metrics ->> 'learning_rate')::float8 AS learning_rate,
       (metrics ->> 'step_share')::float8 AS step_share
  FROM rl.steps
 WHERE model_name = %(model_name)s AND given_up_at IS NULL
 ORDER BY step DESC LIMIT %(most)s
