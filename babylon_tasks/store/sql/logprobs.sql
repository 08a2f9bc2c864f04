-- Log-probabilities that a server attached to recorded calls.

-- add_logprobs --
INSERT INTO rl.logprobs (model_name, trajectory_id, call_hash, window_id, asked_of, token_ids,
                         logprobs, at)
VALUES (%(model_name)s, %(trajectory_id)s, %(call_hash)s, %(window_id)s, %(asked_of)s,
        %(token_ids)s::int[], %(logprobs)s::float8[], rl.now())
ON CONFLICT (model_name, trajectory_id, call_hash) DO UPDATE
   SET window_id = excluded.window_id, asked_of = excluded.asked_of,
       token_ids = excluded.token_ids, logprobs = excluded.logprobs, at = excluded.at

-- asked_logprobs --
SELECT trajectory_id, call_hash, asked_of FROM rl.logprobs
 WHERE model_name = %(model_name)s AND window_id = %(window_id)s

-- read_logprobs --
SELECT call_hash, token_ids, logprobs FROM rl.logprobs
 WHERE model_name = %(model_name)s AND trajectory_id = %(trajectory_id)s

-- forget_logprobs --
DELETE FROM rl.logprobs
 WHERE model_name = %(model_name)s AND window_id = ANY (%(window_ids)s)
