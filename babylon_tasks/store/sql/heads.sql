-- Heads: the step that each lineage continues from, and the one that serves.

-- ensure_head --
INSERT INTO rl.heads (model_name, base_model) VALUES (%(model_name)s, %(base_model)s)
ON CONFLICT DO NOTHING

-- read_head --
-- With the number of the next step: one above the highest, whatever the head. (A head that was moved
-- has a sentence for workers of release 0.1.0 in its own base_model.)
SELECT h.step, h.published_step, h.promotion_paused_at,
       COALESCE(l.base_model, h.base_model) AS base_model,
       l.base_revision,
       greatest(COALESCE((SELECT max(s.step) FROM rl.steps s WHERE s.model_name = h.model_name), 0),
                COALESCE(l.forked_step, 0)) + 1 AS next_step
  FROM rl.heads h
  LEFT JOIN rl.lineages l ON l.name = h.model_name
 WHERE h.model_name = %(model_name)s

-- hold_head --
-- A statement of its own: what follows sees what whoever held the row before has committed.
-- Of a lineage's rows this is locked first, but for its lease: docs/architecture.md has the order.
SELECT step FROM rl.heads WHERE model_name = %(model_name)s FOR UPDATE

-- advance_head --
-- The compare-and-set: it updates no row if the head moved or the lease was lost. The lease's row
-- stays locked until the commit. So if this process freezes here, nobody can take the lease over and
-- remove the step's files before the server has ended this transaction.
WITH held AS (
    SELECT FROM rl.leases
     WHERE resource = 'model/' || %(model_name)s AND token = %(token)s
       AND expires_at > rl.clock_timestamp()
       FOR SHARE
)
UPDATE rl.heads
   SET step = %(step)s
 WHERE model_name = %(model_name)s AND step = %(expected_step)s AND EXISTS (SELECT FROM held)

-- lock_head --
-- A change of published_step waits until the decision about older files is written.
WITH held AS (
    SELECT FROM rl.leases
     WHERE resource = 'model/' || %(model_name)s AND token = %(token)s
       AND expires_at > rl.clock_timestamp()
       FOR SHARE
)
SELECT step, published_step FROM rl.heads
 WHERE model_name = %(model_name)s AND EXISTS (SELECT FROM held)
   FOR UPDATE

-- forked_steps --
-- The steps that lineages which are not retired, or train their last step now, were forked from.
SELECT DISTINCT forked_step AS step FROM rl.lineages l
 WHERE forked_from IS NOT NULL
   AND (state <> 'retired' OR EXISTS (SELECT FROM rl.leases h
                                       WHERE h.resource = 'model/' || l.name
                                         AND h.expires_at > rl.clock_timestamp()))
   AND rl.lineage_of_step(forked_from, forked_step) = %(model_name)s

-- share_head --
-- Files that are not given up now stay until the transaction ends.
SELECT step FROM rl.heads WHERE model_name = %(model_name)s FOR SHARE

-- mark_path --
-- A step is given up if it is not on the way from the root to the step that the head moves to. Returns
-- the steps for which that has changed.
WITH RECURSIVE path AS (
    SELECT step, COALESCE(parent_step, step - 1) AS parent FROM rl.steps
     WHERE model_name = %(model_name)s AND step = %(to_step)s
    UNION ALL
    SELECT s.step, COALESCE(s.parent_step, s.step - 1)
      FROM path p JOIN rl.steps s ON s.model_name = %(model_name)s AND s.step = p.parent
)
UPDATE rl.steps s
   SET given_up_at = CASE WHEN s.step IN (SELECT step FROM path) THEN NULL ELSE rl.now() END
 WHERE s.model_name = %(model_name)s
   AND (s.given_up_at IS NULL) <> (s.step IN (SELECT step FROM path))
RETURNING s.step, s.window_ids, s.given_up_at IS NOT NULL AS given_up

-- move_head --
-- By hand: the next step starts from another one. What workers of release 0.1.0 read as the base
-- model tells them that they cannot go on. Returns the step that is to serve now: one that does not
-- come before the new head serves no more.
UPDATE rl.heads h
   SET step = %(to_step)s,
       base_model = '(a newer release moved its head: upgrade this worker)'
 WHERE model_name = %(model_name)s AND step = %(from_step)s
RETURNING CASE WHEN h.published_step <= %(to_step)s AND NOT EXISTS (
                   SELECT FROM rl.steps s WHERE s.model_name = h.model_name
                      AND s.step = h.published_step AND s.given_up_at IS NOT NULL)
               THEN h.published_step ELSE %(to_step)s END AS published_step

-- change_models --
-- The app's rows of steps that were given up, and of those that are on the way to the head again: the
-- newer ones among these wait to be published.
UPDATE public.trained_models m
   SET status = CASE WHEN s.given_up_at IS NOT NULL THEN 'archived'
                     WHEN s.step <= %(published_step)s THEN 'ready' ELSE 'training' END,
       "archivedAt" = CASE WHEN s.given_up_at IS NOT NULL THEN rl.now() AT TIME ZONE 'utc' END,
       "updatedAt" = rl.now() AT TIME ZONE 'utc'
  FROM rl.steps s
 WHERE s.model_name = %(model_name)s AND s.step = ANY (%(changed)s)
   AND m."modelId" = %(model_name)s || '-' || s.version
   AND CASE WHEN s.given_up_at IS NULL THEN m.status = 'archived' AND s.removed_at IS NULL
            ELSE m.status <> 'archived' END

-- insert_reset --
INSERT INTO rl.resets (model_name, token, from_step, to_step, why, holder, at)
VALUES (%(model_name)s, %(token)s, %(from_step)s, %(to_step)s, %(why)s, %(holder)s,
        rl.clock_timestamp())

-- reset_of_token --
-- Whether the reset with this token was committed (asked after a lost connection).
SELECT from_step FROM rl.resets WHERE model_name = %(model_name)s AND token = %(token)s

-- list_resets --
SELECT from_step, to_step, why, holder, at FROM rl.resets
 WHERE model_name = %(model_name)s ORDER BY at DESC

-- head_positions --
SELECT model_name, step, published_step FROM rl.heads WHERE model_name = ANY (%(names)s)
