"""Where weights rest: folders of files, in a shared folder or in S3."""
