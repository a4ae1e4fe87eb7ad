"""pool-managerd: runs engines on one GPU host, reports snapshots, executes dispatches."""
