-- Step paths: from a step to the first one of its tree.

-- path_of_step --
WITH RECURSIVE path AS (
    SELECT s.model_name, s.step, COALESCE(s.parent_step, s.step - 1) AS parent_step, s.version,
           s.window_ids, s.trajectories, s.trainable_tokens
      FROM rl.steps s
     WHERE s.model_name = rl.lineage_of_step(%(model_name)s, %(step)s) AND s.step = %(step)s
    UNION ALL
    SELECT s.model_name, s.step, COALESCE(s.parent_step, s.step - 1), s.version, s.window_ids,
           s.trajectories, s.trainable_tokens
      FROM path p
      JOIN rl.steps s ON s.model_name = rl.lineage_of_step(p.model_name, p.parent_step)
                     AND s.step = p.parent_step
)
SELECT model_name, step, version, window_ids, trajectories, trainable_tokens
  FROM path ORDER BY step DESC
