"""The journal behind one port (`store.port`): memory for tests, SQLite by default."""
