"""stub"""
from __future__ import annotations
from benchmarks.gateway.installs import Unavailable
from benchmarks.gateway.peers.routers import Direct
class LiteLlm(Direct):
    name = "litellm"
    def install(self) -> None:
        raise Unavailable("later")
