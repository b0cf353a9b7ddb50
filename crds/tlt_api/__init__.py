"""API of the product: the resources, their status, and the messages between operator and runner.

It consists of data and pure functions. Neither Kubernetes nor TensorFlow is imported, so that the operator,
the runner and a laptop without either use the same types.
"""
