"""The status page: what happens now, for people with a browser, and as JSON. HME-050."""
