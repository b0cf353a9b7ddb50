"""Preparation: a data set is converted to records, or to a folder of another format."""
