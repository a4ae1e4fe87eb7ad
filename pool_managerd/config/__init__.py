"""Configuration of pool-managerd, read from one TOML file and the environment. HME-003.

`schema` has all tables, those of one subject are in its module, and `loading` reads them.
"""
