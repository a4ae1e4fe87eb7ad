"""What is checked of a host before an engine starts: its model, its context, its memory."""
