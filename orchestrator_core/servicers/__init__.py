"""gRPC handlers: they translate, and leave every decision to the core."""
