"""The client API: a `Request` in, a `Response` out, through the router. No rules of consensus here.

`Api` is the entry. `table` lists every route with its parameters; the dispatcher, the 405 answers, the
check of parameters and the OpenAPI document all come from it, so that they cannot disagree. `view` is what
the handlers ask about the cluster.
"""

from kvstore.node.api.dispatch import Api
from kvstore.node.api.view import ClusterView

__all__ = ["Api", "ClusterView"]
