"""What is published: repos, their refs, commits and manifests."""
