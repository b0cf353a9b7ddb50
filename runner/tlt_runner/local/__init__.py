"""Flows without a cluster: ``tlt run FOLDER`` does on a laptop what the operator does with pods."""
