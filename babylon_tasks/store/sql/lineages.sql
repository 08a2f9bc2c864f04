-- Lineages: their rows, whose turn it is, and what is due for each.

-- ensure_lineage --
-- The lineage of this deployment's MODEL_NAME needs no `babylon lineages create`. A head that a
-- worker of release 0.1.0 made says what it started from.
INSERT INTO rl.lineages AS l (name, base_model, base_revision, is_primary, own_settings, created_by,
                              created_at)
VALUES (%(name)s,
        COALESCE((SELECT base_model FROM rl.heads WHERE model_name = %(name)s), %(base_model)s),
        %(base_revision)s, %(is_primary)s, true, %(holder)s, rl.now())
ON CONFLICT (name) DO UPDATE SET is_primary = excluded.is_primary
 WHERE l.is_primary <> excluded.is_primary

-- create_lineage --
-- Workers of release 0.1.0 may know the name by its head or its windows alone.
INSERT INTO rl.lineages (name, base_model, base_revision, forked_from, forked_step, config,
                         created_by, created_at)
SELECT %(name)s, %(base_model)s, %(base_revision)s, %(forked_from)s, %(forked_step)s, %(config)s,
       %(created_by)s, rl.now()
 WHERE NOT EXISTS (SELECT FROM rl.heads WHERE model_name = %(name)s)
   AND NOT EXISTS (SELECT FROM rl.windows WHERE model_name = %(name)s)
ON CONFLICT DO NOTHING
RETURNING name

-- create_head --
-- A fork serves the step that it starts from until its first own step is published. What workers of
-- release 0.1.0 read as its base model tells them that they cannot train it.
INSERT INTO rl.heads (model_name, step, published_step, base_model)
VALUES (%(name)s, %(step)s, %(step)s,
        CASE WHEN %(step)s > 0 THEN '(a newer release forked it: upgrade this worker)'
             ELSE %(base_model)s END)
ON CONFLICT DO NOTHING
RETURNING model_name

-- read_lineages --
-- All of them (names: NULL), or the named ones.
SELECT name, base_model, is_primary AS "primary", base_revision, state, own_settings, forked_from,
       forked_step, config, created_by, created_at, changed_by, changed_at
  FROM rl.lineages
 WHERE %(names)s::text[] IS NULL OR name = ANY (%(names)s)
 ORDER BY name

-- list_lineages --
SELECT l.name, l.state, l.base_model, l.is_primary AS "primary", l.own_settings, l.forked_from,
       l.forked_step, l.config ->> 'LINEAGE_WEIGHT' AS weight,
       COALESCE(h.step, 0) AS step, COALESCE(h.published_step, 0) AS published_step,
       h.promotion_paused_at, COALESCE(w.due, 0) AS due, COALESCE(w.scored, 0) AS scored,
       COALESCE(w.trained, 0) AS trained, COALESCE(w.failed, 0) AS failed
  FROM rl.lineages l
  LEFT JOIN rl.heads h ON h.model_name = l.name
  LEFT JOIN (SELECT model_name, count(*) FILTER (WHERE state = 'due') AS due,
                    count(*) FILTER (WHERE state = 'scored') AS scored,
                    count(*) FILTER (WHERE state = 'trained') AS trained,
                    count(*) FILTER (WHERE state = 'failed') AS failed
               FROM rl.windows GROUP BY model_name) w ON w.model_name = l.name
 ORDER BY l.name

-- lock_lineage --
-- A change of a lineage, one at a time. Whoever needs the head too has locked it before.
SELECT name, base_model, is_primary AS "primary", base_revision, state, own_settings, forked_from,
       forked_step, config, created_by, created_at, changed_by, changed_at
  FROM rl.lineages WHERE name = %(name)s FOR UPDATE

-- change_lineage --
UPDATE rl.lineages
   SET state = %(state)s, config = %(config)s, own_settings = %(own_settings)s,
       is_primary = %(is_primary)s, changed_by = %(changed_by)s, changed_at = rl.now()
 WHERE name = %(name)s

-- pin_revision --
-- The first step says which weights it started from.
UPDATE rl.lineages SET base_revision = %(base_revision)s
 WHERE name = %(name)s AND base_revision IS NULL

-- has_own_step --
SELECT EXISTS (SELECT FROM rl.steps WHERE model_name = %(name)s) AS has

-- take_turn_to_score --
-- The active lineage that has waited longest for a turn, where a weight of 2 counts a wait twice, of
-- those with a due window that nobody holds. It has taken its turn then. A window for a judge counts
-- only where nobody holds the lineage's judge.
-- Workers that ask at the same moment get different lineages: a turn that another one takes now, or
-- has taken since this statement began, is passed by. If there is no other, they share a lineage.
-- One clock for all rows, else the later ones would seem to wait longer.
-- OFFSET 0: in this order, so that LIMIT ends the search; LIMIT 1: one probe for each lineage.
-- A row that a person wrote into rl.lineages has no turns before this; it takes the next one.
WITH added AS (
    INSERT INTO rl.turns (model_name, stage, taken_at)
    SELECT n.name, 'score', n.created_at
      FROM rl.lineages n
     WHERE n.name = ANY (%(names)s)
       AND NOT EXISTS (SELECT FROM rl.turns t
                        WHERE t.model_name = n.name AND t.stage = 'score')
    ON CONFLICT DO NOTHING
), waiting AS (
    SELECT l.name, l.taken_at
      FROM (SELECT a.name, a.scoring, t.taken_at
              FROM unnest(%(names)s::text[], %(weights)s::float8[], %(scorings)s::text[])
                       AS a (name, weight, scoring)
              JOIN rl.lineages n ON n.name = a.name AND n.state = 'active'
              JOIN rl.turns t ON t.model_name = a.name AND t.stage = 'score'
             ORDER BY extract(epoch FROM (SELECT rl.clock_timestamp()) - t.taken_at) * a.weight DESC,
                      a.name
            OFFSET 0) l
     CROSS JOIN LATERAL (
          SELECT FROM rl.windows w
           WHERE w.model_name = l.name AND w.state = 'due' AND w.not_before <= rl.now()
             AND NOT EXISTS (
                 SELECT FROM rl.leases h
                  WHERE h.resource = 'window/' || l.name || '/' || w.window_id COLLATE "default"
                    AND h.expires_at > rl.clock_timestamp())
             AND (COALESCE(w.scoring, l.scoring) <> ALL (%(judged)s::text[])
                  OR NOT EXISTS (SELECT FROM rl.leases h
                                  WHERE h.resource = 'judge/' || l.name
                                    AND h.expires_at > rl.clock_timestamp()))
           LIMIT 1) due
), free AS (
    SELECT w.name
      FROM waiting w
     CROSS JOIN LATERAL (
          SELECT FROM rl.turns t
           WHERE t.model_name = w.name AND t.stage = 'score' AND t.taken_at = w.taken_at
             FOR UPDATE SKIP LOCKED) t
     LIMIT 1
), taken AS (
    UPDATE rl.turns SET taken_at = rl.clock_timestamp()
     WHERE model_name = (SELECT name FROM free) AND stage = 'score'
)
SELECT COALESCE((SELECT name FROM free), (SELECT name FROM waiting LIMIT 1)) AS name

-- take_turn_to_train --
-- The same for a step: of the active lineages with a scored window of which nobody trains a step. No
-- two workers get the same lineage, since one of them would find that the other trains it.
WITH added AS (
    INSERT INTO rl.turns (model_name, stage, taken_at)
    SELECT n.name, 'train', n.created_at
      FROM rl.lineages n
     WHERE n.name = ANY (%(names)s)
       AND NOT EXISTS (SELECT FROM rl.turns t
                        WHERE t.model_name = n.name AND t.stage = 'train')
    ON CONFLICT DO NOTHING
), waiting AS (
    SELECT l.name, l.taken_at
      FROM (SELECT a.name, t.taken_at
              FROM unnest(%(names)s::text[], %(weights)s::float8[]) AS a (name, weight)
              JOIN rl.lineages n ON n.name = a.name AND n.state = 'active'
              JOIN rl.turns t ON t.model_name = a.name AND t.stage = 'train'
             ORDER BY extract(epoch FROM (SELECT rl.clock_timestamp()) - t.taken_at) * a.weight DESC,
                      a.name
            OFFSET 0) l
     CROSS JOIN LATERAL (
          SELECT FROM rl.windows w
           WHERE w.model_name = l.name AND w.state = 'scored' AND w.not_before <= rl.now()
           LIMIT 1) due
     WHERE NOT EXISTS (SELECT FROM rl.leases h
                        WHERE h.resource = 'model/' || l.name
                          AND h.expires_at > rl.clock_timestamp())
), free AS (
    SELECT w.name
      FROM waiting w
     CROSS JOIN LATERAL (
          SELECT FROM rl.turns t
           WHERE t.model_name = w.name AND t.stage = 'train' AND t.taken_at = w.taken_at
             FOR UPDATE SKIP LOCKED) t
     LIMIT 1
), taken AS (
    UPDATE rl.turns SET taken_at = rl.clock_timestamp()
     WHERE model_name = (SELECT name FROM free) AND stage = 'train'
)
SELECT name FROM free

-- first_turn --
INSERT INTO rl.turns (model_name, stage, taken_at)
SELECT %(name)s, stage, rl.clock_timestamp() FROM unnest(ARRAY['score', 'train']) AS stage
ON CONFLICT DO NOTHING

-- sweep --
-- Due work that nobody holds, of these lineages: windows to score (at most a limit), and whether there
-- is a step to train. What is to serve is in experiments.sql.
SELECT ARRAY(
           SELECT due.window_id
             FROM unnest(%(names)s::text[]) AS l (name)
            CROSS JOIN LATERAL (
                 SELECT w.window_id FROM rl.windows w
                  WHERE w.model_name = l.name AND w.state = 'due' AND w.not_before <= rl.now()
                    AND NOT EXISTS (
                        SELECT FROM rl.leases h
                         WHERE h.resource = 'window/' || l.name || '/'
                                            || w.window_id COLLATE "default"
                           AND h.expires_at > rl.clock_timestamp())
                  ORDER BY w.window_id LIMIT %(limit)s) due
            LIMIT %(limit)s
       ) AS due,
       EXISTS (SELECT FROM unnest(%(names)s::text[]) AS l (name)
                CROSS JOIN LATERAL (
                     SELECT FROM rl.windows w
                      WHERE w.model_name = l.name AND w.state = 'scored'
                        AND w.not_before <= rl.now()
                      LIMIT 1) scored
                WHERE NOT EXISTS (SELECT FROM rl.leases h
                                   WHERE h.resource = 'model/' || l.name
                                     AND h.expires_at > rl.clock_timestamp())) AS train
