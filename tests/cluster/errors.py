"""Errors while a cluster is started. Only `fixtures` turns the second one into a skip.

ClusterError
└── UnavailableError   this machine lacks an ability (root, Linux, a program): says which and what to do
"""


class ClusterError(RuntimeError):
    """A step failed although the machine should be able to do it."""


class UnavailableError(ClusterError):
    """This machine cannot do it: no root, no Linux, a program is missing."""
