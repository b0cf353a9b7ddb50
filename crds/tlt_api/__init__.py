"""The API of the product: the resources, their status, and what operator and runner tell each other.

Everything here is data and pure functions. Neither Kubernetes nor TensorFlow is imported, so that the
operator, the runner and a laptop without either read the same truth.
"""
