"""Who may look at this host, and how it proves itself to the orchestrator."""
