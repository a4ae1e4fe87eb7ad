"""The journal behind one port (`orchestrator_core.store.port`): memory for tests, SQLite by default."""
