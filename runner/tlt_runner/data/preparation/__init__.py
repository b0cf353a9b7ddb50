"""From a data set as found to records, or to a folder of another format."""
