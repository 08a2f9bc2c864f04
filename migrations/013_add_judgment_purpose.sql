-- What a judge was asked for, so that a comparison of scorers is not charged to the windows it reads.
--
-- Runs any number of times. A worker of an earlier version asks for scoring only, which is the
-- default. The cost that it writes for a window has comparisons in it.

ALTER TABLE rl.judgments ADD COLUMN IF NOT EXISTS purpose text NOT NULL DEFAULT 'scoring'
    CHECK (purpose IN ('scoring', 'comparison'));
COMMENT ON COLUMN rl.judgments.purpose IS
    'scoring: it is part of its window''s cost; comparison: of `babylon scores compare`. The daily '
    'limit counts both, and either serves the other.';
