-- Keys of the endpoint, and what was used of each.

-- create_api_key --
INSERT INTO rl.api_keys (name, key_hash, requests_per_minute, tokens_per_day, created_by, created_at)
VALUES (%(name)s, %(key_hash)s, %(requests_per_minute)s, %(tokens_per_day)s, %(created_by)s,
        rl.now())
ON CONFLICT (name) DO NOTHING

-- read_api_keys --
SELECT k.name, k.key_hash, k.requests_per_minute, k.tokens_per_day, k.created_by, k.created_at,
       k.revoked_at, COALESCE(u.requests, 0) AS requests_today, COALESCE(u.tokens, 0) AS tokens_today
  FROM rl.api_keys k
  LEFT JOIN rl.api_key_usage u
    ON u.name = k.name AND u.day = (rl.now() AT TIME ZONE 'UTC')::date
 ORDER BY k.name

-- revoke_api_key --
UPDATE rl.api_keys SET revoked_at = COALESCE(revoked_at, rl.now()) WHERE name = %(name)s

-- add_api_key_use --
-- A key that was deleted by hand counts no more.
INSERT INTO rl.api_key_usage AS u (name, day, requests, tokens)
SELECT k.name, (rl.now() AT TIME ZONE 'UTC')::date, %(requests)s, %(tokens)s
  FROM rl.api_keys k WHERE k.name = %(name)s
ON CONFLICT (name, day) DO UPDATE
   SET requests = u.requests + excluded.requests, tokens = u.tokens + excluded.tokens
