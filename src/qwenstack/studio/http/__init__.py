"""The HTTP edge: connections, bodies, routes. Plain ASGI, no policy."""
