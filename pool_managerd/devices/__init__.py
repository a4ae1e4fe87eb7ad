"""Device adapters behind one port (`pool_managerd.devices.port`)."""
