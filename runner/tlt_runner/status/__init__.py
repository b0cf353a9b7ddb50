"""Reporters: collect a task's results and write them to the resource's status, or to a file."""
