"""Engine adapters behind one port (`pool_managerd.engines.port`)."""
