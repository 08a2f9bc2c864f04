-- A step's cost and how well it used its machine; when it was logged to W&B; and when its files were
-- removed.
--
-- Runs any number of times.

ALTER TABLE rl.steps ADD COLUMN IF NOT EXISTS seconds jsonb NOT NULL DEFAULT '{}';
COMMENT ON COLUMN rl.steps.seconds IS
    'Wall seconds by phase: claim, read, load, tokenize, forward_backward, optimizer, checkpoint, '
    'commit.';

ALTER TABLE rl.steps ADD COLUMN IF NOT EXISTS tokens_per_second double precision;
COMMENT ON COLUMN rl.steps.tokens_per_second IS
    'Context tokens of the step by the seconds of forward, backward and optimizer.';

ALTER TABLE rl.steps ADD COLUMN IF NOT EXISTS mfu double precision;
COMMENT ON COLUMN rl.steps.mfu IS
    'Model FLOPs that the step needed, of those its device could have done in that time by its own '
    'matrix rate; NULL: not known.';

ALTER TABLE rl.steps ADD COLUMN IF NOT EXISTS peak_memory_bytes bigint;
COMMENT ON COLUMN rl.steps.peak_memory_bytes IS
    'Most memory that the step held: of the GPU, or of the trainer process without one.';

ALTER TABLE rl.steps ADD COLUMN IF NOT EXISTS logged_at timestamptz;
COMMENT ON COLUMN rl.steps.logged_at IS 'When its metrics were logged to W&B.';

ALTER TABLE rl.steps ADD COLUMN IF NOT EXISTS removed_at timestamptz;
COMMENT ON COLUMN rl.steps.removed_at IS
    'When its files were removed, as the retention settings say; the row stays.';
