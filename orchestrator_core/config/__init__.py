"""Configuration of orchestratord, read from one TOML file and the command line. HME-003.

`schema` has all tables, those of one subject are in its module, and `loading` reads them.
"""
