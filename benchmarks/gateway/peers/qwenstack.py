"""stub"""
from __future__ import annotations
from benchmarks.gateway.installs import Unavailable
from benchmarks.gateway.peers.routers import Direct
class QwenStack(Direct):
    name = "qwenstack"
    def install(self) -> None:
        raise Unavailable("later")
