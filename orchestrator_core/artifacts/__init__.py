"""Artifacts: an index in the journal, content in files by its SHA-256. ORCH-3097, ORCH-3098."""
