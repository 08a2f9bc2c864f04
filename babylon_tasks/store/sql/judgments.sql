-- Judgments: the judge's answers and their cost.

-- find_judgment --
-- The newest usable answer to exactly this question.
SELECT trajectory_ids, scores, explanations, prompt_tokens + completion_tokens AS tokens,
       usd::float8
  FROM rl.judgments
 WHERE question = %(question)s AND fault IS NULL
 ORDER BY asked_at DESC
 LIMIT 1

-- add_judgment --
-- A conflict: the same answer is written again, since the answer to COMMIT was lost.
INSERT INTO rl.judgments (id, model_name, window_id, question, judge_model, rubric_hash, trajectory_ids,
                          scores, explanations, fault, prompt_tokens, completion_tokens, usd,
                          purpose, asked_at)
VALUES (%(id)s, %(model_name)s, %(window_id)s, %(question)s, %(judge_model)s, %(rubric_hash)s,
        %(trajectory_ids)s, %(scores)s, %(explanations)s, %(fault)s, %(prompt_tokens)s,
        %(completion_tokens)s, %(usd)s, %(purpose)s, rl.clock_timestamp())
ON CONFLICT (id) DO NOTHING

-- spent_today --
-- Of all models of this database, since midnight UTC.
SELECT count(*)::int AS answers,
       COALESCE(sum(prompt_tokens + completion_tokens), 0)::bigint AS tokens,
       COALESCE(sum(usd), 0)::float8 AS usd
  FROM rl.judgments
 WHERE asked_at >= date_trunc('day', rl.now() AT TIME ZONE 'utc') AT TIME ZONE 'utc'

-- cost_of_window --
-- The cost of scoring this window, refused answers included; dollars are NULL if a price is unknown.
SELECT COALESCE(sum(prompt_tokens + completion_tokens), 0)::int AS tokens, sum(usd) AS usd
  FROM rl.judgments
 WHERE model_name = %(model_name)s AND window_id = %(window_id)s AND purpose = 'scoring'
