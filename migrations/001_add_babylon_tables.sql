-- Babylon's own tables, for a database that the app has never seen (a demo, a test, a replica of
-- the traces). A table that exists already stays as it is, whoever made it: no column, index or
-- constraint changes. So indexes are built only on new and empty tables, and no running app waits
-- for one.
--
-- Columns, defaults, indexes and foreign keys are those of the app's Prisma schema, except that
-- "User" has only the columns that training reads. Timestamps are UTC without time zone, to the
-- millisecond; "updatedAt" has no default because Prisma's client sets it.
--
-- Prisma cannot migrate a database that this file made, because it does not expect the tables. If
-- you want both, let the app make its tables first.
--
-- Runs any number of times. A DO block makes a table together with its indexes, or nothing.
-- CREATE TABLE IF NOT EXISTS would need the right CREATE on the schema even if the table exists.

DO $$
BEGIN
    IF to_regclass('public."User"') IS NOT NULL THEN RETURN; END IF;

    CREATE TABLE public."User" (
        "id"          TEXT         NOT NULL,
        "username"    TEXT,
        "displayName" TEXT,
        "isAgent"     BOOLEAN      NOT NULL DEFAULT false,
        "createdAt"   TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
        "updatedAt"   TIMESTAMP(3) NOT NULL,

        CONSTRAINT "User_pkey" PRIMARY KEY ("id")
    );
    CREATE UNIQUE INDEX "User_username_key" ON public."User" ("username");
    CREATE INDEX "User_displayName_idx" ON public."User" ("displayName");
    CREATE INDEX "User_isAgent_idx" ON public."User" ("isAgent");
END
$$;

DO $$
BEGIN
    IF to_regclass('public."trajectories"') IS NOT NULL THEN RETURN; END IF;

    CREATE TABLE public."trajectories" (
        "id"                   TEXT             NOT NULL,
        "trajectoryId"         TEXT             NOT NULL,
        "agentId"              TEXT             NOT NULL,
        "startTime"            TIMESTAMP(3)     NOT NULL,
        "endTime"              TIMESTAMP(3)     NOT NULL,
        "durationMs"           INTEGER          NOT NULL,
        "windowId"             VARCHAR(50),
        "windowHours"          INTEGER          NOT NULL DEFAULT 1,
        "episodeId"            VARCHAR(100),
        "scenarioId"           VARCHAR(100),
        "batchId"              VARCHAR(100),
        "stepsJson"            TEXT             NOT NULL,
        "rewardComponentsJson" TEXT             NOT NULL,
        "metricsJson"          TEXT             NOT NULL,
        "metadataJson"         TEXT             NOT NULL,
        "totalReward"          DOUBLE PRECISION NOT NULL,
        "episodeLength"        INTEGER          NOT NULL,
        "finalStatus"          TEXT             NOT NULL,
        "finalBalance"         DOUBLE PRECISION,
        "finalPnL"             DOUBLE PRECISION,
        "tradesExecuted"       INTEGER,
        "postsCreated"         INTEGER,
        "aiJudgeReward"        DOUBLE PRECISION,
        "aiJudgeReasoning"     TEXT,
        "judgedAt"             TIMESTAMP(3),
        "isTrainingData"       BOOLEAN          NOT NULL DEFAULT true,
        "isEvaluation"         BOOLEAN          NOT NULL DEFAULT false,
        "usedInTraining"       BOOLEAN          NOT NULL DEFAULT false,
        "trainedInBatch"       TEXT,
        "createdAt"            TIMESTAMP(3)     NOT NULL DEFAULT CURRENT_TIMESTAMP,
        "updatedAt"            TIMESTAMP(3)     NOT NULL,

        CONSTRAINT "trajectories_pkey" PRIMARY KEY ("id"),
        CONSTRAINT "trajectories_agentId_fkey" FOREIGN KEY ("agentId")
            REFERENCES public."User" ("id") ON DELETE CASCADE ON UPDATE CASCADE
    );
    CREATE UNIQUE INDEX "trajectories_trajectoryId_key" ON public."trajectories" ("trajectoryId");
    CREATE INDEX "trajectories_agentId_startTime_idx"
        ON public."trajectories" ("agentId", "startTime");
    CREATE INDEX "trajectories_aiJudgeReward_idx" ON public."trajectories" ("aiJudgeReward");
    CREATE INDEX "trajectories_isTrainingData_usedInTraining_idx"
        ON public."trajectories" ("isTrainingData", "usedInTraining");
    CREATE INDEX "trajectories_scenarioId_createdAt_idx"
        ON public."trajectories" ("scenarioId", "createdAt");
    CREATE INDEX "trajectories_trainedInBatch_idx" ON public."trajectories" ("trainedInBatch");
    CREATE INDEX "trajectories_windowId_agentId_idx"
        ON public."trajectories" ("windowId", "agentId");
    CREATE INDEX "trajectories_windowId_idx" ON public."trajectories" ("windowId");
END
$$;

DO $$
BEGIN
    IF to_regclass('public."market_outcomes"') IS NOT NULL THEN RETURN; END IF;

    CREATE TABLE public."market_outcomes" (
        "id"                 TEXT          NOT NULL,
        "windowId"           VARCHAR(50)   NOT NULL,
        "stockTicker"        VARCHAR(20),
        "startPrice"         DECIMAL(10,2),
        "endPrice"           DECIMAL(10,2),
        "changePercent"      DECIMAL(5,2),
        "sentiment"          VARCHAR(20),
        "newsEvents"         JSONB,
        "predictionMarketId" TEXT,
        "question"           TEXT,
        "outcome"            VARCHAR(20),
        "finalProbability"   DECIMAL(5,4),
        "volume"             DECIMAL(15,2),
        "createdAt"          TIMESTAMP(3)  NOT NULL DEFAULT CURRENT_TIMESTAMP,

        CONSTRAINT "market_outcomes_pkey" PRIMARY KEY ("id")
    );
    CREATE INDEX "market_outcomes_windowId_idx" ON public."market_outcomes" ("windowId");
    CREATE INDEX "market_outcomes_windowId_stockTicker_idx"
        ON public."market_outcomes" ("windowId", "stockTicker");
END
$$;

DO $$
BEGIN
    IF to_regclass('public."training_batches"') IS NOT NULL THEN RETURN; END IF;

    CREATE TABLE public."training_batches" (
        "id"                TEXT             NOT NULL,
        "batchId"           TEXT             NOT NULL,
        "scenarioId"        TEXT,
        "baseModel"         TEXT             NOT NULL,
        "modelVersion"      TEXT             NOT NULL,
        "trajectoryIds"     TEXT             NOT NULL,
        "rankingsJson"      TEXT,
        "rewardsJson"       TEXT             NOT NULL,
        "trainingLoss"      DOUBLE PRECISION,
        "policyImprovement" DOUBLE PRECISION,
        "status"            TEXT             NOT NULL DEFAULT 'pending',
        "error"             TEXT,
        "createdAt"         TIMESTAMP(3)     NOT NULL DEFAULT CURRENT_TIMESTAMP,
        "startedAt"         TIMESTAMP(3),
        "completedAt"       TIMESTAMP(3),

        CONSTRAINT "training_batches_pkey" PRIMARY KEY ("id")
    );
    CREATE UNIQUE INDEX "training_batches_batchId_key" ON public."training_batches" ("batchId");
    CREATE INDEX "training_batches_scenarioId_idx" ON public."training_batches" ("scenarioId");
    CREATE INDEX "training_batches_status_createdAt_idx"
        ON public."training_batches" ("status", "createdAt");
END
$$;

DO $$
BEGIN
    IF to_regclass('public."trained_models"') IS NOT NULL THEN RETURN; END IF;

    CREATE TABLE public."trained_models" (
        "id"              TEXT             NOT NULL,
        "modelId"         TEXT             NOT NULL,
        "version"         TEXT             NOT NULL,
        "baseModel"       TEXT             NOT NULL,
        "trainingBatch"   TEXT,
        "status"          TEXT             NOT NULL DEFAULT 'training',
        "deployedAt"      TIMESTAMP(3),
        "archivedAt"      TIMESTAMP(3),
        "storagePath"     TEXT             NOT NULL,
        "benchmarkScore"  DOUBLE PRECISION,
        "accuracy"        DOUBLE PRECISION,
        "avgReward"       DOUBLE PRECISION,
        "evalMetrics"     JSONB,
        "wandbRunId"      TEXT,
        "wandbArtifactId" TEXT,
        "agentsUsing"     INTEGER          NOT NULL DEFAULT 0,
        "totalInferences" INTEGER          NOT NULL DEFAULT 0,
        "createdAt"       TIMESTAMP(3)     NOT NULL DEFAULT CURRENT_TIMESTAMP,
        "updatedAt"       TIMESTAMP(3)     NOT NULL,

        CONSTRAINT "trained_models_pkey" PRIMARY KEY ("id")
    );
    CREATE UNIQUE INDEX "trained_models_modelId_key" ON public."trained_models" ("modelId");
    CREATE INDEX "trained_models_status_idx" ON public."trained_models" ("status");
    CREATE INDEX "trained_models_version_idx" ON public."trained_models" ("version");
    CREATE INDEX "trained_models_deployedAt_idx" ON public."trained_models" ("deployedAt");
END
$$;

DO $$
BEGIN
    IF to_regclass('public."reward_judgments"') IS NOT NULL THEN RETURN; END IF;

    CREATE TABLE public."reward_judgments" (
        "id"                  TEXT             NOT NULL,
        "trajectoryId"        TEXT             NOT NULL,
        "judgeModel"          TEXT             NOT NULL,
        "judgeVersion"        TEXT             NOT NULL,
        "overallScore"        DOUBLE PRECISION NOT NULL,
        "componentScoresJson" TEXT,
        "rank"                INTEGER,
        "normalizedScore"     DOUBLE PRECISION,
        "groupId"             TEXT,
        "reasoning"           TEXT             NOT NULL,
        "strengthsJson"       TEXT,
        "weaknessesJson"      TEXT,
        "criteriaJson"        TEXT             NOT NULL,
        "judgedAt"            TIMESTAMP(3)     NOT NULL DEFAULT CURRENT_TIMESTAMP,

        CONSTRAINT "reward_judgments_pkey" PRIMARY KEY ("id"),
        CONSTRAINT "reward_judgments_trajectoryId_fkey" FOREIGN KEY ("trajectoryId")
            REFERENCES public."trajectories" ("trajectoryId") ON DELETE CASCADE ON UPDATE CASCADE
    );
    CREATE UNIQUE INDEX "reward_judgments_trajectoryId_key"
        ON public."reward_judgments" ("trajectoryId");
    CREATE INDEX "reward_judgments_overallScore_idx" ON public."reward_judgments" ("overallScore");
    CREATE INDEX "reward_judgments_groupId_rank_idx"
        ON public."reward_judgments" ("groupId", "rank");
END
$$;

-- Upstream's Python scripts, if they run before the app, make a `market_outcomes` of another shape.
-- It stays as it is. Warn, because no market outcomes can be read from it.
DO $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_attribute
        WHERE attrelid = 'public."market_outcomes"'::regclass AND attname = 'windowId'
    ) THEN
        RAISE WARNING 'public.market_outcomes is not the app''s table (it has no "windowId"): '
            'no market outcomes will be read';
    END IF;
END
$$;
