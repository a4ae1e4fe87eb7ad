"""Translation between protos and the core, and the one table of errors. No decisions here."""
