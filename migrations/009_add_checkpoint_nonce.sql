-- Which database a committed step's folder belongs to, so that retention removes no other one's.
--
-- Runs any number of times.

ALTER TABLE rl.steps ADD COLUMN IF NOT EXISTS nonce uuid;
COMMENT ON COLUMN rl.steps.nonce IS
    'What this database wrote into the step''s folder; NULL: not known, so its files are not ours '
    'to remove.';

COMMENT ON COLUMN rl.steps.removed_at IS
    'When its files were given up, as the retention settings say; the row stays.';

COMMENT ON TABLE rl.unfinished_checkpoints IS
    'Folders that no step''s row stands for: written before a checkpoint''s files and deleted with '
    'the commit that names them, written again when retention gives them up. What stays is removed '
    'by the next holder of the model''s lease.';
