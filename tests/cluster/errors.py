"""What can go wrong while a cluster is started. `fixtures` turns the second one into a skip, nothing else
does.

ClusterError
└── UnavailableError   this machine lacks an ability (root, Linux, a program): says which and what to do
"""


class ClusterError(RuntimeError):
    """A step failed although the machine should be able to do it."""


class UnavailableError(ClusterError):
    """This machine cannot do it: no root, no Linux, a program is missing."""
