"""Dataset report: statistics, JSON model, warnings, HTML page."""
