"""What is said of a data set: counts, the report they become, its warnings, its page."""
