-- Shares: a second version that answers a part of a lineage's agents.

-- start_share --
-- From the start of the next window (an hour of UTC) on, so that an agent has one version in each.
INSERT INTO rl.shares (model_name, starts_at, step, percent, draw, holder, why, at)
VALUES (%(model_name)s,
        date_trunc('hour', rl.clock_timestamp(), 'UTC') + interval '1 hour',
        %(step)s, %(percent)s, %(draw)s, %(holder)s, %(why)s, rl.clock_timestamp())
ON CONFLICT (model_name, starts_at) DO UPDATE
   SET step = excluded.step, percent = excluded.percent, draw = excluded.draw,
       holder = excluded.holder, why = excluded.why, at = excluded.at
RETURNING starts_at

-- list_shares --
SELECT starts_at, lead(starts_at) OVER (ORDER BY starts_at) AS ends_at, step,
       percent::float8 AS percent, draw, holder, why, at
  FROM rl.shares WHERE model_name = %(model_name)s ORDER BY starts_at DESC

-- shares_in_force --
SELECT starts_at, ends_at, step, percent::float8 AS percent, draw, holder, why, at
  FROM (SELECT *, lead(starts_at) OVER (ORDER BY starts_at) AS ends_at
          FROM rl.shares WHERE model_name = %(model_name)s) s
 WHERE percent > 0 AND (ends_at IS NULL OR ends_at > rl.clock_timestamp())
 ORDER BY starts_at

-- shared_steps --
SELECT DISTINCT step
  FROM (SELECT step, percent, lead(starts_at) OVER (ORDER BY starts_at) AS ends_at
          FROM rl.shares WHERE model_name = %(model_name)s) s
 WHERE percent > 0 AND (ends_at IS NULL OR ends_at > rl.clock_timestamp())

-- end_shares --
-- Those of steps that were given up, or whose experiment ended: at once, not with the window. One that is to start stays without
-- an agent.
WITH open AS (
    SELECT * FROM (SELECT s.*, lead(starts_at) OVER (ORDER BY starts_at) AS ends_at
                     FROM rl.shares s WHERE model_name = %(model_name)s) s
     WHERE percent > 0 AND (ends_at IS NULL OR ends_at > rl.clock_timestamp())
       AND (step = ANY (%(steps)s) OR draw = %(draw)s)
), to_start AS (
    UPDATE rl.shares s
       SET percent = 0, holder = %(holder)s, why = %(why)s, at = rl.clock_timestamp()
      FROM open
     WHERE s.model_name = open.model_name AND s.starts_at = open.starts_at
       AND s.starts_at > rl.clock_timestamp()
)
INSERT INTO rl.shares (model_name, starts_at, step, percent, holder, why, at)
SELECT model_name, rl.clock_timestamp(), step, 0, %(holder)s, %(why)s, rl.clock_timestamp()
  FROM open WHERE starts_at <= rl.clock_timestamp()
