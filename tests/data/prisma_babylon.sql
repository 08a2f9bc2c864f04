-- The tables of the Babylon app that matter here, word for word as Prisma's migration makes them
-- (`prisma migrate diff --from-empty` of the app's schema, November 2025). Tests build the app's
-- database from this file; nothing else reads it.

CREATE TABLE "User" (
    "id" TEXT NOT NULL,
    "walletAddress" TEXT,
    "username" TEXT,
    "displayName" TEXT,
    "bio" TEXT,
    "profileImageUrl" TEXT,
    "isActor" BOOLEAN NOT NULL DEFAULT false,
    "createdAt" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt" TIMESTAMP(3) NOT NULL,
    "personality" TEXT,
    "postStyle" TEXT,
    "postExample" TEXT,
    "virtualBalance" DECIMAL(18,2) NOT NULL DEFAULT 1000,
    "totalDeposited" DECIMAL(18,2) NOT NULL DEFAULT 1000,
    "totalWithdrawn" DECIMAL(18,2) NOT NULL DEFAULT 0,
    "lifetimePnL" DECIMAL(18,2) NOT NULL DEFAULT 0,
    "profileComplete" BOOLEAN NOT NULL DEFAULT false,
    "hasProfileImage" BOOLEAN NOT NULL DEFAULT false,
    "hasUsername" BOOLEAN NOT NULL DEFAULT false,
    "hasBio" BOOLEAN NOT NULL DEFAULT false,
    "profileSetupCompletedAt" TIMESTAMP(3),
    "farcasterUsername" TEXT,
    "hasFarcaster" BOOLEAN NOT NULL DEFAULT false,
    "hasTwitter" BOOLEAN NOT NULL DEFAULT false,
    "nftTokenId" INTEGER,
    "onChainRegistered" BOOLEAN NOT NULL DEFAULT false,
    "pointsAwardedForFarcaster" BOOLEAN NOT NULL DEFAULT false,
    "pointsAwardedForProfile" BOOLEAN NOT NULL DEFAULT false,
    "pointsAwardedForProfileImage" BOOLEAN NOT NULL DEFAULT false,
    "pointsAwardedForTwitter" BOOLEAN NOT NULL DEFAULT false,
    "pointsAwardedForUsername" BOOLEAN NOT NULL DEFAULT false,
    "pointsAwardedForWallet" BOOLEAN NOT NULL DEFAULT false,
    "referralCode" TEXT,
    "referralCount" INTEGER NOT NULL DEFAULT 0,
    "referredBy" TEXT,
    "registrationTxHash" TEXT,
    "reputationPoints" INTEGER NOT NULL DEFAULT 1000,
    "twitterUsername" TEXT,
    "bannerDismissCount" INTEGER NOT NULL DEFAULT 0,
    "bannerLastShown" TIMESTAMP(3),
    "coverImageUrl" TEXT,
    "showFarcasterPublic" BOOLEAN NOT NULL DEFAULT true,
    "showTwitterPublic" BOOLEAN NOT NULL DEFAULT true,
    "showWalletPublic" BOOLEAN NOT NULL DEFAULT true,
    "usernameChangedAt" TIMESTAMP(3),
    "agent0FeedbackCount" INTEGER,
    "agent0MetadataCID" TEXT,
    "agent0RegisteredAt" TIMESTAMP(3),
    "agent0TokenId" INTEGER,
    "agent0TrustScore" DOUBLE PRECISION,
    "bannedAt" TIMESTAMP(3),
    "bannedBy" TEXT,
    "bannedReason" TEXT,
    "farcasterDisplayName" TEXT,
    "farcasterFid" TEXT,
    "farcasterPfpUrl" TEXT,
    "farcasterVerifiedAt" TIMESTAMP(3),
    "isAdmin" BOOLEAN NOT NULL DEFAULT false,
    "isBanned" BOOLEAN NOT NULL DEFAULT false,
    "isScammer" BOOLEAN NOT NULL DEFAULT false,
    "isCSAM" BOOLEAN NOT NULL DEFAULT false,
    "appealCount" INTEGER NOT NULL DEFAULT 0,
    "appealStaked" BOOLEAN NOT NULL DEFAULT false,
    "appealStakeAmount" DECIMAL(18,2),
    "appealStakeTxHash" TEXT,
    "appealStatus" TEXT,
    "appealSubmittedAt" TIMESTAMP(3),
    "appealReviewedAt" TIMESTAMP(3),
    "falsePositiveHistory" JSONB,
    "privyId" TEXT,
    "registrationBlockNumber" BIGINT,
    "registrationGasUsed" BIGINT,
    "registrationTimestamp" TIMESTAMP(3),
    "role" TEXT,
    "totalFeesEarned" DECIMAL(18,2) NOT NULL DEFAULT 0,
    "totalFeesPaid" DECIMAL(18,2) NOT NULL DEFAULT 0,
    "twitterAccessToken" TEXT,
    "twitterId" TEXT,
    "twitterRefreshToken" TEXT,
    "twitterTokenExpiresAt" TIMESTAMP(3),
    "twitterVerifiedAt" TIMESTAMP(3),
    "tosAccepted" BOOLEAN NOT NULL DEFAULT false,
    "tosAcceptedAt" TIMESTAMP(3),
    "tosAcceptedVersion" TEXT DEFAULT '2025-11-11',
    "privacyPolicyAccepted" BOOLEAN NOT NULL DEFAULT false,
    "privacyPolicyAcceptedAt" TIMESTAMP(3),
    "privacyPolicyAcceptedVersion" TEXT DEFAULT '2025-11-11',
    "invitePoints" INTEGER NOT NULL DEFAULT 0,
    "earnedPoints" INTEGER NOT NULL DEFAULT 0,
    "bonusPoints" INTEGER NOT NULL DEFAULT 0,
    "waitlistPosition" INTEGER,
    "waitlistJoinedAt" TIMESTAMP(3),
    "isWaitlistActive" BOOLEAN NOT NULL DEFAULT false,
    "isTest" BOOLEAN NOT NULL DEFAULT false,
    "pointsAwardedForEmail" BOOLEAN NOT NULL DEFAULT false,
    "emailVerified" BOOLEAN NOT NULL DEFAULT false,
    "email" TEXT,
    "waitlistGraduatedAt" TIMESTAMP(3),
    "agentCount" INTEGER NOT NULL DEFAULT 0,
    "totalAgentPnL" DECIMAL(18,2) NOT NULL DEFAULT 0,
    "agentErrorMessage" TEXT,
    "agentLastChatAt" TIMESTAMP(3),
    "agentLastTickAt" TIMESTAMP(3),
    "agentMessageExamples" JSONB,
    "agentModelTier" TEXT NOT NULL DEFAULT 'free',
    "agentPersonality" TEXT,
    "agentPointsBalance" INTEGER NOT NULL DEFAULT 0,
    "agentStatus" TEXT NOT NULL DEFAULT 'idle',
    "agentStyle" JSONB,
    "agentSystem" TEXT,
    "agentTotalDeposited" INTEGER NOT NULL DEFAULT 0,
    "agentTotalPointsSpent" INTEGER NOT NULL DEFAULT 0,
    "agentTotalWithdrawn" INTEGER NOT NULL DEFAULT 0,
    "agentTradingStrategy" TEXT,
    "autonomousCommenting" BOOLEAN NOT NULL DEFAULT false,
    "autonomousDMs" BOOLEAN NOT NULL DEFAULT false,
    "autonomousGroupChats" BOOLEAN NOT NULL DEFAULT false,
    "autonomousPosting" BOOLEAN NOT NULL DEFAULT false,
    "autonomousTrading" BOOLEAN NOT NULL DEFAULT false,
    "a2aEnabled" BOOLEAN NOT NULL DEFAULT false,
    "isAgent" BOOLEAN NOT NULL DEFAULT false,
    "managedBy" TEXT,
    "agentGoals" JSONB,
    "agentDirectives" JSONB,
    "agentConstraints" JSONB,
    "agentPersonaPrompt" TEXT,
    "agentPlanningHorizon" TEXT NOT NULL DEFAULT 'single',
    "agentRiskTolerance" TEXT NOT NULL DEFAULT 'medium',
    "agentMaxActionsPerTick" INTEGER NOT NULL DEFAULT 3,

    CONSTRAINT "User_pkey" PRIMARY KEY ("id")
);

CREATE TABLE "trajectories" (
    "id" TEXT NOT NULL,
    "trajectoryId" TEXT NOT NULL,
    "agentId" TEXT NOT NULL,
    "startTime" TIMESTAMP(3) NOT NULL,
    "endTime" TIMESTAMP(3) NOT NULL,
    "durationMs" INTEGER NOT NULL,
    "windowId" VARCHAR(50),
    "windowHours" INTEGER NOT NULL DEFAULT 1,
    "episodeId" VARCHAR(100),
    "scenarioId" VARCHAR(100),
    "batchId" VARCHAR(100),
    "stepsJson" TEXT NOT NULL,
    "rewardComponentsJson" TEXT NOT NULL,
    "metricsJson" TEXT NOT NULL,
    "metadataJson" TEXT NOT NULL,
    "totalReward" DOUBLE PRECISION NOT NULL,
    "episodeLength" INTEGER NOT NULL,
    "finalStatus" TEXT NOT NULL,
    "finalBalance" DOUBLE PRECISION,
    "finalPnL" DOUBLE PRECISION,
    "tradesExecuted" INTEGER,
    "postsCreated" INTEGER,
    "aiJudgeReward" DOUBLE PRECISION,
    "aiJudgeReasoning" TEXT,
    "judgedAt" TIMESTAMP(3),
    "isTrainingData" BOOLEAN NOT NULL DEFAULT true,
    "isEvaluation" BOOLEAN NOT NULL DEFAULT false,
    "usedInTraining" BOOLEAN NOT NULL DEFAULT false,
    "trainedInBatch" TEXT,
    "createdAt" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt" TIMESTAMP(3) NOT NULL,

    CONSTRAINT "trajectories_pkey" PRIMARY KEY ("id")
);

CREATE TABLE "market_outcomes" (
    "id" TEXT NOT NULL,
    "windowId" VARCHAR(50) NOT NULL,
    "stockTicker" VARCHAR(20),
    "startPrice" DECIMAL(10,2),
    "endPrice" DECIMAL(10,2),
    "changePercent" DECIMAL(5,2),
    "sentiment" VARCHAR(20),
    "newsEvents" JSONB,
    "predictionMarketId" TEXT,
    "question" TEXT,
    "outcome" VARCHAR(20),
    "finalProbability" DECIMAL(5,4),
    "volume" DECIMAL(15,2),
    "createdAt" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,

    CONSTRAINT "market_outcomes_pkey" PRIMARY KEY ("id")
);

CREATE TABLE "training_batches" (
    "id" TEXT NOT NULL,
    "batchId" TEXT NOT NULL,
    "scenarioId" TEXT,
    "baseModel" TEXT NOT NULL,
    "modelVersion" TEXT NOT NULL,
    "trajectoryIds" TEXT NOT NULL,
    "rankingsJson" TEXT,
    "rewardsJson" TEXT NOT NULL,
    "trainingLoss" DOUBLE PRECISION,
    "policyImprovement" DOUBLE PRECISION,
    "status" TEXT NOT NULL DEFAULT 'pending',
    "error" TEXT,
    "createdAt" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "startedAt" TIMESTAMP(3),
    "completedAt" TIMESTAMP(3),

    CONSTRAINT "training_batches_pkey" PRIMARY KEY ("id")
);

CREATE TABLE "trained_models" (
    "id" TEXT NOT NULL,
    "modelId" TEXT NOT NULL,
    "version" TEXT NOT NULL,
    "baseModel" TEXT NOT NULL,
    "trainingBatch" TEXT,
    "status" TEXT NOT NULL DEFAULT 'training',
    "deployedAt" TIMESTAMP(3),
    "archivedAt" TIMESTAMP(3),
    "storagePath" TEXT NOT NULL,
    "benchmarkScore" DOUBLE PRECISION,
    "accuracy" DOUBLE PRECISION,
    "avgReward" DOUBLE PRECISION,
    "evalMetrics" JSONB,
    "wandbRunId" TEXT,
    "wandbArtifactId" TEXT,
    "agentsUsing" INTEGER NOT NULL DEFAULT 0,
    "totalInferences" INTEGER NOT NULL DEFAULT 0,
    "createdAt" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt" TIMESTAMP(3) NOT NULL,

    CONSTRAINT "trained_models_pkey" PRIMARY KEY ("id")
);

CREATE TABLE "reward_judgments" (
    "id" TEXT NOT NULL,
    "trajectoryId" TEXT NOT NULL,
    "judgeModel" TEXT NOT NULL,
    "judgeVersion" TEXT NOT NULL,
    "overallScore" DOUBLE PRECISION NOT NULL,
    "componentScoresJson" TEXT,
    "rank" INTEGER,
    "normalizedScore" DOUBLE PRECISION,
    "groupId" TEXT,
    "reasoning" TEXT NOT NULL,
    "strengthsJson" TEXT,
    "weaknessesJson" TEXT,
    "criteriaJson" TEXT NOT NULL,
    "judgedAt" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,

    CONSTRAINT "reward_judgments_pkey" PRIMARY KEY ("id")
);

CREATE TABLE "llm_call_logs" (
    "id" TEXT NOT NULL,
    "trajectoryId" TEXT NOT NULL,
    "stepId" TEXT NOT NULL,
    "callId" TEXT NOT NULL,
    "timestamp" TIMESTAMP(3) NOT NULL,
    "latencyMs" INTEGER,
    "model" TEXT NOT NULL,
    "purpose" TEXT NOT NULL,
    "actionType" TEXT,
    "systemPrompt" TEXT NOT NULL,
    "userPrompt" TEXT NOT NULL,
    "messagesJson" TEXT,
    "response" TEXT NOT NULL,
    "reasoning" TEXT,
    "temperature" DOUBLE PRECISION NOT NULL,
    "maxTokens" INTEGER NOT NULL,
    "topP" DOUBLE PRECISION,
    "promptTokens" INTEGER,
    "completionTokens" INTEGER,
    "totalTokens" INTEGER,
    "metadata" TEXT,
    "createdAt" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,

    CONSTRAINT "llm_call_logs_pkey" PRIMARY KEY ("id")
);

CREATE UNIQUE INDEX "User_walletAddress_key" ON "User"("walletAddress");
CREATE UNIQUE INDEX "User_username_key" ON "User"("username");
CREATE UNIQUE INDEX "User_nftTokenId_key" ON "User"("nftTokenId");
CREATE UNIQUE INDEX "User_referralCode_key" ON "User"("referralCode");
CREATE UNIQUE INDEX "User_farcasterFid_key" ON "User"("farcasterFid");
CREATE UNIQUE INDEX "User_privyId_key" ON "User"("privyId");
CREATE UNIQUE INDEX "User_twitterId_key" ON "User"("twitterId");
CREATE INDEX "User_agentCount_idx" ON "User"("agentCount" DESC);
CREATE INDEX "User_autonomousTrading_idx" ON "User"("autonomousTrading");
CREATE INDEX "User_displayName_idx" ON "User"("displayName");
CREATE INDEX "User_earnedPoints_idx" ON "User"("earnedPoints" DESC);
CREATE INDEX "User_invitePoints_idx" ON "User"("invitePoints" DESC);
CREATE INDEX "User_isActor_idx" ON "User"("isActor");
CREATE INDEX "User_isAgent_idx" ON "User"("isAgent");
CREATE INDEX "User_isAgent_managedBy_idx" ON "User"("isAgent", "managedBy");
CREATE INDEX "User_isBanned_isActor_idx" ON "User"("isBanned", "isActor");
CREATE INDEX "User_isScammer_idx" ON "User"("isScammer");
CREATE INDEX "User_isCSAM_idx" ON "User"("isCSAM");
CREATE INDEX "User_managedBy_idx" ON "User"("managedBy");
CREATE INDEX "User_profileComplete_createdAt_idx" ON "User"("profileComplete", "createdAt" DESC);
CREATE INDEX "User_referralCode_idx" ON "User"("referralCode");
CREATE INDEX "User_reputationPoints_idx" ON "User"("reputationPoints" DESC);
CREATE INDEX "User_totalAgentPnL_idx" ON "User"("totalAgentPnL" DESC);
CREATE INDEX "User_username_idx" ON "User"("username");
CREATE INDEX "User_waitlistJoinedAt_idx" ON "User"("waitlistJoinedAt");
CREATE INDEX "User_waitlistPosition_idx" ON "User"("waitlistPosition");
CREATE INDEX "User_walletAddress_idx" ON "User"("walletAddress");

CREATE UNIQUE INDEX "trajectories_trajectoryId_key" ON "trajectories"("trajectoryId");
CREATE INDEX "trajectories_agentId_startTime_idx" ON "trajectories"("agentId", "startTime");
CREATE INDEX "trajectories_aiJudgeReward_idx" ON "trajectories"("aiJudgeReward");
CREATE INDEX "trajectories_isTrainingData_usedInTraining_idx" ON "trajectories"("isTrainingData", "usedInTraining");
CREATE INDEX "trajectories_scenarioId_createdAt_idx" ON "trajectories"("scenarioId", "createdAt");
CREATE INDEX "trajectories_trainedInBatch_idx" ON "trajectories"("trainedInBatch");
CREATE INDEX "trajectories_windowId_agentId_idx" ON "trajectories"("windowId", "agentId");
CREATE INDEX "trajectories_windowId_idx" ON "trajectories"("windowId");

CREATE INDEX "market_outcomes_windowId_idx" ON "market_outcomes"("windowId");
CREATE INDEX "market_outcomes_windowId_stockTicker_idx" ON "market_outcomes"("windowId", "stockTicker");

CREATE UNIQUE INDEX "training_batches_batchId_key" ON "training_batches"("batchId");
CREATE INDEX "training_batches_scenarioId_idx" ON "training_batches"("scenarioId");
CREATE INDEX "training_batches_status_createdAt_idx" ON "training_batches"("status", "createdAt");

CREATE UNIQUE INDEX "trained_models_modelId_key" ON "trained_models"("modelId");
CREATE INDEX "trained_models_status_idx" ON "trained_models"("status");
CREATE INDEX "trained_models_version_idx" ON "trained_models"("version");
CREATE INDEX "trained_models_deployedAt_idx" ON "trained_models"("deployedAt");

CREATE UNIQUE INDEX "reward_judgments_trajectoryId_key" ON "reward_judgments"("trajectoryId");
CREATE INDEX "reward_judgments_overallScore_idx" ON "reward_judgments"("overallScore");
CREATE INDEX "reward_judgments_groupId_rank_idx" ON "reward_judgments"("groupId", "rank");

CREATE UNIQUE INDEX "llm_call_logs_callId_key" ON "llm_call_logs"("callId");
CREATE INDEX "llm_call_logs_callId_idx" ON "llm_call_logs"("callId");
CREATE INDEX "llm_call_logs_timestamp_idx" ON "llm_call_logs"("timestamp");
CREATE INDEX "llm_call_logs_trajectoryId_idx" ON "llm_call_logs"("trajectoryId");

ALTER TABLE "User" ADD CONSTRAINT "User_managedBy_fkey" FOREIGN KEY ("managedBy") REFERENCES "User"("id") ON DELETE SET NULL ON UPDATE CASCADE;
ALTER TABLE "trajectories" ADD CONSTRAINT "trajectories_agentId_fkey" FOREIGN KEY ("agentId") REFERENCES "User"("id") ON DELETE CASCADE ON UPDATE CASCADE;
ALTER TABLE "reward_judgments" ADD CONSTRAINT "reward_judgments_trajectoryId_fkey" FOREIGN KEY ("trajectoryId") REFERENCES "trajectories"("trajectoryId") ON DELETE CASCADE ON UPDATE CASCADE;
