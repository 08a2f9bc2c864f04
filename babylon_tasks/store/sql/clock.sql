-- What is left of a time that has not come yet: Postgres' clock went back. A minute is for clocks that
-- are set a little. Windows: `end_waits` in transitions.sql.

-- shorten_leases --
-- A lease that lasts longer than LEASE_SECONDS allows. Its holder, if it lives, renews it; twice as long
-- may be another role's setting.
UPDATE rl.leases
   SET expires_at = rl.clock_timestamp() + make_interval(secs => %(lease_seconds)s)
 WHERE expires_at > rl.clock_timestamp() + make_interval(secs => 2 * %(lease_seconds)s + 60)

-- put_back_turns --
UPDATE rl.turns SET taken_at = rl.clock_timestamp()
 WHERE taken_at > rl.clock_timestamp() + interval '1 minute'

-- put_back_canaries --
-- What came through then says nothing about now.
UPDATE rl.canaries SET ran_at = rl.clock_timestamp() - (ran_at - rl.clock_timestamp())
 WHERE ran_at > rl.clock_timestamp() + interval '1 minute'
