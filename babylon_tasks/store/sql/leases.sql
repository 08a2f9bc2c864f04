-- Leases: who may write, until when, by the database's clock. Tokens only grow.

-- acquire_lease --
-- Returns no row while another holder's lease is alive.
INSERT INTO rl.leases AS held (resource, holder, token, expires_at, acquired_at)
VALUES (%(resource)s, %(holder)s, nextval('rl.lease_tokens'),
        rl.clock_timestamp() + make_interval(secs => %(lease_seconds)s), rl.clock_timestamp())
ON CONFLICT (resource) DO UPDATE
   SET holder = excluded.holder, token = excluded.token, expires_at = excluded.expires_at,
       acquired_at = excluded.acquired_at, doing = NULL
 WHERE held.expires_at <= rl.clock_timestamp()
RETURNING token

-- next_token --
-- A new token for another attempt of the same holder.
UPDATE rl.leases
   SET token = nextval('rl.lease_tokens'),
       expires_at = rl.clock_timestamp() + make_interval(secs => %(lease_seconds)s)
 WHERE resource = %(resource)s AND token = %(token)s AND expires_at > rl.clock_timestamp()
RETURNING token

-- renew_leases --
-- One row for each lease that is still ours. One that ran out while Postgres was away from its holder
-- is still ours as long as the row has our token: nobody took it.
UPDATE rl.leases l
   SET expires_at = rl.clock_timestamp() + make_interval(secs => %(lease_seconds)s),
       doing = COALESCE(%(doing)s::jsonb, l.doing),
       told_at = CASE WHEN %(doing)s::jsonb IS NULL THEN l.told_at ELSE rl.clock_timestamp() END
  FROM unnest(%(resources)s::text[], %(tokens)s::bigint[]) AS ours (resource, token)
 WHERE l.resource = ours.resource AND l.token = ours.token
   AND (l.expires_at > rl.clock_timestamp() OR %(ran_out_too)s)

-- release_leases --
DELETE FROM rl.leases l
 USING unnest(%(resources)s::text[], %(tokens)s::bigint[]) AS ours (resource, token)
 WHERE l.resource = ours.resource AND l.token = ours.token

-- live_leases --
SELECT resource, holder, token,
       extract(epoch FROM expires_at - rl.clock_timestamp())::float8 AS seconds
  FROM rl.leases
 WHERE split_part(resource, '/', 1) IN ('model', 'judge', 'window')
   AND expires_at > rl.clock_timestamp()
 ORDER BY resource

-- lease_holder --
SELECT holder FROM rl.leases
 WHERE resource = %(resource)s AND expires_at > rl.clock_timestamp()

-- running --
-- What each holder of a lease does now. A worker of an earlier release says nothing, and leaves what
-- the holder before it said.
SELECT resource, holder, token, acquired_at AS since,
       CASE WHEN told_at >= acquired_at THEN doing::text END AS doing
  FROM rl.leases
 WHERE split_part(resource, '/', 1) IN ('model', 'judge', 'window')
   AND expires_at > rl.clock_timestamp()
 ORDER BY acquired_at, resource
