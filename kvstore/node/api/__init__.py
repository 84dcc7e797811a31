"""The client API: a `Request` in, a `Response` out, through the router. No rules of consensus here.

`dispatch.Api` is the entry; `table` lists every route with its parameters, from which the dispatcher, the
405 answers, the check of parameters and the OpenAPI document all come, so that they cannot disagree.
"""
