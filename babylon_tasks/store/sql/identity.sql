-- The database's own id: another one after a dump and restore, and in each database of a server.

-- may_everybody_ask --
-- Asked for the role PUBLIC, not for ours: all roles of a deployment must find the same id, also
-- where only some of them may call the function.
SELECT has_function_privilege('public', 'pg_catalog.pg_control_system()', 'EXECUTE') AS allowed

-- read_id --
-- What initdb drew for the server, and the database's number on it.
SELECT format('%s-%s', s.system_identifier, d.oid) AS id
  FROM pg_catalog.pg_control_system() s
 CROSS JOIN pg_catalog.pg_database d
 WHERE d.datname = current_database()

-- read_id_by_migrations --
-- The moment of the first migration in microseconds, which another deployment does not share, and
-- two numbers that a restored dump is very unlikely to share.
SELECT format('%s-%s-%s', (extract(epoch FROM min(m.applied_at)) * 1000000)::bigint, m.tableoid, d.oid) AS id
  FROM rl.migrations m
 CROSS JOIN pg_catalog.pg_database d
 WHERE d.datname = current_database()
 GROUP BY m.tableoid, d.oid
