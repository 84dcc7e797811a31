"""One server process: replicas, log, links to peers and the client API (`docs/architecture.md`)."""
