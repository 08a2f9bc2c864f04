-- Index builds: how far CREATE INDEX is, which may take minutes on a large table.

-- index_build --
-- What one program builds in this database now: by blocks of the table, then by rows of the index, and
-- while it waits for transactions by these.
SELECT p.index_relid::regclass::text AS index, p.relid::regclass::text AS "table", p.phase,
       CASE WHEN p.lockers_total > 0 THEN p.lockers_done
            WHEN p.tuples_total > 0 THEN p.tuples_done ELSE p.blocks_done END AS done,
       CASE WHEN p.lockers_total > 0 THEN p.lockers_total
            WHEN p.tuples_total > 0 THEN p.tuples_total ELSE p.blocks_total END AS total
  FROM pg_stat_progress_create_index p
  JOIN pg_stat_activity a ON a.pid = p.pid
 WHERE a.application_name = %(application)s AND p.datname = current_database()
 LIMIT 1
