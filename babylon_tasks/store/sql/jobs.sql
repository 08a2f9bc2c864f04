-- Jobs at W&B: at most one of a model is open, and only the holder of the model's lease writes.

-- open_job --
SELECT windows, remote_step, job_id,
       extract(epoch FROM rl.clock_timestamp() - intended_at)::float8 AS age_seconds
  FROM rl.jobs WHERE model_name = %(model_name)s AND ended_at IS NULL

-- follow_job --
-- Another attempt follows it from now on.
UPDATE rl.jobs SET token = %(token)s WHERE model_name = %(model_name)s AND ended_at IS NULL

-- intend_job --
-- The conflict is the same intent, written again where the answer to COMMIT was lost.
INSERT INTO rl.jobs (model_name, step, token, windows, remote_step, intended_at)
VALUES (%(model_name)s, %(step)s, %(token)s, %(windows)s, %(remote_step)s, rl.clock_timestamp())
ON CONFLICT (model_name) WHERE ended_at IS NULL DO NOTHING

-- post_job --
UPDATE rl.jobs
   SET state = 'posted', job_id = %(job_id)s, posted_at = rl.clock_timestamp()
 WHERE model_name = %(model_name)s AND ended_at IS NULL

-- end_job --
UPDATE rl.jobs
   SET state = %(state)s, why = %(why)s, ended_at = rl.clock_timestamp()
 WHERE model_name = %(model_name)s AND ended_at IS NULL

-- finish_job --
-- In the commit of the step that its result became.
UPDATE rl.jobs
   SET state = 'done', ended_at = rl.clock_timestamp()
 WHERE model_name = %(model_name)s AND token = %(token)s AND ended_at IS NULL
