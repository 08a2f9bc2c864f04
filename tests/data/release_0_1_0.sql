-- A database of release 0.1.0 (migrations 001 to 010), as `pg_dump --inserts --no-owner` writes it, without
-- its comments: two lineages, trained by that release with TRAINER=noop. babylon-agent has steps 1 to 3, of
-- which 2 serves, and a scored, a skipped and a due window; night-shift has steps 1 and 2. One trace was
-- set aside.
CREATE SCHEMA rl;
CREATE FUNCTION rl.clock_timestamp() RETURNS timestamp with time zone
    LANGUAGE sql PARALLEL SAFE
    AS $$
    SELECT pg_catalog.clock_timestamp()
           + COALESCE(NULLIF(current_setting('rl.clock_offset', true), '')::interval, interval '0')
$$;
COMMENT ON FUNCTION rl.clock_timestamp() IS 'The very moment, shifted by the setting rl.clock_offset.';
CREATE FUNCTION rl.now() RETURNS timestamp with time zone
    LANGUAGE sql STABLE PARALLEL SAFE
    AS $$
    SELECT pg_catalog.now()
           + COALESCE(NULLIF(current_setting('rl.clock_offset', true), '')::interval, interval '0')
$$;
COMMENT ON FUNCTION rl.now() IS 'When the transaction began, shifted by the setting rl.clock_offset.';
CREATE TABLE public."User" (
    id text NOT NULL,
    username text,
    "displayName" text,
    "isAgent" boolean DEFAULT false NOT NULL,
    "createdAt" timestamp(3) without time zone DEFAULT CURRENT_TIMESTAMP NOT NULL,
    "updatedAt" timestamp(3) without time zone NOT NULL
);
CREATE TABLE public.market_outcomes (
    id text NOT NULL,
    "windowId" character varying(50) NOT NULL,
    "stockTicker" character varying(20),
    "startPrice" numeric(10,2),
    "endPrice" numeric(10,2),
    "changePercent" numeric(5,2),
    sentiment character varying(20),
    "newsEvents" jsonb,
    "predictionMarketId" text,
    question text,
    outcome character varying(20),
    "finalProbability" numeric(5,4),
    volume numeric(15,2),
    "createdAt" timestamp(3) without time zone DEFAULT CURRENT_TIMESTAMP NOT NULL
);
CREATE TABLE public.reward_judgments (
    id text NOT NULL,
    "trajectoryId" text NOT NULL,
    "judgeModel" text NOT NULL,
    "judgeVersion" text NOT NULL,
    "overallScore" double precision NOT NULL,
    "componentScoresJson" text,
    rank integer,
    "normalizedScore" double precision,
    "groupId" text,
    reasoning text NOT NULL,
    "strengthsJson" text,
    "weaknessesJson" text,
    "criteriaJson" text NOT NULL,
    "judgedAt" timestamp(3) without time zone DEFAULT CURRENT_TIMESTAMP NOT NULL
);
CREATE TABLE public.trained_models (
    id text NOT NULL,
    "modelId" text NOT NULL,
    version text NOT NULL,
    "baseModel" text NOT NULL,
    "trainingBatch" text,
    status text DEFAULT 'training'::text NOT NULL,
    "deployedAt" timestamp(3) without time zone,
    "archivedAt" timestamp(3) without time zone,
    "storagePath" text NOT NULL,
    "benchmarkScore" double precision,
    accuracy double precision,
    "avgReward" double precision,
    "evalMetrics" jsonb,
    "wandbRunId" text,
    "wandbArtifactId" text,
    "agentsUsing" integer DEFAULT 0 NOT NULL,
    "totalInferences" integer DEFAULT 0 NOT NULL,
    "createdAt" timestamp(3) without time zone DEFAULT CURRENT_TIMESTAMP NOT NULL,
    "updatedAt" timestamp(3) without time zone NOT NULL
);
CREATE TABLE public.training_batches (
    id text NOT NULL,
    "batchId" text NOT NULL,
    "scenarioId" text,
    "baseModel" text NOT NULL,
    "modelVersion" text NOT NULL,
    "trajectoryIds" text NOT NULL,
    "rankingsJson" text,
    "rewardsJson" text NOT NULL,
    "trainingLoss" double precision,
    "policyImprovement" double precision,
    status text DEFAULT 'pending'::text NOT NULL,
    error text,
    "createdAt" timestamp(3) without time zone DEFAULT CURRENT_TIMESTAMP NOT NULL,
    "startedAt" timestamp(3) without time zone,
    "completedAt" timestamp(3) without time zone
);
CREATE TABLE public.trajectories (
    id text NOT NULL,
    "trajectoryId" text NOT NULL,
    "agentId" text NOT NULL,
    "startTime" timestamp(3) without time zone NOT NULL,
    "endTime" timestamp(3) without time zone NOT NULL,
    "durationMs" integer NOT NULL,
    "windowId" character varying(50),
    "windowHours" integer DEFAULT 1 NOT NULL,
    "episodeId" character varying(100),
    "scenarioId" character varying(100),
    "batchId" character varying(100),
    "stepsJson" text NOT NULL,
    "rewardComponentsJson" text NOT NULL,
    "metricsJson" text NOT NULL,
    "metadataJson" text NOT NULL,
    "totalReward" double precision NOT NULL,
    "episodeLength" integer NOT NULL,
    "finalStatus" text NOT NULL,
    "finalBalance" double precision,
    "finalPnL" double precision,
    "tradesExecuted" integer,
    "postsCreated" integer,
    "aiJudgeReward" double precision,
    "aiJudgeReasoning" text,
    "judgedAt" timestamp(3) without time zone,
    "isTrainingData" boolean DEFAULT true NOT NULL,
    "isEvaluation" boolean DEFAULT false NOT NULL,
    "usedInTraining" boolean DEFAULT false NOT NULL,
    "trainedInBatch" text,
    "createdAt" timestamp(3) without time zone DEFAULT CURRENT_TIMESTAMP NOT NULL,
    "updatedAt" timestamp(3) without time zone NOT NULL
);
CREATE TABLE rl.attempts (
    model_name text NOT NULL,
    window_id text NOT NULL COLLATE pg_catalog."C",
    token bigint NOT NULL,
    stage text NOT NULL,
    holder text NOT NULL,
    started_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    ended_at timestamp with time zone,
    outcome text,
    error text,
    CONSTRAINT attempts_check CHECK (((ended_at IS NULL) = (outcome IS NULL))),
    CONSTRAINT attempts_outcome_check CHECK ((outcome = ANY (ARRAY['done'::text, 'skipped'::text, 'error'::text, 'given_back'::text, 'lost'::text]))),
    CONSTRAINT attempts_stage_check CHECK ((stage = ANY (ARRAY['score'::text, 'train'::text])))
);
COMMENT ON TABLE rl.attempts IS 'Every attempt at scoring or training a window: who, when, and how it ended.';
CREATE TABLE rl.canaries (
    model_name text NOT NULL,
    queue text NOT NULL,
    holder text NOT NULL,
    ran_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL
);
COMMENT ON TABLE rl.canaries IS 'When a message last came through Redis, a queue and a worker to Postgres.';
CREATE TABLE rl.heads (
    model_name text NOT NULL,
    step integer DEFAULT 0 NOT NULL,
    published_step integer DEFAULT 0 NOT NULL,
    base_model text NOT NULL,
    CONSTRAINT heads_check CHECK ((published_step <= step))
);
COMMENT ON TABLE rl.heads IS 'One row per model lineage: its newest step and the step that serves (0: the base model).';
CREATE TABLE rl.jobs (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    model_name text NOT NULL,
    step integer NOT NULL,
    token bigint NOT NULL,
    windows jsonb NOT NULL,
    remote_step integer NOT NULL,
    job_id text,
    state text DEFAULT 'intent'::text NOT NULL,
    why text,
    intended_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    posted_at timestamp with time zone,
    ended_at timestamp with time zone,
    CONSTRAINT jobs_check CHECK (((ended_at IS NULL) = (state = ANY (ARRAY['intent'::text, 'posted'::text])))),
    CONSTRAINT jobs_state_check CHECK ((state = ANY (ARRAY['intent'::text, 'posted'::text, 'done'::text, 'refused'::text, 'failed'::text, 'lost'::text, 'abandoned'::text])))
);
COMMENT ON TABLE rl.jobs IS 'Training jobs at W&B, written before each is posted: what a dead worker had begun is found here, and followed to its end by the next holder of the model''s lease.';
CREATE TABLE rl.judgments (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    model_name text NOT NULL,
    window_id text NOT NULL COLLATE pg_catalog."C",
    question text NOT NULL,
    judge_model text NOT NULL,
    rubric_hash text NOT NULL,
    trajectory_ids text[] NOT NULL,
    scores double precision[],
    explanations text[],
    fault text,
    prompt_tokens integer NOT NULL,
    completion_tokens integer NOT NULL,
    usd numeric,
    asked_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT judgments_check CHECK (((fault IS NULL) = (scores IS NOT NULL)))
);
COMMENT ON TABLE rl.judgments IS 'Every answer that a judge was paid for: the good ones are not bought twice, all of them count towards the daily limit.';
CREATE SEQUENCE rl.lease_tokens
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
COMMENT ON SEQUENCE rl.lease_tokens IS 'Fencing tokens of rl.leases; they only grow.';
CREATE TABLE rl.leases (
    resource text NOT NULL,
    holder text,
    token bigint NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    acquired_at timestamp with time zone DEFAULT now() NOT NULL
);
COMMENT ON TABLE rl.leases IS 'Who may write a resource now; a write carries the token, so a late one matches no row.';
CREATE TABLE rl.logprobs (
    model_name text NOT NULL,
    trajectory_id text NOT NULL,
    call_hash text NOT NULL,
    window_id text NOT NULL COLLATE pg_catalog."C",
    asked_of text NOT NULL,
    token_ids integer[] NOT NULL,
    logprobs double precision[] NOT NULL,
    at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT logprobs_check CHECK ((cardinality(token_ids) = cardinality(logprobs)))
);
COMMENT ON TABLE rl.logprobs IS 'What LOGPROBS_URL said of recorded LLM calls: asked while their window is scored, and not asked again after a crash. Gone with the commit of the step that trained them.';
CREATE TABLE rl.migrations (
    name text NOT NULL,
    applied_at timestamp with time zone DEFAULT now() NOT NULL
);
COMMENT ON TABLE rl.migrations IS 'Which files of migrations/ this database has seen.';
CREATE TABLE rl.quarantine (
    trajectory_id text NOT NULL,
    window_id text COLLATE pg_catalog."C",
    reason text NOT NULL,
    detail text,
    at timestamp with time zone DEFAULT now() NOT NULL
);
COMMENT ON TABLE rl.quarantine IS 'Trajectories set aside because they cannot be read, each with its reason.';
CREATE TABLE rl.scores (
    trajectory_id text NOT NULL,
    model_name text NOT NULL,
    scorer text NOT NULL,
    window_id text NOT NULL COLLATE pg_catalog."C",
    agent_id text NOT NULL,
    score double precision NOT NULL,
    raw_score double precision,
    components jsonb,
    reasoning text,
    content_hash text NOT NULL,
    judge_model text,
    judge_tokens integer,
    judge_usd numeric,
    scored_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT scores_score_check CHECK (((score >= (0)::double precision) AND (score <= (1)::double precision) AND (score <> 'NaN'::double precision)))
);
COMMENT ON TABLE rl.scores IS 'What a scorer thought of one trajectory, of exactly which text, and what asking cost.';
CREATE TABLE rl.steps (
    model_name text NOT NULL,
    step integer NOT NULL,
    token bigint NOT NULL,
    trainer text NOT NULL,
    window_ids text[] NOT NULL,
    trajectories integer NOT NULL,
    trainable_tokens bigint NOT NULL,
    metrics jsonb DEFAULT '{}'::jsonb NOT NULL,
    gpu_seconds double precision DEFAULT 0 NOT NULL,
    cost_usd numeric,
    checkpoint text,
    version text,
    started_at timestamp with time zone NOT NULL,
    committed_at timestamp with time zone DEFAULT now() NOT NULL,
    seconds jsonb DEFAULT '{}'::jsonb NOT NULL,
    tokens_per_second double precision,
    mfu double precision,
    peak_memory_bytes bigint,
    logged_at timestamp with time zone,
    removed_at timestamp with time zone,
    nonce uuid,
    CONSTRAINT steps_step_check CHECK ((step >= 1))
);
COMMENT ON TABLE rl.steps IS 'Every committed training step: from which windows, by whom, at what cost, to which files.';
COMMENT ON COLUMN rl.steps.seconds IS 'Wall seconds by phase: claim, read, load, tokenize, forward_backward, optimizer, checkpoint, commit.';
COMMENT ON COLUMN rl.steps.tokens_per_second IS 'Context tokens of the step by the seconds of forward, backward and optimizer.';
COMMENT ON COLUMN rl.steps.mfu IS 'Model FLOPs that the step needed, of those its device could have done in that time by its own matrix rate; NULL: not known.';
COMMENT ON COLUMN rl.steps.peak_memory_bytes IS 'Most memory that the step held: of the GPU, or of the trainer process without one.';
COMMENT ON COLUMN rl.steps.logged_at IS 'When its metrics were logged to W&B.';
COMMENT ON COLUMN rl.steps.removed_at IS 'When its files were given up, as the retention settings say; the row stays.';
COMMENT ON COLUMN rl.steps.nonce IS 'What this database wrote into the step''s folder; NULL: not known, so its files are not ours to remove.';
CREATE TABLE rl.unfinished_checkpoints (
    checkpoint text NOT NULL,
    model_name text NOT NULL,
    token bigint NOT NULL,
    nonce uuid NOT NULL,
    started_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL
);
COMMENT ON TABLE rl.unfinished_checkpoints IS 'Folders that no step''s row stands for: written before a checkpoint''s files and deleted with the commit that names them, written again when retention gives them up. What stays is removed by the next holder of the model''s lease.';
CREATE TABLE rl.windows (
    window_id text NOT NULL COLLATE pg_catalog."C",
    model_name text NOT NULL,
    state text NOT NULL,
    scorer text,
    score_rev integer DEFAULT 0 NOT NULL,
    attempts integer DEFAULT 0 NOT NULL,
    not_before timestamp with time zone DEFAULT now() NOT NULL,
    last_error text,
    reason text,
    batch_id text,
    trained_step integer,
    agents integer DEFAULT 0 NOT NULL,
    trajectories integer DEFAULT 0 NOT NULL,
    late integer DEFAULT 0 NOT NULL,
    text_bytes bigint DEFAULT 0 NOT NULL,
    due_at timestamp with time zone DEFAULT now() NOT NULL,
    scored_at timestamp with time zone,
    trained_at timestamp with time zone,
    skipped_at timestamp with time zone,
    failed_at timestamp with time zone,
    claimed_by text,
    may_share integer,
    scoring text,
    funnel jsonb DEFAULT '{}'::jsonb NOT NULL,
    CONSTRAINT windows_state_check CHECK ((state = ANY (ARRAY['due'::text, 'scored'::text, 'trained'::text, 'skipped'::text, 'failed'::text])))
);
COMMENT ON TABLE rl.windows IS 'One row per hour of agents and model lineage: how far its training is, and why not further.';
COMMENT ON COLUMN rl.windows.may_share IS 'How many windows may train together with this one, itself included; NULL: any number.';
COMMENT ON COLUMN rl.windows.scoring IS 'How this window is to be scored, as asked for by hand; NULL: as the workers'' SCORING says.';
COMMENT ON COLUMN rl.windows.funnel IS 'From rows to trained tokens: what was left out of this window, counted by the reason.';
INSERT INTO public."User" VALUES ('agent-0', 'agent-0', NULL, false, '2026-11-28 09:32:25.039', '2026-11-28 09:32:25.039');
INSERT INTO public."User" VALUES ('agent-1', 'agent-1', NULL, false, '2026-11-28 09:32:25.053', '2026-11-28 09:32:25.053');
INSERT INTO public."User" VALUES ('agent-2', 'agent-2', NULL, false, '2026-11-28 09:32:25.058', '2026-11-28 09:32:25.058');
INSERT INTO public."User" VALUES ('agent-bad', 'agent-bad', NULL, false, '2026-11-28 09:32:26.034', '2026-11-28 09:32:26.034');
INSERT INTO public.trained_models VALUES ('babylon-agent-v1.0.0', 'babylon-agent-v1.0.0', 'v1.0.0', 'OpenPipe/Qwen3-14B-Instruct', 'babylon-agent-step-1-3', 'ready', NULL, NULL, '/srv/checkpoints/babylon-agent/1-3', NULL, NULL, 0.48499999999999993, NULL, NULL, NULL, 0, 0, '2026-11-28 09:32:25.569', '2026-11-28 09:32:25.615');
INSERT INTO public.trained_models VALUES ('babylon-agent-v1.0.1', 'babylon-agent-v1.0.1', 'v1.0.1', 'OpenPipe/Qwen3-14B-Instruct', 'babylon-agent-step-2-6', 'ready', NULL, NULL, '/srv/checkpoints/babylon-agent/2-6', NULL, NULL, 0.48499999999999993, NULL, NULL, NULL, 0, 0, '2026-11-28 09:32:25.764', '2026-11-28 09:32:25.793');
INSERT INTO public.trained_models VALUES ('babylon-agent-v1.0.2', 'babylon-agent-v1.0.2', 'v1.0.2', 'OpenPipe/Qwen3-14B-Instruct', 'babylon-agent-step-3-9', 'training', NULL, NULL, '/srv/checkpoints/babylon-agent/3-9', NULL, NULL, 0.48499999999999993, NULL, NULL, NULL, 0, 0, '2026-11-28 09:32:25.993', '2026-11-28 09:32:25.993');
INSERT INTO public.training_batches VALUES ('babylon-agent-step-1-3', 'babylon-agent-step-1-3', '2026-11-20T01:00', 'OpenPipe/Qwen3-14B-Instruct', 'v1.0.0', '["t-1000001", "t-1000002", "t-1000003"]', NULL, '[0.21000000000000002, 0.585, 0.6599999999999999]', 0, NULL, 'completed', NULL, '2026-11-28 09:32:25.569', '2026-11-28 09:32:25.17', '2026-11-28 09:32:25.569');
INSERT INTO public.training_batches VALUES ('babylon-agent-step-2-6', 'babylon-agent-step-2-6', '2026-11-20T02:00', 'OpenPipe/Qwen3-14B-Instruct', 'v1.0.1', '["t-1000004", "t-1000005", "t-1000006"]', NULL, '[0.21000000000000002, 0.585, 0.6599999999999999]', 0, NULL, 'completed', NULL, '2026-11-28 09:32:25.764', '2026-11-28 09:32:25.694', '2026-11-28 09:32:25.764');
INSERT INTO public.training_batches VALUES ('babylon-agent-step-3-9', 'babylon-agent-step-3-9', '2026-11-20T03:00', 'OpenPipe/Qwen3-14B-Instruct', 'v1.0.2', '["t-1000007", "t-1000008", "t-1000009"]', NULL, '[0.21000000000000002, 0.585, 0.6599999999999999]', 0, NULL, 'completed', NULL, '2026-11-28 09:32:25.993', '2026-11-28 09:32:25.892', '2026-11-28 09:32:25.993');
INSERT INTO public.trajectories VALUES ('row-1000001', 't-1000001', 'agent-0', '2026-11-28 09:32:25.028', '2026-11-28 09:32:25.028', 1, '2026-11-20T01:00', 1, NULL, '2026-11-20T01:00', NULL, '[{"stepNumber": 0, "environmentState": {"agentBalance": 1000, "agentPnL": -200.0}, "llmCalls": [{"systemPrompt": "S", "userPrompt": "U", "response": "BUY"}], "action": {"actionType": "BUY_SHARES", "success": true}}]', '{}', '{}', '{}', 0, 3, 'completed', NULL, NULL, NULL, NULL, 0.21000000000000002, 'heuristic: P&L -200.00 (0.40), win rate 0%, 1 actions (0.05)', '2026-11-28 09:32:25.15', true, false, true, 'babylon-agent-step-1-3', '2026-11-28 09:32:25.039', '2026-11-28 09:32:25.569');
INSERT INTO public.trajectories VALUES ('row-1000002', 't-1000002', 'agent-1', '2026-11-28 09:32:25.053', '2026-11-28 09:32:25.053', 1, '2026-11-20T01:00', 1, NULL, '2026-11-20T01:00', NULL, '[{"stepNumber": 0, "environmentState": {"agentBalance": 1000, "agentPnL": 100.0}, "llmCalls": [{"systemPrompt": "S", "userPrompt": "U", "response": "BUY"}], "action": {"actionType": "BUY_SHARES", "success": true}}]', '{}', '{}', '{}', 0, 3, 'completed', NULL, NULL, NULL, NULL, 0.585, 'heuristic: P&L +100.00 (0.55), win rate 100%, 1 actions (0.05)', '2026-11-28 09:32:25.15', true, false, true, 'babylon-agent-step-1-3', '2026-11-28 09:32:25.053', '2026-11-28 09:32:25.569');
INSERT INTO public.trajectories VALUES ('row-1000003', 't-1000003', 'agent-2', '2026-11-28 09:32:25.057', '2026-11-28 09:32:25.057', 1, '2026-11-20T01:00', 1, NULL, '2026-11-20T01:00', NULL, '[{"stepNumber": 0, "environmentState": {"agentBalance": 1000, "agentPnL": 400.0}, "llmCalls": [{"systemPrompt": "S", "userPrompt": "U", "response": "BUY"}], "action": {"actionType": "BUY_SHARES", "success": true}}]', '{}', '{}', '{}', 0, 3, 'completed', NULL, NULL, NULL, NULL, 0.6599999999999999, 'heuristic: P&L +400.00 (0.70), win rate 100%, 1 actions (0.05)', '2026-11-28 09:32:25.15', true, false, true, 'babylon-agent-step-1-3', '2026-11-28 09:32:25.058', '2026-11-28 09:32:25.569');
INSERT INTO public.trajectories VALUES ('row-1000004', 't-1000004', 'agent-0', '2026-11-28 09:32:25.618', '2026-11-28 09:32:25.618', 1, '2026-11-20T02:00', 1, NULL, '2026-11-20T02:00', NULL, '[{"stepNumber": 0, "environmentState": {"agentBalance": 1000, "agentPnL": -200.0}, "llmCalls": [{"systemPrompt": "S", "userPrompt": "U", "response": "BUY"}], "action": {"actionType": "BUY_SHARES", "success": true}}]', '{}', '{}', '{}', 0, 3, 'completed', NULL, NULL, NULL, NULL, 0.21000000000000002, 'heuristic: P&L -200.00 (0.40), win rate 0%, 1 actions (0.05)', '2026-11-28 09:32:25.681', true, false, true, 'babylon-agent-step-2-6', '2026-11-28 09:32:25.622', '2026-11-28 09:32:25.764');
INSERT INTO public.trajectories VALUES ('row-1000005', 't-1000005', 'agent-1', '2026-11-28 09:32:25.638', '2026-11-28 09:32:25.638', 1, '2026-11-20T02:00', 1, NULL, '2026-11-20T02:00', NULL, '[{"stepNumber": 0, "environmentState": {"agentBalance": 1000, "agentPnL": 100.0}, "llmCalls": [{"systemPrompt": "S", "userPrompt": "U", "response": "BUY"}], "action": {"actionType": "BUY_SHARES", "success": true}}]', '{}', '{}', '{}', 0, 3, 'completed', NULL, NULL, NULL, NULL, 0.585, 'heuristic: P&L +100.00 (0.55), win rate 100%, 1 actions (0.05)', '2026-11-28 09:32:25.681', true, false, true, 'babylon-agent-step-2-6', '2026-11-28 09:32:25.645', '2026-11-28 09:32:25.764');
INSERT INTO public.trajectories VALUES ('row-1000006', 't-1000006', 'agent-2', '2026-11-28 09:32:25.649', '2026-11-28 09:32:25.649', 1, '2026-11-20T02:00', 1, NULL, '2026-11-20T02:00', NULL, '[{"stepNumber": 0, "environmentState": {"agentBalance": 1000, "agentPnL": 400.0}, "llmCalls": [{"systemPrompt": "S", "userPrompt": "U", "response": "BUY"}], "action": {"actionType": "BUY_SHARES", "success": true}}]', '{}', '{}', '{}', 0, 3, 'completed', NULL, NULL, NULL, NULL, 0.6599999999999999, 'heuristic: P&L +400.00 (0.70), win rate 100%, 1 actions (0.05)', '2026-11-28 09:32:25.681', true, false, true, 'babylon-agent-step-2-6', '2026-11-28 09:32:25.649', '2026-11-28 09:32:25.764');
INSERT INTO public.trajectories VALUES ('row-1000007', 't-1000007', 'agent-0', '2026-11-28 09:32:25.797', '2026-11-28 09:32:25.797', 1, '2026-11-20T03:00', 1, NULL, '2026-11-20T03:00', NULL, '[{"stepNumber": 0, "environmentState": {"agentBalance": 1000, "agentPnL": -200.0}, "llmCalls": [{"systemPrompt": "S", "userPrompt": "U", "response": "BUY"}], "action": {"actionType": "BUY_SHARES", "success": true}}]', '{}', '{}', '{}', 0, 3, 'completed', NULL, NULL, NULL, NULL, 0.21000000000000002, 'heuristic: P&L -200.00 (0.40), win rate 0%, 1 actions (0.05)', '2026-11-28 09:32:25.87', true, false, true, 'babylon-agent-step-3-9', '2026-11-28 09:32:25.797', '2026-11-28 09:32:25.993');
INSERT INTO public.trajectories VALUES ('row-1000008', 't-1000008', 'agent-1', '2026-11-28 09:32:25.801', '2026-11-28 09:32:25.801', 1, '2026-11-20T03:00', 1, NULL, '2026-11-20T03:00', NULL, '[{"stepNumber": 0, "environmentState": {"agentBalance": 1000, "agentPnL": 100.0}, "llmCalls": [{"systemPrompt": "S", "userPrompt": "U", "response": "BUY"}], "action": {"actionType": "BUY_SHARES", "success": true}}]', '{}', '{}', '{}', 0, 3, 'completed', NULL, NULL, NULL, NULL, 0.585, 'heuristic: P&L +100.00 (0.55), win rate 100%, 1 actions (0.05)', '2026-11-28 09:32:25.87', true, false, true, 'babylon-agent-step-3-9', '2026-11-28 09:32:25.801', '2026-11-28 09:32:25.993');
INSERT INTO public.trajectories VALUES ('row-1000009', 't-1000009', 'agent-2', '2026-11-28 09:32:25.805', '2026-11-28 09:32:25.805', 1, '2026-11-20T03:00', 1, NULL, '2026-11-20T03:00', NULL, '[{"stepNumber": 0, "environmentState": {"agentBalance": 1000, "agentPnL": 400.0}, "llmCalls": [{"systemPrompt": "S", "userPrompt": "U", "response": "BUY"}], "action": {"actionType": "BUY_SHARES", "success": true}}]', '{}', '{}', '{}', 0, 3, 'completed', NULL, NULL, NULL, NULL, 0.6599999999999999, 'heuristic: P&L +400.00 (0.70), win rate 100%, 1 actions (0.05)', '2026-11-28 09:32:25.87', true, false, true, 'babylon-agent-step-3-9', '2026-11-28 09:32:25.809', '2026-11-28 09:32:25.993');
INSERT INTO public.trajectories VALUES ('row-1000010', 't-1000010', 'agent-bad', '2026-11-28 09:32:26.033', '2026-11-28 09:32:26.033', 1, '2026-11-20T04:00', 1, NULL, '2026-11-20T04:00', NULL, '[{"llmCalls": [', '{}', '{}', '{}', 0, 3, 'completed', NULL, NULL, NULL, NULL, NULL, NULL, NULL, true, false, false, NULL, '2026-11-28 09:32:26.034', '2026-11-28 09:32:26.033');
INSERT INTO public.trajectories VALUES ('row-1000011', 't-1000011', 'agent-0', '2026-11-28 09:32:26.037', '2026-11-28 09:32:26.037', 1, '2026-11-20T04:00', 1, NULL, '2026-11-20T04:00', NULL, '[{"stepNumber": 0, "environmentState": {"agentBalance": 1000, "agentPnL": -200.0}, "llmCalls": [{"systemPrompt": "S", "userPrompt": "U", "response": "BUY"}], "action": {"actionType": "BUY_SHARES", "success": true}}]', '{}', '{}', '{}', 0, 3, 'completed', NULL, NULL, NULL, NULL, NULL, NULL, NULL, true, false, false, NULL, '2026-11-28 09:32:26.041', '2026-11-28 09:32:26.037');
INSERT INTO public.trajectories VALUES ('row-1000012', 't-1000012', 'agent-1', '2026-11-28 09:32:26.045', '2026-11-28 09:32:26.045', 1, '2026-11-20T04:00', 1, NULL, '2026-11-20T04:00', NULL, '[{"stepNumber": 0, "environmentState": {"agentBalance": 1000, "agentPnL": 100.0}, "llmCalls": [{"systemPrompt": "S", "userPrompt": "U", "response": "BUY"}], "action": {"actionType": "BUY_SHARES", "success": true}}]', '{}', '{}', '{}', 0, 3, 'completed', NULL, NULL, NULL, NULL, NULL, NULL, NULL, true, false, false, NULL, '2026-11-28 09:32:26.045', '2026-11-28 09:32:26.045');
INSERT INTO public.trajectories VALUES ('row-1000013', 't-1000013', 'agent-2', '2026-11-28 09:32:26.047', '2026-11-28 09:32:26.047', 1, '2026-11-20T04:00', 1, NULL, '2026-11-20T04:00', NULL, '[{"stepNumber": 0, "environmentState": {"agentBalance": 1000, "agentPnL": 400.0}, "llmCalls": [{"systemPrompt": "S", "userPrompt": "U", "response": "BUY"}], "action": {"actionType": "BUY_SHARES", "success": true}}]', '{}', '{}', '{}', 0, 3, 'completed', NULL, NULL, NULL, NULL, NULL, NULL, NULL, true, false, false, NULL, '2026-11-28 09:32:26.053', '2026-11-28 09:32:26.047');
INSERT INTO public.trajectories VALUES ('row-1000014', 't-1000014', 'agent-0', '2026-11-28 09:32:26.583', '2026-11-28 09:32:26.583', 1, '2026-11-20T05:00', 1, NULL, '2026-11-20T05:00', NULL, '[{"stepNumber": 0, "environmentState": {"agentBalance": 1000, "agentPnL": -200.0}, "llmCalls": [{"systemPrompt": "S", "userPrompt": "U", "response": "BUY"}], "action": {"actionType": "BUY_SHARES", "success": true}}]', '{}', '{}', '{}', 0, 3, 'completed', NULL, NULL, NULL, NULL, NULL, NULL, NULL, true, false, false, NULL, '2026-11-28 09:32:26.585', '2026-11-28 09:32:26.583');
INSERT INTO public.trajectories VALUES ('row-1000015', 't-1000015', 'agent-1', '2026-11-28 09:32:26.589', '2026-11-28 09:32:26.589', 1, '2026-11-20T05:00', 1, NULL, '2026-11-20T05:00', NULL, '[{"stepNumber": 0, "environmentState": {"agentBalance": 1000, "agentPnL": -200.0}, "llmCalls": [{"systemPrompt": "S", "userPrompt": "U", "response": "BUY"}], "action": {"actionType": "BUY_SHARES", "success": true}}]', '{}', '{}', '{}', 0, 3, 'completed', NULL, NULL, NULL, NULL, NULL, NULL, NULL, true, false, false, NULL, '2026-11-28 09:32:26.593', '2026-11-28 09:32:26.589');
INSERT INTO public.trajectories VALUES ('row-1000016', 't-1000016', 'agent-2', '2026-11-28 09:32:26.596', '2026-11-28 09:32:26.596', 1, '2026-11-20T05:00', 1, NULL, '2026-11-20T05:00', NULL, '[{"stepNumber": 0, "environmentState": {"agentBalance": 1000, "agentPnL": -200.0}, "llmCalls": [{"systemPrompt": "S", "userPrompt": "U", "response": "BUY"}], "action": {"actionType": "BUY_SHARES", "success": true}}]', '{}', '{}', '{}', 0, 3, 'completed', NULL, NULL, NULL, NULL, NULL, NULL, NULL, true, false, false, NULL, '2026-11-28 09:32:26.601', '2026-11-28 09:32:26.596');
INSERT INTO public.trajectories VALUES ('row-1000017', 't-1000017', 'agent-0', '2026-11-28 09:32:26.649', '2026-11-28 09:32:26.649', 1, '2026-11-20T06:00', 1, NULL, '2026-11-20T06:00', NULL, '[{"stepNumber": 0, "environmentState": {"agentBalance": 1000, "agentPnL": -200.0}, "llmCalls": [{"systemPrompt": "S", "userPrompt": "U", "response": "BUY"}], "action": {"actionType": "BUY_SHARES", "success": true}}]', '{}', '{}', '{}', 0, 3, 'completed', NULL, NULL, NULL, NULL, NULL, NULL, NULL, true, false, false, NULL, '2026-11-28 09:32:26.653', '2026-11-28 09:32:26.649');
INSERT INTO public.trajectories VALUES ('row-1000018', 't-1000018', 'agent-1', '2026-11-28 09:32:26.657', '2026-11-28 09:32:26.657', 1, '2026-11-20T06:00', 1, NULL, '2026-11-20T06:00', NULL, '[{"stepNumber": 0, "environmentState": {"agentBalance": 1000, "agentPnL": 100.0}, "llmCalls": [{"systemPrompt": "S", "userPrompt": "U", "response": "BUY"}], "action": {"actionType": "BUY_SHARES", "success": true}}]', '{}', '{}', '{}', 0, 3, 'completed', NULL, NULL, NULL, NULL, NULL, NULL, NULL, true, false, false, NULL, '2026-11-28 09:32:26.661', '2026-11-28 09:32:26.657');
INSERT INTO public.trajectories VALUES ('row-1000019', 't-1000019', 'agent-2', '2026-11-28 09:32:26.665', '2026-11-28 09:32:26.665', 1, '2026-11-20T06:00', 1, NULL, '2026-11-20T06:00', NULL, '[{"stepNumber": 0, "environmentState": {"agentBalance": 1000, "agentPnL": 400.0}, "llmCalls": [{"systemPrompt": "S", "userPrompt": "U", "response": "BUY"}], "action": {"actionType": "BUY_SHARES", "success": true}}]', '{}', '{}', '{}', 0, 3, 'completed', NULL, NULL, NULL, NULL, NULL, NULL, NULL, true, false, false, NULL, '2026-11-28 09:32:26.665', '2026-11-28 09:32:26.665');
INSERT INTO rl.attempts VALUES ('babylon-agent', '2026-11-20T01:00', 1, 'score', 'trainer-1:100', '2026-11-28 09:32:25.104267+00', '2026-11-28 09:32:25.159252+00', 'done', NULL);
INSERT INTO rl.attempts VALUES ('babylon-agent', '2026-11-20T01:00', 3, 'train', 'trainer-1:100', '2026-11-28 09:32:25.235615+00', '2026-11-28 09:32:25.578398+00', 'done', NULL);
INSERT INTO rl.attempts VALUES ('babylon-agent', '2026-11-20T02:00', 4, 'score', 'trainer-1:100', '2026-11-28 09:32:25.664382+00', '2026-11-28 09:32:25.683533+00', 'done', NULL);
INSERT INTO rl.attempts VALUES ('babylon-agent', '2026-11-20T02:00', 6, 'train', 'trainer-1:100', '2026-11-28 09:32:25.718508+00', '2026-11-28 09:32:25.770079+00', 'done', NULL);
INSERT INTO rl.attempts VALUES ('babylon-agent', '2026-11-20T03:00', 7, 'score', 'trainer-1:100', '2026-11-28 09:32:25.834859+00', '2026-11-28 09:32:25.87239+00', 'done', NULL);
INSERT INTO rl.attempts VALUES ('babylon-agent', '2026-11-20T03:00', 9, 'train', 'trainer-1:100', '2026-11-28 09:32:25.911242+00', '2026-11-28 09:32:26.001691+00', 'done', NULL);
INSERT INTO rl.attempts VALUES ('night-shift', '2026-11-20T01:00', 10, 'score', 'trainer-1:101', '2026-11-28 09:32:26.098403+00', '2026-11-28 09:32:26.132802+00', 'done', NULL);
INSERT INTO rl.attempts VALUES ('night-shift', '2026-11-20T01:00', 12, 'train', 'trainer-1:101', '2026-11-28 09:32:26.157656+00', '2026-11-28 09:32:26.250485+00', 'done', NULL);
INSERT INTO rl.attempts VALUES ('night-shift', '2026-11-20T04:00', 13, 'score', 'trainer-1:101', '2026-11-28 09:32:26.306438+00', '2026-11-28 09:32:26.375541+00', 'done', NULL);
INSERT INTO rl.attempts VALUES ('night-shift', '2026-11-20T04:00', 15, 'train', 'trainer-1:101', '2026-11-28 09:32:26.409836+00', '2026-11-28 09:32:26.519045+00', 'done', NULL);
INSERT INTO rl.attempts VALUES ('babylon-agent', '2026-11-20T04:00', 16, 'score', 'trainer-1:100', '2026-11-28 09:32:26.550537+00', '2026-11-28 09:32:26.578454+00', 'done', NULL);
INSERT INTO rl.attempts VALUES ('babylon-agent', '2026-11-20T05:00', 17, 'score', 'trainer-1:100', '2026-11-28 09:32:26.615781+00', '2026-11-28 09:32:26.641165+00', 'skipped', 'no signal: rewards spread 0.0000, below MIN_REWARD_SPREAD=0.01');
INSERT INTO rl.heads VALUES ('babylon-agent', 3, 2, 'OpenPipe/Qwen3-14B-Instruct');
INSERT INTO rl.heads VALUES ('night-shift', 2, 2, 'Qwen/Qwen3-0.6B');
INSERT INTO rl.migrations VALUES ('001_add_babylon_tables', '2026-11-28 09:32:24.866871+00');
INSERT INTO rl.migrations VALUES ('002_add_self_hosted_tables', '2026-11-28 09:32:24.896863+00');
INSERT INTO rl.migrations VALUES ('003_index_trajectory_windows', '2026-11-28 09:32:24.944931+00');
INSERT INTO rl.migrations VALUES ('004_add_attempts', '2026-11-28 09:32:24.948919+00');
INSERT INTO rl.migrations VALUES ('005_add_judgments', '2026-11-28 09:32:24.964836+00');
INSERT INTO rl.migrations VALUES ('006_add_step_economics', '2026-11-28 09:32:24.97549+00');
INSERT INTO rl.migrations VALUES ('007_add_jobs', '2026-11-28 09:32:24.988909+00');
INSERT INTO rl.migrations VALUES ('008_add_logprobs', '2026-11-28 09:32:24.996901+00');
INSERT INTO rl.migrations VALUES ('009_add_checkpoint_nonce', '2026-11-28 09:32:25.004869+00');
INSERT INTO rl.migrations VALUES ('010_add_clock', '2026-11-28 09:32:25.008825+00');
INSERT INTO rl.quarantine VALUES ('t-1000010', '2026-11-20T04:00', 'bad_json', 'Expecting value: line 1 column 16 (char 15)', '2026-11-28 09:32:26.575308+00');
INSERT INTO rl.scores VALUES ('t-1000001', 'babylon-agent', 'heuristic', '2026-11-20T01:00', 'agent-0', 0.21000000000000002, 0.21000000000000002, '{"pnl": 0.4, "activity": 0.05, "win_rate": 0.0}', 'heuristic: P&L -200.00 (0.40), win rate 0%, 1 actions (0.05)', '78cd2f9c8986c9bf2353628c82b028a1', NULL, NULL, NULL, '2026-11-28 09:32:25.150358+00');
INSERT INTO rl.scores VALUES ('t-1000002', 'babylon-agent', 'heuristic', '2026-11-20T01:00', 'agent-1', 0.585, 0.585, '{"pnl": 0.55, "activity": 0.05, "win_rate": 1.0}', 'heuristic: P&L +100.00 (0.55), win rate 100%, 1 actions (0.05)', '78cd2f9c8986c9bf2353628c82b028a1', NULL, NULL, NULL, '2026-11-28 09:32:25.150358+00');
INSERT INTO rl.scores VALUES ('t-1000003', 'babylon-agent', 'heuristic', '2026-11-20T01:00', 'agent-2', 0.6599999999999999, 0.6599999999999999, '{"pnl": 0.7, "activity": 0.05, "win_rate": 1.0}', 'heuristic: P&L +400.00 (0.70), win rate 100%, 1 actions (0.05)', '78cd2f9c8986c9bf2353628c82b028a1', NULL, NULL, NULL, '2026-11-28 09:32:25.150358+00');
INSERT INTO rl.scores VALUES ('t-1000004', 'babylon-agent', 'heuristic', '2026-11-20T02:00', 'agent-0', 0.21000000000000002, 0.21000000000000002, '{"pnl": 0.4, "activity": 0.05, "win_rate": 0.0}', 'heuristic: P&L -200.00 (0.40), win rate 0%, 1 actions (0.05)', '78cd2f9c8986c9bf2353628c82b028a1', NULL, NULL, NULL, '2026-11-28 09:32:25.681103+00');
INSERT INTO rl.scores VALUES ('t-1000005', 'babylon-agent', 'heuristic', '2026-11-20T02:00', 'agent-1', 0.585, 0.585, '{"pnl": 0.55, "activity": 0.05, "win_rate": 1.0}', 'heuristic: P&L +100.00 (0.55), win rate 100%, 1 actions (0.05)', '78cd2f9c8986c9bf2353628c82b028a1', NULL, NULL, NULL, '2026-11-28 09:32:25.681103+00');
INSERT INTO rl.scores VALUES ('t-1000006', 'babylon-agent', 'heuristic', '2026-11-20T02:00', 'agent-2', 0.6599999999999999, 0.6599999999999999, '{"pnl": 0.7, "activity": 0.05, "win_rate": 1.0}', 'heuristic: P&L +400.00 (0.70), win rate 100%, 1 actions (0.05)', '78cd2f9c8986c9bf2353628c82b028a1', NULL, NULL, NULL, '2026-11-28 09:32:25.681103+00');
INSERT INTO rl.scores VALUES ('t-1000007', 'babylon-agent', 'heuristic', '2026-11-20T03:00', 'agent-0', 0.21000000000000002, 0.21000000000000002, '{"pnl": 0.4, "activity": 0.05, "win_rate": 0.0}', 'heuristic: P&L -200.00 (0.40), win rate 0%, 1 actions (0.05)', '78cd2f9c8986c9bf2353628c82b028a1', NULL, NULL, NULL, '2026-11-28 09:32:25.869767+00');
INSERT INTO rl.scores VALUES ('t-1000008', 'babylon-agent', 'heuristic', '2026-11-20T03:00', 'agent-1', 0.585, 0.585, '{"pnl": 0.55, "activity": 0.05, "win_rate": 1.0}', 'heuristic: P&L +100.00 (0.55), win rate 100%, 1 actions (0.05)', '78cd2f9c8986c9bf2353628c82b028a1', NULL, NULL, NULL, '2026-11-28 09:32:25.869767+00');
INSERT INTO rl.scores VALUES ('t-1000009', 'babylon-agent', 'heuristic', '2026-11-20T03:00', 'agent-2', 0.6599999999999999, 0.6599999999999999, '{"pnl": 0.7, "activity": 0.05, "win_rate": 1.0}', 'heuristic: P&L +400.00 (0.70), win rate 100%, 1 actions (0.05)', '78cd2f9c8986c9bf2353628c82b028a1', NULL, NULL, NULL, '2026-11-28 09:32:25.869767+00');
INSERT INTO rl.scores VALUES ('t-1000001', 'night-shift', 'heuristic', '2026-11-20T01:00', 'agent-0', 0.21000000000000002, 0.21000000000000002, '{"pnl": 0.4, "activity": 0.05, "win_rate": 0.0}', 'heuristic: P&L -200.00 (0.40), win rate 0%, 1 actions (0.05)', '78cd2f9c8986c9bf2353628c82b028a1', NULL, NULL, NULL, '2026-11-28 09:32:26.129163+00');
INSERT INTO rl.scores VALUES ('t-1000002', 'night-shift', 'heuristic', '2026-11-20T01:00', 'agent-1', 0.585, 0.585, '{"pnl": 0.55, "activity": 0.05, "win_rate": 1.0}', 'heuristic: P&L +100.00 (0.55), win rate 100%, 1 actions (0.05)', '78cd2f9c8986c9bf2353628c82b028a1', NULL, NULL, NULL, '2026-11-28 09:32:26.129163+00');
INSERT INTO rl.scores VALUES ('t-1000003', 'night-shift', 'heuristic', '2026-11-20T01:00', 'agent-2', 0.6599999999999999, 0.6599999999999999, '{"pnl": 0.7, "activity": 0.05, "win_rate": 1.0}', 'heuristic: P&L +400.00 (0.70), win rate 100%, 1 actions (0.05)', '78cd2f9c8986c9bf2353628c82b028a1', NULL, NULL, NULL, '2026-11-28 09:32:26.129163+00');
INSERT INTO rl.scores VALUES ('t-1000011', 'night-shift', 'heuristic', '2026-11-20T04:00', 'agent-0', 0.21000000000000002, 0.21000000000000002, '{"pnl": 0.4, "activity": 0.05, "win_rate": 0.0}', 'heuristic: P&L -200.00 (0.40), win rate 0%, 1 actions (0.05)', '78cd2f9c8986c9bf2353628c82b028a1', NULL, NULL, NULL, '2026-11-28 09:32:26.365068+00');
INSERT INTO rl.scores VALUES ('t-1000012', 'night-shift', 'heuristic', '2026-11-20T04:00', 'agent-1', 0.585, 0.585, '{"pnl": 0.55, "activity": 0.05, "win_rate": 1.0}', 'heuristic: P&L +100.00 (0.55), win rate 100%, 1 actions (0.05)', '78cd2f9c8986c9bf2353628c82b028a1', NULL, NULL, NULL, '2026-11-28 09:32:26.365068+00');
INSERT INTO rl.scores VALUES ('t-1000013', 'night-shift', 'heuristic', '2026-11-20T04:00', 'agent-2', 0.6599999999999999, 0.6599999999999999, '{"pnl": 0.7, "activity": 0.05, "win_rate": 1.0}', 'heuristic: P&L +400.00 (0.70), win rate 100%, 1 actions (0.05)', '78cd2f9c8986c9bf2353628c82b028a1', NULL, NULL, NULL, '2026-11-28 09:32:26.365068+00');
INSERT INTO rl.scores VALUES ('t-1000011', 'babylon-agent', 'heuristic', '2026-11-20T04:00', 'agent-0', 0.21000000000000002, 0.21000000000000002, '{"pnl": 0.4, "activity": 0.05, "win_rate": 0.0}', 'heuristic: P&L -200.00 (0.40), win rate 0%, 1 actions (0.05)', '78cd2f9c8986c9bf2353628c82b028a1', NULL, NULL, NULL, '2026-11-28 09:32:26.575308+00');
INSERT INTO rl.scores VALUES ('t-1000012', 'babylon-agent', 'heuristic', '2026-11-20T04:00', 'agent-1', 0.585, 0.585, '{"pnl": 0.55, "activity": 0.05, "win_rate": 1.0}', 'heuristic: P&L +100.00 (0.55), win rate 100%, 1 actions (0.05)', '78cd2f9c8986c9bf2353628c82b028a1', NULL, NULL, NULL, '2026-11-28 09:32:26.575308+00');
INSERT INTO rl.scores VALUES ('t-1000013', 'babylon-agent', 'heuristic', '2026-11-20T04:00', 'agent-2', 0.6599999999999999, 0.6599999999999999, '{"pnl": 0.7, "activity": 0.05, "win_rate": 1.0}', 'heuristic: P&L +400.00 (0.70), win rate 100%, 1 actions (0.05)', '78cd2f9c8986c9bf2353628c82b028a1', NULL, NULL, NULL, '2026-11-28 09:32:26.575308+00');
INSERT INTO rl.scores VALUES ('t-1000014', 'babylon-agent', 'heuristic', '2026-11-20T05:00', 'agent-0', 0.21000000000000002, 0.21000000000000002, '{"pnl": 0.4, "activity": 0.05, "win_rate": 0.0}', 'heuristic: P&L -200.00 (0.40), win rate 0%, 1 actions (0.05)', '78cd2f9c8986c9bf2353628c82b028a1', NULL, NULL, NULL, '2026-11-28 09:32:26.637295+00');
INSERT INTO rl.scores VALUES ('t-1000015', 'babylon-agent', 'heuristic', '2026-11-20T05:00', 'agent-1', 0.21000000000000002, 0.21000000000000002, '{"pnl": 0.4, "activity": 0.05, "win_rate": 0.0}', 'heuristic: P&L -200.00 (0.40), win rate 0%, 1 actions (0.05)', '78cd2f9c8986c9bf2353628c82b028a1', NULL, NULL, NULL, '2026-11-28 09:32:26.637295+00');
INSERT INTO rl.scores VALUES ('t-1000016', 'babylon-agent', 'heuristic', '2026-11-20T05:00', 'agent-2', 0.21000000000000002, 0.21000000000000002, '{"pnl": 0.4, "activity": 0.05, "win_rate": 0.0}', 'heuristic: P&L -200.00 (0.40), win rate 0%, 1 actions (0.05)', '78cd2f9c8986c9bf2353628c82b028a1', NULL, NULL, NULL, '2026-11-28 09:32:26.637295+00');
INSERT INTO rl.steps VALUES ('babylon-agent', 1, 3, 'noop', '{2026-11-20T01:00}', 3, 0, '{"loss": 0.0, "device": "none", "sequences": 3, "trajectories": 3.0, "context_tokens": 0, "inference_name": null, "optimizer_steps": 0, "staleness_known": 0.0, "dropped_sequences": 0}', 0, NULL, '/srv/checkpoints/babylon-agent/1-3', 'v1.0.0', '2026-11-28 09:32:25.17009+00', '2026-11-28 09:32:25.598674+00', '{"load": 0.0019526380001479993, "read": 0.015090773000338231, "claim": 0.08157205399947998, "start": 0.2799742890001653, "commit": 0.029415, "checkpoint": 0.01623034000112966, "forward_backward": 0.0043503889992280165}', 0, NULL, NULL, NULL, NULL, 'cb508673-9225-4b52-840f-cdf7df45b07f');
INSERT INTO rl.steps VALUES ('babylon-agent', 2, 6, 'noop', '{2026-11-20T02:00}', 3, 0, '{"loss": 0.0, "device": "none", "sequences": 3, "trajectories": 3.0, "context_tokens": 0, "inference_name": null, "optimizer_steps": 0, "staleness_known": 0.0, "dropped_sequences": 0}', 0, NULL, '/srv/checkpoints/babylon-agent/2-6', 'v1.0.1', '2026-11-28 09:32:25.693608+00', '2026-11-28 09:32:25.772367+00', '{"load": 0.0009435960000701016, "read": 0.01151386600031401, "claim": 0.03994188000069698, "start": 0.006029828999089659, "commit": 0.008754, "checkpoint": 0.010019211000326322, "forward_backward": 0.0015568880007776897}', 0, NULL, NULL, NULL, NULL, '5c935273-8751-4e86-ac0d-cdae8c3561a7');
INSERT INTO rl.steps VALUES ('babylon-agent', 3, 9, 'noop', '{2026-11-20T03:00}', 3, 0, '{"loss": 0.0, "device": "none", "sequences": 3, "trajectories": 3.0, "context_tokens": 0, "inference_name": null, "optimizer_steps": 0, "staleness_known": 0.0, "dropped_sequences": 0}', 0, NULL, '/srv/checkpoints/babylon-agent/3-9', 'v1.0.2', '2026-11-28 09:32:25.89158+00', '2026-11-28 09:32:26.004878+00', '{"load": 0.0005518519992619986, "read": 0.010219779000181006, "claim": 0.039159865000328864, "start": 0.0023185629997897195, "commit": 0.011851, "checkpoint": 0.032480940000823466, "forward_backward": 0.016716292999262805}', 0, NULL, NULL, NULL, NULL, '229fea27-20fd-44d6-ac03-da60222341bb');
INSERT INTO rl.steps VALUES ('night-shift', 1, 12, 'noop', '{2026-11-20T01:00}', 3, 0, '{"loss": 0.0, "device": "none", "sequences": 3, "trajectories": 3.0, "context_tokens": 0, "inference_name": null, "optimizer_steps": 0, "staleness_known": 0.0, "dropped_sequences": 0}', 0, NULL, '/srv/checkpoints/night-shift/1-12', 'v1.0.3', '2026-11-28 09:32:26.146892+00', '2026-11-28 09:32:26.251414+00', '{"load": 0.0009548020007059677, "read": 0.04041850999965391, "claim": 0.02601726400098414, "start": 0.007182525998359779, "commit": 0.008825, "checkpoint": 0.019849530001010862, "forward_backward": 0.0012739670000883052}', 0, NULL, NULL, NULL, NULL, '71e6d0c2-27c3-44cb-bf95-55442130807b');
INSERT INTO rl.steps VALUES ('night-shift', 2, 15, 'noop', '{2026-11-20T04:00}', 3, 0, '{"loss": 0.0, "device": "none", "sequences": 3, "trajectories": 3.0, "context_tokens": 0, "inference_name": null, "optimizer_steps": 0, "staleness_known": 0.0, "dropped_sequences": 0}', 0, NULL, '/srv/checkpoints/night-shift/2-15', 'v1.0.4', '2026-11-28 09:32:26.403259+00', '2026-11-28 09:32:26.519599+00', '{"load": 0.0005439300002763048, "read": 0.03860320700005104, "claim": 0.032143376998647, "start": 0.005310198001097888, "commit": 0.002449, "checkpoint": 0.036000400001285016, "forward_backward": 0.001290160998905776}', 0, NULL, NULL, NULL, NULL, '37154780-b17f-477b-a998-89220fcd8132');
INSERT INTO rl.windows VALUES ('2026-11-20T01:00', 'babylon-agent', 'trained', 'heuristic', 1, 0, '2026-11-28 09:32:25.150358+00', NULL, NULL, NULL, 1, 3, 3, 0, 15, '2026-11-28 09:32:25.093441+00', '2026-11-28 09:32:25.150358+00', '2026-11-28 09:32:25.56926+00', NULL, NULL, 'trainer-1:100', NULL, NULL, '{"gone": 0, "calls": 3, "stale": 0, "scored": 3, "tokens": 0, "too_long": 0, "sequences": 3, "unreadable": 0, "no_advantage": 0, "trajectories": 3}');
INSERT INTO rl.windows VALUES ('2026-11-20T02:00', 'babylon-agent', 'trained', 'heuristic', 1, 0, '2026-11-28 09:32:25.681103+00', NULL, NULL, NULL, 2, 3, 3, 0, 15, '2026-11-28 09:32:25.653106+00', '2026-11-28 09:32:25.681103+00', '2026-11-28 09:32:25.763613+00', NULL, NULL, 'trainer-1:100', NULL, NULL, '{"gone": 0, "calls": 3, "stale": 0, "scored": 3, "tokens": 0, "too_long": 0, "sequences": 3, "unreadable": 0, "no_advantage": 0, "trajectories": 3}');
INSERT INTO rl.windows VALUES ('2026-11-20T03:00', 'babylon-agent', 'trained', 'heuristic', 1, 0, '2026-11-28 09:32:25.869767+00', NULL, NULL, NULL, 3, 3, 3, 0, 15, '2026-11-28 09:32:25.810723+00', '2026-11-28 09:32:25.869767+00', '2026-11-28 09:32:25.993027+00', NULL, NULL, 'trainer-1:100', NULL, NULL, '{"gone": 0, "calls": 3, "stale": 0, "scored": 3, "tokens": 0, "too_long": 0, "sequences": 3, "unreadable": 0, "no_advantage": 0, "trajectories": 3}');
INSERT INTO rl.windows VALUES ('2026-11-20T01:00', 'night-shift', 'trained', 'heuristic', 1, 0, '2026-11-28 09:32:26.129163+00', NULL, NULL, NULL, 1, 3, 3, 0, 15, '2026-11-28 09:32:26.06462+00', '2026-11-28 09:32:26.129163+00', '2026-11-28 09:32:26.242589+00', NULL, NULL, 'trainer-1:101', NULL, NULL, '{"gone": 0, "calls": 3, "stale": 0, "scored": 3, "tokens": 0, "too_long": 0, "sequences": 3, "unreadable": 0, "no_advantage": 0, "trajectories": 3}');
INSERT INTO rl.windows VALUES ('2026-11-20T04:00', 'night-shift', 'trained', 'heuristic', 1, 0, '2026-11-28 09:32:26.365068+00', NULL, NULL, NULL, 2, 4, 4, 0, 15, '2026-11-28 09:32:26.290079+00', '2026-11-28 09:32:26.365068+00', '2026-11-28 09:32:26.51715+00', NULL, NULL, 'trainer-1:101', NULL, NULL, '{"gone": 0, "calls": 3, "stale": 0, "scored": 3, "tokens": 0, "too_long": 0, "sequences": 3, "unreadable": 1, "no_advantage": 0, "trajectories": 4}');
INSERT INTO rl.windows VALUES ('2026-11-20T04:00', 'babylon-agent', 'scored', 'heuristic', 1, 0, '2026-11-28 09:32:26.575308+00', NULL, NULL, NULL, NULL, 4, 4, 0, 15, '2026-11-28 09:32:26.544625+00', '2026-11-28 09:32:26.575308+00', NULL, NULL, NULL, 'trainer-1:100', NULL, NULL, '{"calls": 3, "scored": 3, "unreadable": 1, "trajectories": 4}');
INSERT INTO rl.windows VALUES ('2026-11-20T05:00', 'babylon-agent', 'skipped', 'heuristic', 1, 0, '2026-11-28 09:32:26.637295+00', NULL, 'no signal: rewards spread 0.0000, below MIN_REWARD_SPREAD=0.01', NULL, NULL, 3, 3, 0, 15, '2026-11-28 09:32:26.609002+00', '2026-11-28 09:32:26.637295+00', NULL, '2026-11-28 09:32:26.637295+00', NULL, 'trainer-1:100', NULL, NULL, '{"calls": 3, "scored": 3, "unreadable": 0, "trajectories": 3}');
INSERT INTO rl.windows VALUES ('2026-11-20T06:00', 'babylon-agent', 'due', NULL, 0, 0, '2026-11-28 09:32:26.669312+00', NULL, NULL, NULL, NULL, 3, 3, 0, 0, '2026-11-28 09:32:26.669312+00', NULL, NULL, NULL, NULL, NULL, NULL, NULL, '{}');
SELECT pg_catalog.setval('rl.lease_tokens', 17, true);
ALTER TABLE ONLY public."User"
    ADD CONSTRAINT "User_pkey" PRIMARY KEY (id);
ALTER TABLE ONLY public.market_outcomes
    ADD CONSTRAINT market_outcomes_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.reward_judgments
    ADD CONSTRAINT reward_judgments_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.trained_models
    ADD CONSTRAINT trained_models_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.training_batches
    ADD CONSTRAINT training_batches_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.trajectories
    ADD CONSTRAINT trajectories_pkey PRIMARY KEY (id);
ALTER TABLE ONLY rl.attempts
    ADD CONSTRAINT attempts_pkey PRIMARY KEY (model_name, window_id, token);
ALTER TABLE ONLY rl.canaries
    ADD CONSTRAINT canaries_pkey PRIMARY KEY (model_name, queue);
ALTER TABLE ONLY rl.heads
    ADD CONSTRAINT heads_pkey PRIMARY KEY (model_name);
ALTER TABLE ONLY rl.jobs
    ADD CONSTRAINT jobs_pkey PRIMARY KEY (id);
ALTER TABLE ONLY rl.judgments
    ADD CONSTRAINT judgments_pkey PRIMARY KEY (id);
ALTER TABLE ONLY rl.leases
    ADD CONSTRAINT leases_pkey PRIMARY KEY (resource);
ALTER TABLE ONLY rl.logprobs
    ADD CONSTRAINT logprobs_pkey PRIMARY KEY (model_name, trajectory_id, call_hash);
ALTER TABLE ONLY rl.migrations
    ADD CONSTRAINT migrations_pkey PRIMARY KEY (name);
ALTER TABLE ONLY rl.quarantine
    ADD CONSTRAINT quarantine_pkey PRIMARY KEY (trajectory_id);
ALTER TABLE ONLY rl.scores
    ADD CONSTRAINT scores_pkey PRIMARY KEY (trajectory_id, model_name, scorer);
ALTER TABLE ONLY rl.steps
    ADD CONSTRAINT steps_model_name_token_key UNIQUE (model_name, token);
ALTER TABLE ONLY rl.steps
    ADD CONSTRAINT steps_pkey PRIMARY KEY (model_name, step);
ALTER TABLE ONLY rl.unfinished_checkpoints
    ADD CONSTRAINT unfinished_checkpoints_pkey PRIMARY KEY (checkpoint);
ALTER TABLE ONLY rl.windows
    ADD CONSTRAINT windows_pkey PRIMARY KEY (window_id, model_name);
CREATE INDEX "User_displayName_idx" ON public."User" USING btree ("displayName");
CREATE INDEX "User_isAgent_idx" ON public."User" USING btree ("isAgent");
CREATE UNIQUE INDEX "User_username_key" ON public."User" USING btree (username);
CREATE INDEX "market_outcomes_windowId_idx" ON public.market_outcomes USING btree ("windowId");
CREATE INDEX "market_outcomes_windowId_stockTicker_idx" ON public.market_outcomes USING btree ("windowId", "stockTicker");
CREATE INDEX "reward_judgments_groupId_rank_idx" ON public.reward_judgments USING btree ("groupId", rank);
CREATE INDEX "reward_judgments_overallScore_idx" ON public.reward_judgments USING btree ("overallScore");
CREATE UNIQUE INDEX "reward_judgments_trajectoryId_key" ON public.reward_judgments USING btree ("trajectoryId");
CREATE INDEX rl_trajectories_window_idx ON public.trajectories USING btree (COALESCE("windowId", ("left"(("scenarioId")::text, 16))::character varying) COLLATE "C", "agentId") INCLUDE ("windowId", "scenarioId") WHERE ("isTrainingData" AND (NOT "isEvaluation"));
CREATE INDEX "trained_models_deployedAt_idx" ON public.trained_models USING btree ("deployedAt");
CREATE UNIQUE INDEX "trained_models_modelId_key" ON public.trained_models USING btree ("modelId");
CREATE INDEX trained_models_status_idx ON public.trained_models USING btree (status);
CREATE INDEX trained_models_version_idx ON public.trained_models USING btree (version);
CREATE UNIQUE INDEX "training_batches_batchId_key" ON public.training_batches USING btree ("batchId");
CREATE INDEX "training_batches_scenarioId_idx" ON public.training_batches USING btree ("scenarioId");
CREATE INDEX "training_batches_status_createdAt_idx" ON public.training_batches USING btree (status, "createdAt");
CREATE INDEX "trajectories_agentId_startTime_idx" ON public.trajectories USING btree ("agentId", "startTime");
CREATE INDEX "trajectories_aiJudgeReward_idx" ON public.trajectories USING btree ("aiJudgeReward");
CREATE INDEX "trajectories_isTrainingData_usedInTraining_idx" ON public.trajectories USING btree ("isTrainingData", "usedInTraining");
CREATE INDEX "trajectories_scenarioId_createdAt_idx" ON public.trajectories USING btree ("scenarioId", "createdAt");
CREATE INDEX "trajectories_trainedInBatch_idx" ON public.trajectories USING btree ("trainedInBatch");
CREATE UNIQUE INDEX "trajectories_trajectoryId_key" ON public.trajectories USING btree ("trajectoryId");
CREATE INDEX "trajectories_windowId_agentId_idx" ON public.trajectories USING btree ("windowId", "agentId");
CREATE INDEX "trajectories_windowId_idx" ON public.trajectories USING btree ("windowId");
CREATE INDEX attempts_open_idx ON rl.attempts USING btree (model_name, stage) WHERE (ended_at IS NULL);
CREATE UNIQUE INDEX jobs_open_idx ON rl.jobs USING btree (model_name) WHERE (ended_at IS NULL);
CREATE INDEX judgments_asked_at_idx ON rl.judgments USING btree (asked_at);
CREATE INDEX judgments_question_idx ON rl.judgments USING btree (question) WHERE (fault IS NULL);
CREATE INDEX judgments_window_idx ON rl.judgments USING btree (model_name, window_id);
CREATE INDEX logprobs_window_idx ON rl.logprobs USING btree (model_name, window_id);
CREATE INDEX quarantine_window_idx ON rl.quarantine USING btree (window_id);
CREATE INDEX scores_window_idx ON rl.scores USING btree (model_name, window_id, scorer);
CREATE INDEX windows_batch_idx ON rl.windows USING btree (batch_id) WHERE (batch_id IS NOT NULL);
CREATE INDEX windows_due_idx ON rl.windows USING btree (model_name, window_id) WHERE (state = 'due'::text);
CREATE INDEX windows_scored_idx ON rl.windows USING btree (model_name, window_id) WHERE (state = 'scored'::text);
ALTER TABLE ONLY public.reward_judgments
    ADD CONSTRAINT "reward_judgments_trajectoryId_fkey" FOREIGN KEY ("trajectoryId") REFERENCES public.trajectories("trajectoryId") ON UPDATE CASCADE ON DELETE CASCADE;
ALTER TABLE ONLY public.trajectories
    ADD CONSTRAINT "trajectories_agentId_fkey" FOREIGN KEY ("agentId") REFERENCES public."User"(id) ON UPDATE CASCADE ON DELETE CASCADE;
