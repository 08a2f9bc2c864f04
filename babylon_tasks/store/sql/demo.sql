-- Babylon's own tables; existing ones stay unchanged.

-- insert_user --
INSERT INTO "User" ("id", "username", "displayName", "isAgent", "updatedAt")
VALUES (%(id)s, %(username)s, %(display_name)s, true, '2025-01-01')
ON CONFLICT DO NOTHING

-- insert_trajectory --
INSERT INTO trajectories (
  "id", "trajectoryId", "agentId", "startTime", "endTime", "durationMs", "windowId", "windowHours",
  "scenarioId", "episodeId", "stepsJson", "rewardComponentsJson", "metricsJson", "metadataJson",
  "totalReward", "episodeLength", "finalStatus", "finalBalance", "finalPnL", "tradesExecuted",
  "postsCreated", "isTrainingData", "isEvaluation", "usedInTraining", "createdAt", "updatedAt")
VALUES (
  %(id)s, %(trajectory_id)s, %(agent_id)s, %(start_time)s, %(end_time)s, %(duration_ms)s,
  %(window_id)s, 1, %(scenario_id)s, %(episode_id)s, %(steps_json)s, %(reward_components_json)s,
  %(metrics_json)s, %(metadata_json)s, %(total_reward)s, %(episode_length)s, %(final_status)s,
  %(final_balance)s, %(final_pnl)s, %(trades_executed)s, %(posts_created)s,
  %(is_training_data)s, %(is_evaluation)s, false, %(updated_at)s, %(updated_at)s)
ON CONFLICT DO NOTHING

-- insert_outcome --
INSERT INTO market_outcomes (
  "id", "windowId", "stockTicker", "startPrice", "endPrice", "changePercent", "sentiment",
  "predictionMarketId", "question", "outcome", "finalProbability", "createdAt")
VALUES (
  %(id)s, %(window_id)s, %(stock_ticker)s, %(start_price)s, %(end_price)s, %(change_percent)s,
  %(sentiment)s, %(prediction_market_id)s, %(question)s, %(outcome)s, %(final_probability)s,
  %(created_at)s)
ON CONFLICT DO NOTHING

-- find_stranger --
-- An agent with a trajectory that none of ours has made, if there is one.
SELECT "agentId" AS agent_id
  FROM public.trajectories AS t
 WHERE NOT EXISTS (SELECT FROM unnest(%(ours)s::text[]) AS ours (id) WHERE ours.id = t."agentId")
 LIMIT 1

-- find_user --
-- A user who is none of our agents, if there is one.
SELECT u."id"
  FROM public."User" AS u
 WHERE NOT EXISTS (SELECT FROM unnest(%(ours)s::text[]) AS ours (id) WHERE ours.id = u."id")
 LIMIT 1

-- lock_simulated --
-- Simulated hours are written one at a time, or two commands would both play an hour; the lock ends
-- with the transaction.
SELECT pg_advisory_xact_lock(hashtext('rl.simulated'))

-- list_simulated --
-- The windows in which our agents have trajectories.
SELECT DISTINCT COALESCE("windowId", left("scenarioId", 16)) COLLATE "C" AS window_id
  FROM public.trajectories
 WHERE "agentId" = ANY (%(ours)s::text[])
 ORDER BY 1
