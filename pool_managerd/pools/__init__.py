"""Pools and the incarnations of their engines: started, tested, watched and started again."""
