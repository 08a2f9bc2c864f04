"""The store of the weights: one folder a step, in a shared folder or in S3."""
