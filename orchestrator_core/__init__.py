"""orchestratord: admits, queues, places, cancels, retries and relays the tokens of LLM jobs."""
