-- What a judge was told to value, beside each of its scores.
--
-- Workers of release 0.1.0 write scores without it. Where one of them scores a window again that a
-- newer worker had scored, the hash of the earlier scoring stays; it is for people, nothing is decided
-- by it.
--
-- Runs any number of times.

ALTER TABLE rl.scores ADD COLUMN IF NOT EXISTS rubric_hash text;
COMMENT ON COLUMN rl.scores.rubric_hash IS
    'The rubric of the judge, as in rl.judgments; NULL: no judge was asked, or release 0.1.0 wrote it.';
